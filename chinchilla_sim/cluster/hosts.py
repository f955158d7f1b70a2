"""Cores of a machine, and who computes on which: ranks that are more than cores, and nodes that a machine emulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """Cores that several slots share: ranks that compute, and all that their communication takes of processor time.

    Beside what ranks spend themselves, links that are emulated on the host take `fabric_s_per_byte` for what a slot sends,
    and `fabric_s_per_message`.
    """

    slots: tuple[int, ...]
    cores: float
    fabric_s_per_byte: float = 0.0
    fabric_s_per_message: float = 0.0


def core_range(cores: int, number: int, count: int) -> range:
    """Which of so many cores one of `count` ranks has: neighbours together; with more ranks than cores some have the same one.

    >>> [list(core_range(5, rank, 2)) for rank in range(2)], [list(core_range(2, rank, 3)) for rank in range(3)]
    ([[0, 1], [2, 3, 4]], [[0], [0], [1]])
    """
    first, end = (cores * one // count for one in (number, number + 1))
    return range(first, max(end, first + 1))


def share_cores(slots: Sequence[int], cores: int) -> tuple[Host, ...]:
    """The cores of one machine, one by one, with the slots of a run that compute on each; none where no two have the same.

    >>> [host.slots for host in share_cores([0, 1, 2], cores=2)], share_cores([0, 1], cores=2)
    ([(0, 1), (2,)], ())
    """
    if len(slots) <= cores:
        return ()
    core_of = {slot: core_range(cores, number, len(slots))[0] for number, slot in enumerate(slots)}
    return tuple(Host(tuple(slot for slot in slots if core_of[slot] == core), 1.0) for core in range(cores))
