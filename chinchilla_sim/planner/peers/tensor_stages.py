"""Pipeline stages with replicas, tensor-parallel degrees and recompute per layer on devices that are all alike (the problem of Piper,
Tarnawski, Narayanan & Phanishayee 2021).

A stage on d replicas of t devices each costs (X + (d-1) Y) / d and must hold ceil(D / d) microbatches, D the replicas from this stage
to the last (`stage_choices` lists X, Y and what can be held). The slowest stage is to be as fast as can be, with d t devices per stage
and `devices` in all. Below a limit L a choice needs at least

    d >= (X - Y) / (L - Y)    for its time,        d >= (D - d) / (held - 1)    for its memory

replicas, and more than that only make it harder for the stages before it. Hence the fewest devices from ideal i to the end with
D replicas in all:

    fewest[i, D + d] = min over stages (i, j), choices of  fewest[j, D] + d t,    d the least divisor of the microbatches

is exact for a given L, and L is halved between the last one that works and the last that does not, each plan found lowering it to its
own slowest stage. O(choices * devices) per limit, and one choice per stage, degree and replicas is left after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_sim.planner.peers.ideals import Floats, Ideals, list_ideals
from chinchilla_sim.planner.peers.stage_choices import Ints, StageChoices, TensorProblem, list_choices

MOST_IDEALS = 600
LIMIT_TOLERANCE = 1e-10
_NONE = np.int64(1 << 40)


@dataclass(frozen=True, slots=True)
class TensorStage:
    """Layers on `replicas` groups of `tensor_parallel_degree` devices each."""

    layers: tuple[int, ...]
    tensor_parallel_degree: int
    replicas: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TensorResult:
    """The best stages and their slowest; `optimal` unless ideals or choices were too many to consider all."""

    slowest_s: float
    stages: tuple[TensorStage, ...]
    optimal: bool


def split_tensor_stages(problem: TensorProblem) -> TensorResult | None:
    """Best stages, or None where no split fits into memory."""
    ideals = list_ideals(len(problem.layers), list(problem.edge_bytes), MOST_IDEALS)
    choices = list_choices(problem, ideals)
    search = _Search(problem, ideals, choices)
    best = search.stages_below(np.inf)
    if best is None:
        return None
    failed = 0.0
    while _slowest(best) > failed * (1 + LIMIT_TOLERANCE):
        limit = (failed + _slowest(best)) / 2
        better = search.stages_below(limit)
        if better is None:
            failed = limit
        else:
            best = better
    return TensorResult(_slowest(best), tuple(best), ideals.complete and choices.exact)


def _slowest(stages: Sequence[TensorStage]) -> float:
    return max(stage.seconds for stage in stages)


class _Search:
    """Choices by their first ideal, and the fewest devices behind each ideal."""

    def __init__(self, problem: TensorProblem, ideals: Ideals, choices: StageChoices) -> None:
        self.problem, self.ideals, self.choices = problem, ideals, choices
        counts = problem.replica_counts
        self.round_up: Ints = np.full(problem.devices + 2, _NONE, dtype=np.int64)
        """Least allowed number of replicas, by the least number that would do."""
        for count in reversed(counts):
            self.round_up[: count + 1] = count

    def stages_below(self, limit_s: float) -> list[TensorStage] | None:
        """Stages that all take at most so long."""
        usable, replicas = self._usable(limit_s)
        groups = self._groups(usable)
        last = len(self.ideals) - 1
        fewest = np.full((last + 1, self.problem.devices + 1), _NONE, dtype=np.int64)
        came: list[tuple[Ints, Ints] | None] = [None] * (last + 1)
        fewest[last, 0] = 0
        for start in range(last - 1, -1, -1):
            rows = groups.get(start)
            if rows is not None:
                came[start] = self._extend(fewest, start, rows, replicas[rows])
        if fewest[0].min() > self.problem.devices:
            return None
        return self._trace(fewest, came)

    def _usable(self, limit_s: float) -> tuple[Ints, Ints]:
        """Choices that are fast enough with replicas that the devices allow, and the least such number by choice."""
        x, y = self.choices.xy[:, 0], self.choices.xy[:, 1]
        needed = np.ones_like(x)
        if limit_s < np.inf:
            with np.errstate(divide="ignore", invalid="ignore"):
                needed = np.where(x <= limit_s, 1.0, np.where(y < limit_s, np.ceil((x - y) / (limit_s - y) * (1 - 1e-12)), np.inf))
        too_many = self.problem.devices + 1
        least = self.round_up[np.minimum(needed, too_many).astype(np.int64)]
        usable = np.flatnonzero(least * self.choices.degree <= self.problem.devices)
        return self._unbeaten(usable, least), least

    def _unbeaten(self, rows: Ints, least: Ints) -> Ints:
        """Of the choices of one stage and degree, those that hold more than all with as few replicas."""
        held, choices = self.choices.held, self.choices
        rows = rows[np.lexsort((-held[rows], least[rows], choices.degree[rows], choices.outer[rows], choices.inner[rows]))]
        stage = (choices.inner[rows] * len(self.ideals) + choices.outer[rows]) * (self.problem.devices + 1) + choices.degree[rows]
        # A running maximum within each stage: offsets that grow by stage make one pass over all of them.
        number = np.concatenate([[0], np.cumsum(stage[1:] != stage[:-1])]) if len(rows) else stage
        offset = number * (self.problem.devices + 2)
        most = np.maximum.accumulate(held[rows] + offset) if len(rows) else stage
        first = np.ones(len(rows), dtype=np.bool_)
        if len(rows) > 1:
            first[1:] = (number[1:] != number[:-1]) | (held[rows][1:] + offset[1:] > most[:-1])
        kept: Ints = rows[first]
        return kept

    def _groups(self, rows: Ints) -> dict[int, Ints]:
        starts, first = np.unique(self.choices.inner[rows], return_index=True)
        return {int(start): part for start, part in zip(starts, np.split(rows, first[1:]), strict=True)} if len(rows) else {}

    def _extend(self, fewest: Ints, start: int, rows: Ints, least: Ints) -> tuple[Ints, Ints]:
        """Fill fewest[start]; the choice and replicas that led to each entry."""
        devices = self.problem.devices
        behind = np.arange(devices + 1)
        held, degree = self.choices.held[rows], self.choices.degree[rows]
        with np.errstate(divide="ignore"):
            for_memory = np.where(held[:, None] > 1, -(-behind // np.maximum(held - 1, 1)[:, None]), np.where(behind > 0, devices + 1, 0))
        replicas = self.round_up[np.maximum(least[:, None], for_memory)]
        total = fewest[self.choices.outer[rows]] + np.minimum(replicas, _NONE) * degree[:, None]
        row, column = np.nonzero(total <= devices)
        chosen, used = np.full(devices + 1, -1, dtype=np.int64), np.zeros(devices + 1, dtype=np.int64)
        if len(row):
            amounts, taken = total[row, column], replicas[row, column]
            at = column + taken
            order = np.lexsort((amounts, at))
            places, first = np.unique(at[order], return_index=True)
            kept = order[first]
            fewest[start, places] = amounts[kept]
            chosen[places], used[places] = rows[row[kept]], taken[kept]
        return chosen, used

    def _trace(self, fewest: Ints, came: Sequence[tuple[Ints, Ints] | None]) -> list[TensorStage]:
        start, behind = 0, int(fewest[0].argmin())
        stages = []
        while start < len(self.ideals) - 1:
            step = came[start]
            assert step is not None
            choice, replicas = int(step[0][behind]), int(step[1][behind])
            end = int(self.choices.outer[choice])
            seconds = float(_seconds(self.choices.xy[choice], replicas))
            stages.append(TensorStage(self.ideals.tasks_between(start, end), int(self.choices.degree[choice]), replicas, seconds))
            start, behind = end, behind - replicas
        return stages


def _seconds(xy: Floats, replicas: int) -> float:
    seconds: float = (xy[0] + (replicas - 1) * xy[1]) / replicas
    return seconds
