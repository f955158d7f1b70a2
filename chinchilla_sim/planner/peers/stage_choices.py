"""How fast each contiguous stage can be at each tensor-parallel degree, and how many microbatches it can then hold.

A layer offers variants (Piper's: vanilla, recompute, per degree), and a stage picks one per layer: with the layers' X seconds,
Y seconds per replica, A bytes per microbatch held and B fixed bytes summed over its layers, d replicas give

    cost(d) = (X + (d-1) Y) / d,    held microbatches y <= floor((memory - B) / A)

so only picks that no other beats in all of X, Y, A and B matter. Layers with equal differences between their variants (the blocks of a
transformer) form a class, of which only how many take each variant counts; classes are added one by one, and beaten picks leave.
Where more than MOST_PICKS are left, they are thinned evenly along X, and the result is no longer proven optimal (`exact`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.graph.profile import Variant
from chinchilla_sim.planner.peers.ideals import Floats, Ideals, bits

MOST_PICKS = 400
Ints = NDArray[np.int64]
Classes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TensorProblem:
    """Layers with their variants, bytes of each edge (producer, consumer) by position, and devices that are all alike.

    Replicas divide `microbatches`, the number of samples in a batch.
    """

    layers: Sequence[str]
    variants: Sequence[Sequence[Variant]]
    edge_bytes: Mapping[tuple[int, int], float]
    devices: int
    memory_bytes: float
    bandwidth_bytes_per_s: float
    microbatches: int

    @cached_property
    def replica_counts(self) -> list[int]:
        """Divisors of the number of microbatches that the devices allow."""
        return [count for count in range(1, self.devices + 1) if self.microbatches % count == 0]

    @cached_property
    def degrees(self) -> list[int]:
        """Tensor-parallel degrees that some layer offers and the devices allow."""
        offered = {variant.tensor_parallel_degree for choices in self.variants for variant in choices}
        return sorted(degree for degree in offered if degree <= self.devices)

    def variants_at(self, layer: int, degree: int) -> list[Variant]:
        """Variants of a layer at one degree."""
        return [variant for variant in self.variants[layer] if variant.tensor_parallel_degree == degree]

    def cut_bytes(self, layer: int, neighbour: int, variant: Variant) -> float:
        """Bytes that the layer's stage pays for its edge with a neighbour in another stage."""
        name = self.layers[neighbour]
        if (layer, neighbour) in self.edge_bytes:
            return self.edge_bytes[layer, neighbour] + dict(variant.backward_sync_bytes).get(name, 0.0)
        return self.edge_bytes[neighbour, layer] + dict(variant.forward_sync_bytes).get(name, 0.0)

    def amounts(self, layer: int, variant: Variant, cut: Sequence[int]) -> tuple[float, float, float, float]:
        """X, Y, A and B of a layer whose neighbours `cut` are in other stages."""
        moved = sum(self.cut_bytes(layer, neighbour, variant) for neighbour in cut)
        shared_s = 4 * variant.parameter_bytes / (self.microbatches * self.bandwidth_bytes_per_s)
        x = variant.seconds + 2 * moved / self.bandwidth_bytes_per_s
        return x, shared_s, variant.stash_bytes, variant.fixed_bytes


@dataclass(frozen=True)
class StageChoices:
    """Every pick worth having of every stage: parallel arrays, grouped by stage (inner ideal, outer ideal, degree).

    `xy` are X and Y, `held` the microbatches that fit, `picks` the variants by layer as counts per class.
    """

    inner: Ints
    outer: Ints
    degree: Ints
    xy: Floats
    held: Ints
    exact: bool


def list_choices(problem: TensorProblem, ideals: Ideals) -> StageChoices:
    """Choices of all stages between nested ideals, those that hold not even one microbatch left out."""
    inner, outer = np.nonzero(ideals.nested)
    stages = ideals.inside[outer] & ~ideals.inside[inner]
    members = [np.flatnonzero(stage).tolist() for stage in stages]
    parts, exact = [], True
    for degree in problem.degrees:
        offers = [problem.variants_at(layer, degree) for layer in range(len(problem.layers))]
        offered = np.array([bool(choices) for choices in offers])
        usable = np.flatnonzero(~(stages & ~offered).any(axis=1))
        frontiers = _Frontiers(problem, offers)
        for stage in usable:
            points = frontiers.of_stage(members[stage])
            held = _held(points, problem)
            keep = held > 0
            if keep.any():
                where = np.broadcast_to(np.array([inner[stage], outer[stage], degree]), (int(keep.sum()), 3))
                parts.append(np.column_stack([where, points[keep, :2], held[keep]]))
        exact &= frontiers.exact
    table = np.concatenate(parts) if parts else np.empty((0, 6))
    numbers = table[:, [0, 1, 2, 5]].astype(np.int64)
    return StageChoices(numbers[:, 0], numbers[:, 1], numbers[:, 2], table[:, 3:5], numbers[:, 3], exact)


def _held(points: Floats, problem: TensorProblem) -> Ints:
    """Microbatches that fit beside the fixed bytes; as many as there are devices is as good as more."""
    free, per_microbatch = problem.memory_bytes - points[:, 3], points[:, 2]
    held = np.full(len(points), float(problem.devices))
    limited = per_microbatch * problem.devices > np.maximum(free, 0.0)
    held[limited] = free[limited] // per_microbatch[limited]
    held[free < 0] = 0.0
    whole: Ints = held.astype(np.int64)
    return whole


class _Frontiers:
    """Picks of stages at one degree. A layer's class is what its variants differ by from its first one."""

    def __init__(self, problem: TensorProblem, offers: Sequence[Sequence[Variant]]) -> None:
        self.problem, self.offers = problem, offers
        self.exact = True
        self._neighbours = [0] * len(problem.layers)
        for producer, consumer in problem.edge_bytes:
            self._neighbours[producer] |= 1 << consumer
            self._neighbours[consumer] |= 1 << producer
        self._layers: dict[tuple[int, int], tuple[tuple[float, ...], int]] = {}
        self._classes: dict[tuple[tuple[float, ...], ...], int] = {}
        self._differences: list[Floats] = []
        self._sums: dict[Classes, Floats] = {}

    def of_stage(self, layers: Sequence[int]) -> Floats:
        """(X, Y, A, B) of every pick that no other beats."""
        outside = ~sum(1 << layer for layer in layers)
        found = []
        for layer in layers:
            key = layer, self._neighbours[layer] & outside
            found.append(self._layers.get(key) or self._layer(*key))
        counts = Counter(number for _, number in found if number >= 0)
        base = np.array([first for first, _ in found]).sum(axis=0)
        sums: Floats = base + self._sum(tuple(sorted(counts.items())))
        return sums

    def _layer(self, layer: int, cut_mask: int) -> tuple[tuple[float, ...], int]:
        """Amounts of the first variant, and the class (-1 where the first beats all others)."""
        cut = list(bits(cut_mask))
        rows = np.array([self.problem.amounts(layer, variant, cut) for variant in self.offers[layer]])
        whole = np.array([self.problem.amounts(layer, variant, ()) for variant in self.offers[layer]])
        moved = rows[:, 0] - whole[:, 0]
        differences = whole - whole[0]
        # Where the cut costs every variant the same, no rounding error may tell a boundary layer from the others.
        differences[:, 0] += np.where(np.isclose(moved, moved[0], rtol=1e-9, atol=0), 0.0, moved - moved[0])
        kept = _unbeaten(differences)
        number = -1
        if len(kept) > 1 or kept.any():
            number = self._classes.setdefault(tuple(map(tuple, kept.tolist())), len(self._classes))
            self._differences += [kept] if number == len(self._differences) else []
        self._layers[layer, cut_mask] = tuple(rows[0].tolist()), number
        return self._layers[layer, cut_mask]

    def _sum(self, classes: Classes) -> Floats:
        """Picks over all layers of the classes, relative to the first variants."""
        if not classes:
            return np.zeros((1, 4))
        if classes not in self._sums:
            *fewer, (number, count) = classes
            before, own = self._sum(tuple(fewer)), _repeated(self._differences[number], count)
            points = _unbeaten((before[:, None, :] + own[None, :, :]).reshape(-1, 4))
            if len(points) > MOST_PICKS:
                self.exact = False
                points = points[np.linspace(0, len(points) - 1, MOST_PICKS).astype(int)]
            self._sums[classes] = points
        return self._sums[classes]


def _repeated(variants: Floats, count: int) -> Floats:
    """Sums over `count` layers that each take one of the variants."""
    if len(variants) == 2:
        share = np.arange(count + 1, dtype=np.float64)[:, None]
        sums: Floats = variants[0] * (count - share) + variants[1] * share
        return sums
    total: Floats = np.zeros((1, 4))
    for _ in range(count):
        total = _unbeaten((total[:, None, :] + variants[None, :, :]).reshape(-1, 4))
    return total


def _unbeaten(points: Floats) -> Floats:
    """Rows that no other row equals or undercuts in every column, by X."""
    points = np.unique(points, axis=0)
    count, beaten = len(points), np.zeros(len(points), dtype=np.bool_)
    for start in range(0, count, 64):
        block = points[start : start + 64]
        undercut = (points[: start + 64, None, :] <= block[None, :, :]).all(axis=2)
        beaten[start : start + 64] = undercut.sum(axis=0) > 1
    kept: Floats = points[~beaten]
    return kept
