"""Cut a line of tasks into contiguous stages, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.graph.task import TaskGraph


def allowed_cuts(graph: TaskGraph, training: bool) -> list[bool]:
    """Whether a stage may end behind each compute task.

    Not behind a view alone, and in training not where no crossing tensor carries a gradient. A weight that is used on both sides is
    held on both (`pricing/sharing.py`).
    """
    tasks = graph.compute_tasks
    allowed = []
    for index, task in enumerate(tasks[:-1]):
        crossing = graph.live_after(graph.position[task.name])
        carries = not training or any(producer.needs_gradient for producer in crossing)
        allowed.append(carries and tasks[index + 1].launch_count > 0)
    return [*allowed, True]


Floats = NDArray[np.float64]

MOST_SWEEPS = 24
"""Cuts between the least sum and the least bottleneck that are looked at."""


@dataclass(frozen=True, slots=True)
class Line:
    """Tasks in order, to be cut over pipeline positions.

    Seconds of tasks j..i-1 on position d, infinite where they do not fit: `once_s[d][j, i]` for one microbatch, `busy_s[d][j, i]` for a
    step. `link_once_s[d][j]` and `link_busy_s[d][j]` are the same of the link into position d where tasks 0..j-1 lie before it.
    `can_end[i - 1]` says whether a stage may end behind task i - 1.
    """

    once_s: Sequence[Floats]
    busy_s: Sequence[Floats]
    link_once_s: Sequence[Floats]
    link_busy_s: Sequence[Floats]
    can_end: Sequence[bool]

    @property
    def task_count(self) -> int:
        """Tasks of the whole line."""
        return len(self.can_end)


@dataclass(frozen=True, slots=True)
class Cut:
    """Tasks of each position, what one microbatch takes through all of them, and the busiest stage or link of a step."""

    sizes: tuple[int, ...]
    once_s: float
    busiest_s: float

    def step_s(self, microbatches: int) -> float:
        """GPipe and 1F1B of unequal stages: the ramps of one microbatch, and the busiest stage for the others."""
        return self.once_s + (1 - 1 / microbatches) * self.busiest_s


def balance(line: Line) -> Cut | None:
    """The cut whose busiest stage or link is as fast as can be; among those, the one with the least seconds of one microbatch.

    Exact dynamic programme over (first d positions, first i tasks), O(positions * tasks^2) in whole rows:

        best[d][i] = min over j of  max(best[d-1][j], link_busy_s[d][j], busy_s[d][j, i])

    None where nothing fits.
    """
    best = _start(line)
    for busy_s, link_s in zip(line.busy_s, line.link_busy_s, strict=True):
        reached = np.maximum(np.maximum(best, link_s)[:, None], busy_s).min(axis=0)
        best = np.where(_ends(line), reached, np.inf)
    limit = float(best[-1])
    return least_sum(line, limit) if np.isfinite(limit) else None


def least_sum(line: Line, limit: float = np.inf) -> Cut | None:
    """The cut with the least seconds of one microbatch among those whose stages and links all take at most `limit` a step.

    best[d][i] = min over j of  best[d-1][j] + link_once_s[d][j] + once_s[d][j, i];  the earliest cut wins a tie. Sums are compared to a
    part in 1e12, so that equal pieces in another order count as equal.
    """
    scale = max(float(matrix[np.isfinite(matrix)].max(initial=0.0)) for matrix in line.once_s) or 1.0
    best, origins = _start(line), []
    for once_s, busy_s, link_once_s, link_busy_s in zip(line.once_s, line.busy_s, line.link_once_s, line.link_busy_s, strict=True):
        before = np.where(link_busy_s <= limit, best + link_once_s, np.inf)
        sums = np.where(busy_s <= limit, before[:, None] + once_s, np.inf)
        origins.append(np.round(sums / scale, 12).argmin(axis=0))
        reached = sums[origins[-1], np.arange(len(best))]
        best = np.where(_ends(line), reached, np.inf)
    if not np.isfinite(best[-1]):
        return None
    ends = [line.task_count]
    for origin in reversed(origins):
        ends.append(int(origin[ends[-1]]))
    ends.reverse()
    busiest = max(
        max(float(line.busy_s[d][first, end]), float(line.link_busy_s[d][first])) for d, (first, end) in enumerate(pairwise(ends))
    )
    return Cut(tuple(end - first for first, end in pairwise(ends)), float(best[-1]), busiest)


def best_cuts(line: Line, microbatches: int) -> list[Cut]:
    """The cut with the least `step_s`, and the balanced one where that is another: exact over all cuts, up to MOST_SWEEPS of them.

    A cut that takes longer once must have a faster busiest stage. So the least sum is lowered from limit to limit, each below the busiest
    of the cut before, until even the least bottleneck could not make up for the sum.
    """
    balanced = balance(line)
    if balanced is None:
        return []
    best, limit = balanced, np.inf
    for _ in range(MOST_SWEEPS):
        cut = least_sum(line, limit)
        if cut is None or cut.once_s + (1 - 1 / microbatches) * balanced.busiest_s >= best.step_s(microbatches):
            break
        if cut.step_s(microbatches) < best.step_s(microbatches):
            best = cut
        limit = cut.busiest_s * (1 - 1e-9)
    return [best] if best.sizes == balanced.sizes else [best, balanced]


def _start(line: Line) -> Floats:
    """Seconds of no position: only no task has been placed."""
    best = np.full(line.task_count + 1, np.inf)
    best[0] = 0.0
    return best


def _ends(line: Line) -> NDArray[np.bool_]:
    """Whether so many tasks may lie before a cut."""
    return np.array([False, *line.can_end])
