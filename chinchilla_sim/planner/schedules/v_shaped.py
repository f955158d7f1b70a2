"""Schedules of a pipeline that runs down the ranks and back up: rank r holds stages r and 2 ranks - 1 - r.

Embedding and loss meet on rank 0, both stages of a rank start early, and the last rank hands over to itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from chinchilla_sim.planner.action import Action, Op


def zb_v(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """ZB-V (Qi et al. 2024, section 6): no bubble where F, I and W take equally long, with the memory of 1F1B."""
    # The pattern is drawn for a full pipeline; what a shorter batch does not have is left out.
    row = _Row(position, 2 * ranks - 1 - position)
    drawn = max(2 * ranks - 1, microbatches)
    row.repeat(2 * (ranks - position) - 1, "F0")
    row.repeat(position, "F1", "F0")
    row.repeat(ranks - position, "F1", "I1", "W1")
    while row.count("F1") < row.count("F0") or row.count("F0") < drawn:
        row.repeat(1, *(["F0"] if row.count("F0") < drawn else []), "I0", "W0", "F1", "I1", "W1")
    row.repeat(position, "I0", "I1")
    row.repeat(ranks - position, "I0", "W0")
    row.repeat(row.count("I1") - row.count("W1"), "W1")
    row.repeat(row.count("I0") - row.count("W0"), "W0")
    return (action for action in row.actions if action.microbatch is not None and action.microbatch < microbatches)


def dual_pipe_v(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """DualPipeV (DeepSeek-AI 2024): forwards of one stage beside backwards of the other; needs 2 ranks microbatches."""
    behind = ranks - 1 - position
    row = _Row(position, 2 * ranks - 1 - position)
    row.repeat(2 * behind, "F0")
    row.repeat(position + 1, "F0", "F1")
    row.repeat(behind, "I1", "W", "F1")
    row.repeat(microbatches - 2 * ranks + position + 1, "F0", "B1", "F1", "B0")
    row.repeat(behind, "B1", "F1", "B0")
    # The second half of the draining backwards is split, so that their weight gradients fill the end.
    drain = ["B1", "B0"] * (position + 1)
    split_from = 2 * ((position + 1) // 2) + (position + 1) % 2
    row.repeat(1, *drain[:split_from], *(backward.replace("B", "I") for backward in drain[split_from:]))
    row.repeat(behind, "W", "I0")
    row.repeat(position + 1, "W")
    return iter(row.actions)


class _Row:
    """A row in the making: `F0` is the next forward of the rank's first stage, `W` the oldest open weight gradient."""

    def __init__(self, *stages: int) -> None:
        self.stages = stages
        self.actions: list[Action] = []
        self._counts: dict[str, int] = {}
        self._open: deque[tuple[int, int]] = deque()

    def count(self, what: str) -> int:
        """How many of these passes the row has."""
        return self._counts.get(what, 0)

    def repeat(self, times: int, *passes: str) -> None:
        """Append passes, the whole list so many times."""
        for _ in range(times):
            for what in passes:
                self._append(what)

    def _append(self, what: str) -> None:
        if what == "W":
            if self._open:
                stage, microbatch = self._open.popleft()
                self.actions.append(Action(stage, Op.W, microbatch))
            return
        letter, stage = what[0], self.stages[int(what[1])]
        # A whole backward pass counts as both halves.
        counted = f"I{what[1]}" if letter == "B" else what
        microbatch = self.count(counted)
        self._counts[counted] = microbatch + 1
        if letter == "I":
            self._open.append((stage, microbatch))
        self.actions.append(Action(stage, Op(letter), microbatch))
