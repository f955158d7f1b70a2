"""Ideals of a task graph: the sets of tasks that contain every producer of their members.

A pipeline's cuts are nested ideals, and a contiguous stage is the difference of two of them. A line of n tasks has n + 1 ideals,
b parallel branches of n tasks have (n + 1)^b: their number decides what can be planned exactly, so it is limited, and beyond the
limit only the prefixes of one order of the tasks remain (`complete` says which it was).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def product_of(members: Bools, amounts: NDArray[Any]) -> Floats:
    """Rows of flags times finite amounts. BLAS kernels also compute on lanes beyond the matrix and may raise flags for them."""
    with np.errstate(invalid="ignore", over="ignore"):
        product: Floats = members.astype(np.float64) @ amounts
    return product


@dataclass(frozen=True)
class Ideals:
    """Ideals from the empty one to all tasks, smaller ones first, hence each behind all that it contains.

    `inside[i, t]` says whether ideal i holds task t.
    """

    inside: Bools
    complete: bool

    def __len__(self) -> int:
        return len(self.inside)

    def totals(self, amounts: Sequence[float]) -> Floats:
        """Sum of an amount per task over each ideal."""
        return product_of(self.inside, np.asarray(amounts, dtype=np.float64))

    @cached_property
    def nested(self) -> Bools:
        """`nested[i, j]`: ideal i is a proper part of ideal j. Takes the square of their number in memory."""
        sizes = self.inside.sum(axis=1)
        within: Bools = (product_of(self.inside, self.inside.T.astype(np.float64)) == sizes[:, None]) & (sizes[:, None] < sizes[None, :])
        return within

    def cut_producers(self, edges: Iterable[tuple[int, int]]) -> Bools:
        """`[i, t]`: task t is in ideal i and has a consumer outside it."""
        cut = np.zeros_like(self.inside)
        for producer, consumer in edges:
            cut[:, producer] |= self.inside[:, producer] & ~self.inside[:, consumer]
        return cut

    def tasks_between(self, inner: int, outer: int) -> tuple[int, ...]:
        """Tasks of one ideal that are not in another."""
        return tuple(int(task) for task in np.flatnonzero(self.inside[outer] & ~self.inside[inner]))


def list_ideals(task_count: int, edges: Sequence[tuple[int, int]], limit: int) -> Ideals:
    """All ideals of a graph without cycles, or the prefixes of one order of its tasks where there are more than `limit`.

    Grows ideals by one task at a time, O(ideals * tasks): what a task makes ready is found among its own consumers.

    >>> list_ideals(3, [(0, 2), (1, 2)], limit=10).inside.astype(int).tolist()
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]]
    >>> list_ideals(3, [(0, 2), (1, 2)], limit=4).inside.astype(int).tolist()
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    producers = [0] * task_count
    consumers: list[list[int]] = [[] for _ in range(task_count)]
    for producer, consumer in edges:
        producers[consumer] |= 1 << producer
        consumers[producer].append(consumer)
    ready = sum(1 << task for task in range(task_count) if not producers[task])
    level = {0: ready}
    listed = [0]
    for _ in range(task_count):
        level = _grow(level, producers, consumers, limit - len(listed))
        if not level:
            return Ideals(_prefixes(task_count, ready, producers, consumers), complete=False)
        listed += level
    return Ideals(_members(listed, task_count), complete=True)


def _grow(level: dict[int, int], producers: Sequence[int], consumers: Sequence[Sequence[int]], room: int) -> dict[int, int]:
    """Ideals with one task more and the tasks ready in each; nothing where there are more than `room`."""
    grown: dict[int, int] = {}
    for ideal, ready in level.items():
        for task in bits(ready):
            larger = ideal | 1 << task
            if larger not in grown:
                grown[larger] = _ready_after(larger, ready, task, producers, consumers)
        if len(grown) > room:
            return {}
    return grown


def _ready_after(larger: int, ready: int, task: int, producers: Sequence[int], consumers: Sequence[Sequence[int]]) -> int:
    fresh = sum(1 << consumer for consumer in set(consumers[task]) if not producers[consumer] & ~larger)
    return ready & ~(1 << task) | fresh


def _prefixes(task_count: int, ready: int, producers: Sequence[int], consumers: Sequence[Sequence[int]]) -> Bools:
    """Prefixes of the order that always takes the first task that is ready."""
    listed = [0]
    for _ in range(task_count):
        task = next(bits(ready))
        listed.append(listed[-1] | 1 << task)
        ready = _ready_after(listed[-1], ready, task, producers, consumers)
    return _members(listed, task_count)


def bits(mask: int) -> Iterator[int]:
    """Positions of the ones, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _members(masks: Sequence[int], task_count: int) -> Bools:
    """Bit masks as rows of a table."""
    width = max(1, (task_count + 7) // 8)
    data = np.frombuffer(b"".join(mask.to_bytes(width, "little") for mask in masks), dtype=np.uint8)
    return np.unpackbits(data.reshape(len(masks), width), axis=1, bitorder="little")[:, :task_count].astype(np.bool_)
