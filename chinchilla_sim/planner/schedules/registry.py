"""Every schedule by name, and what it asks of the number of stages and microbatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.schedules.alternating import (
    forward_only,
    gpipe,
    interleaved_1f1b,
    interleaved_zero_bubble,
    looped_bfs,
    one_f_one_b,
    zb_h2,
)
from chinchilla_sim.planner.schedules.v_shaped import dual_pipe_v, zb_v

Rows = Callable[[int, int, int, int], Iterator[Action]]
Layout = Literal["line", "loop", "v"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """`row(position, ranks, stages_per_rank, microbatches)` are a rank's passes; None where they depend on their seconds.

    A `line` has one stage per rank, a `loop` puts stage s on rank s % ranks, a `v` runs down the ranks and back.
    """

    name: str
    row: Rows | None
    layout: Layout
    splits_backward: bool = False
    training: bool = True

    def refuses(self, ranks: int, stages_per_rank: int, microbatches: int) -> str | None:
        """Why the schedule cannot be drawn for these sizes, or None."""
        if self.layout == "line" and stages_per_rank != 1:
            return f"{self.name} runs one stage per rank, not {stages_per_rank}"
        if self.layout == "v" and stages_per_rank != 2:
            return f"{self.name} runs two stages per rank, not {stages_per_rank}"
        if self.name.startswith("interleaved") and microbatches % max(1, microbatches // ranks):
            rounds = microbatches // ranks
            return f"{self.name} runs {microbatches} microbatches in {rounds} rounds of {ranks} or more: use a multiple of {rounds}"
        if self.name == "dualpipe-v" and microbatches < 2 * ranks:
            return f"dualpipe-v needs {2 * ranks} microbatches or more, not {microbatches}"
        return None

    def rank_of_stage(self, stage: int, ranks: int) -> int:
        """Pipeline position that runs a stage."""
        turn, step = divmod(stage, ranks)
        return ranks - 1 - step if self.layout == "v" and turn % 2 else step


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        Schedule("gpipe", gpipe, "line"),
        Schedule("1f1b", one_f_one_b, "line"),
        Schedule("looped-bfs", looped_bfs, "loop"),
        Schedule("interleaved-1f1b", interleaved_1f1b, "loop"),
        Schedule("zb-h1", interleaved_zero_bubble, "line", splits_backward=True),
        Schedule("zb-h2", zb_h2, "line", splits_backward=True),
        Schedule("interleaved-zb", interleaved_zero_bubble, "loop", splits_backward=True),
        Schedule("zb-1p", None, "line", splits_backward=True),
        Schedule("zb-2p", None, "line", splits_backward=True),
        Schedule("zb-v", zb_v, "v", splits_backward=True),
        Schedule("dualpipe-v", dual_pipe_v, "v", splits_backward=True),
        Schedule("forward", forward_only, "line", training=False),
    )
}


@lru_cache(maxsize=4096)
def microbatches_in_flight(schedule: str, stage: int, ranks: int, stage_count: int, microbatches: int) -> int:
    """Most microbatches that a stage has started and not freed (by B or W); automatic schedules may hold what 1F1B would, twice.

    >>> [microbatches_in_flight("1f1b", stage, 4, 4, 8) for stage in range(4)]
    [4, 3, 2, 1]
    """
    chosen = SCHEDULES.get(schedule)
    if chosen is None or chosen.row is None:
        return min(microbatches, {"zb-1p": 1, "zb-2p": 2}.get(schedule, microbatches) * ranks)
    most = held = 0
    for action in chosen.row(chosen.rank_of_stage(stage, ranks), ranks, stage_count // ranks, microbatches):
        if action.stage == stage:
            held += (action.op is Op.F) - (action.op in (Op.B, Op.W))
            most = max(most, held)
    return most if chosen.training else 1
