"""Stages with replicas over machines of several levels, exactly (the programme of PipeDream, Narayanan et al. 2019).

A stage is the difference of two nested ideals of the graph. With T its compute seconds, P its parameter bytes, B the bandwidth of
the level and r replicas, it takes

    (T + 4 (r-1) P / (B r)) / r                          replicated compute and the all-reduce of gradients
    2 A / (B r c)                                        each cut that it pays, A the bytes of the producers cut, c the compression

and the pipeline as long as its slowest stage or cut. A stage behind the first pays the cut before it, and the one behind it unless it
ends the graph; without `activation_compression_ratio` no cut is paid. All machines of a level are used. Over ideals i < k < j and m
machines:

    whole[i, j, r]   = (T[i, j] + 4 (r-1) P[i, j] / (B r M_below)) / r                                     _Level.whole_s
    later[k, j, r]   = max((T[k, j] + 4 (r-1) P[k, j] / (B r)) / r, cut(k, r), cut(j, r))                  _Level.later_s
    best[i, j, m]    = min(whole[i, j, m], min over k, r < m of max(best[i, k, m-r], later[k, j, r]))      _Level.best_s

Levels are solved from the innermost: best[., ., M] of one is T of the next, whose M_below is M (the one of the innermost is 1). That
only `whole` divides by M_below is PipeDream's model, not ours. With S ideals, O(S^2 M^2) for the outermost level and
O(S^3 M^2) for those within, as products of matrices in (min, max).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_sim.planner.peers.ideals import Floats, Ideals, list_ideals, product_of

MOST_WORK = 4e9
"""Comparisons, about ten seconds: decides how many ideals are considered."""


@dataclass(frozen=True, slots=True)
class MachineLevel:
    """So many machines side by side, each of them a whole level below."""

    machines: int
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ReplicationProblem:
    """Tasks with seconds and bytes, edges between their positions, and machines, innermost level first.

    `straight` allows no replicas; without a compression ratio cuts cost nothing.
    """

    compute_s: Sequence[float]
    parameter_bytes: Sequence[float]
    output_bytes: Sequence[float]
    edges: Sequence[tuple[int, int]]
    levels: Sequence[MachineLevel]
    activation_compression_ratio: float | None = None
    straight: bool = False


@dataclass(frozen=True, slots=True)
class ReplicatedStage:
    """Tasks on `replicas` machines of a level; `inner` is how each of these machines, a level of its own, splits them."""

    tasks: tuple[int, ...]
    replicas: int
    inner: tuple[ReplicatedStage, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicationResult:
    """The best stages and their slowest; `optimal` unless there were too many ideals to consider all."""

    slowest_s: float
    stages: tuple[ReplicatedStage, ...]
    optimal: bool


def replicate_stages(problem: ReplicationProblem) -> ReplicationResult | None:
    """Best stages and replicas of all machines, or None where nothing is possible (straight, with more machines than cuts).

    >>> level = MachineLevel(machines=3, bandwidth_bytes_per_s=1.0)
    >>> result = replicate_stages(ReplicationProblem([4.0, 2.0], [0.0, 9.0], [1.0, 1.0], [(0, 1)], [level]))
    >>> result.slowest_s, [(stage.tasks, stage.replicas) for stage in result.stages]
    (2.0, [((0,), 2), ((1,), 1)])
    """
    ideals = list_ideals(len(problem.compute_s), problem.edges, _most_ideals(problem.levels))
    levels = _solve_inner_levels(problem, ideals)
    top, whole = len(levels) - 1, (0, len(ideals) - 1)
    slowest_s = float(levels[top].from_s(0)[-1, whole[1]])
    if slowest_s == np.inf:
        return None
    return ReplicationResult(slowest_s, _stages(levels, top, *whole), ideals.complete)


@dataclass(frozen=True)
class _Level:
    """One level over all pairs of ideals: seconds and parameter bytes between them, bytes cut at each."""

    ideals: Ideals
    machines: int
    machines_below: int
    straight: bool
    span_s: Floats
    replica_sync_s: Floats
    cut_s: Floats
    """`replica_sync_s` is 4 P / B, `cut_s` is 2 A / (B c), or 0 where cuts are free and behind the last task."""

    def whole_s(self, replicas: int) -> Floats:
        """A span as one stage on all its machines."""
        if self.straight and replicas > 1:
            return np.full_like(self.span_s, np.inf)
        return (self.span_s + (replicas - 1) / (replicas * self.machines_below) * self.replica_sync_s) / replicas

    def later_s(self, replicas: int, end: int | slice = slice(None)) -> Floats:
        """A stage behind the first, from each ideal to each (or to one)."""
        compute_s = (self.span_s[:, end] + (replicas - 1) / replicas * self.replica_sync_s[:, end]) / replicas
        cut_s = self.cut_s[:, None] if isinstance(end, slice) else self.cut_s
        later: Floats = np.maximum(compute_s, np.maximum(cut_s, self.cut_s[end]) / replicas)
        return later

    def last_replicas(self, machines: int) -> range:
        """Replicas that the last of several stages may have."""
        return range(1, min(2, machines) if self.straight else machines)

    def best_s(self) -> Floats:
        """Best seconds of every span on all machines."""
        best = [self.whole_s(1)]
        for m in range(2, self.machines + 1):
            value = self.whole_s(m)
            for r in self.last_replicas(m):
                _take_min_max(value, best[m - r - 1], self.later_s(r))
            best.append(value)
        return best[-1]

    def from_s(self, start: int) -> Floats:
        """Best seconds from one ideal to each, by machines - 1."""
        best = np.stack([self.whole_s(m)[start] for m in range(1, self.machines + 1)])
        for end in range(start + 1, len(self.ideals)):
            cuts = np.flatnonzero(self.ideals.nested[start] & self.ideals.nested[:, end])
            for r in self.last_replicas(self.machines) if len(cuts) else ():
                slowest = np.maximum(best[: self.machines - r, cuts], self.later_s(r, end)[cuts])
                np.minimum(best[r:, end], slowest.min(axis=1), out=best[r:, end])
        return best


def _take_min_max(value: Floats, before: Floats, later: Floats) -> None:
    """Lower value[i, j] to the least max(before[i, k], later[k, j]); k lies between i and j."""
    columns = np.ascontiguousarray(later.T)
    for j in range(2, len(value)):
        first = np.maximum(before[: j - 1, 1:j], columns[j, 1:j])
        np.minimum(value[: j - 1, j], first.min(axis=1), out=value[: j - 1, j])


def _most_ideals(levels: Sequence[MachineLevel]) -> int:
    """The most ideals S with  S^2 M^2 / 2  of the outermost level and  S^3 M^2 / 12  of each other within MOST_WORK."""
    *inner, outer = (level.machines**2 for level in levels)
    most = int((2 * MOST_WORK / outer) ** 0.5)
    return min(most, int((12 * MOST_WORK / sum(inner)) ** (1 / 3))) if inner else most


def _solve_inner_levels(problem: ReplicationProblem, ideals: Ideals) -> list[_Level]:
    """The levels, each with the spans that those below have solved."""
    compute_s, parameters = (ideals.totals(amounts) for amounts in (problem.compute_s, problem.parameter_bytes))
    span_s = np.where(ideals.nested, compute_s[None, :] - compute_s[:, None], np.inf)
    parameter_bytes = np.where(ideals.nested, parameters[None, :] - parameters[:, None], 0.0)
    cut_bytes = product_of(ideals.cut_producers(problem.edges), np.asarray(problem.output_bytes, dtype=np.float64))
    ratio = problem.activation_compression_ratio
    levels: list[_Level] = []
    for level in problem.levels:
        below = levels[-1].machines if levels else 1
        if levels:
            span_s = levels[-1].best_s()
        sync_s = 4 * parameter_bytes / level.bandwidth_bytes_per_s
        cut_s = np.zeros_like(cut_bytes) if ratio is None else 2 * cut_bytes / (level.bandwidth_bytes_per_s * ratio)
        levels.append(_Level(ideals, level.machines, below, problem.straight, span_s, sync_s, cut_s))
    return levels


def _stages(levels: list[_Level], depth: int, start: int, end: int) -> tuple[ReplicatedStage, ...]:
    """The stages of one span on all machines of a level."""
    level = levels[depth]
    best = level.from_s(start)
    stages: list[ReplicatedStage] = []
    m = level.machines
    while True:
        whole = level.whole_s(m)[start, end]
        choices = [np.maximum(best[m - r - 1], level.later_s(r, end)) for r in level.last_replicas(m)]
        slowest = [choice.min() for choice in choices]
        r = min(level.last_replicas(m), key=lambda r: slowest[r - 1], default=0)
        if not r or whole <= slowest[r - 1]:
            return (_stage(levels, depth, start, end, m), *reversed(stages))
        cut = int(choices[r - 1].argmin())
        stages.append(_stage(levels, depth, cut, end, r))
        end, m = cut, m - r


def _stage(levels: list[_Level], depth: int, start: int, end: int, replicas: int) -> ReplicatedStage:
    inner = _stages(levels, depth - 1, start, end) if depth else ()
    return ReplicatedStage(levels[depth].ideals.tasks_between(start, end), replicas, inner)
