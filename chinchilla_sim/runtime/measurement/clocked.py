"""A rank that plays steps only to be timed: without an optimizer that changes anything, and with a clock around some of its actions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from time import monotonic

import torch
from torch import nn

from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.exchanges.groups import Groups, seat_of
from chinchilla_sim.runtime.program.interpreter import Interpreter
from chinchilla_sim.runtime.program.updates import stage_update
from chinchilla_sim.runtime.record.recorder import Recorder
from chinchilla_sim.runtime.stage.stages import Stage, own_parameters


def idle_rank(job: TrainingJob, plan: Plan, process: int, stages: Sequence[Stage], groups: Groups, recorder: Recorder) -> Interpreter:
    """One rank of a plan on the CPU whose steps leave its weights as they are."""
    seat = seat_of(plan, process)
    pairs = zip(stages, own_parameters(stages), strict=True)
    updates = {stage.number: stage_update(plan, stage, owned, seat, groups, _plain_descent) for stage, owned in pairs}
    return Interpreter(plan, lower(plan).actions[seat.rank], seat, stages, job.loss, updates, groups, recorder, torch.device("cpu"))


def _plain_descent(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


class Clocked:
    """Seconds of every action of some kinds that an interpreter plays from now on, each behind a call of `before`."""

    def __init__(
        self, rank: Interpreter, ops: Iterable[Op], clock: Callable[[], float] = monotonic, before: Callable[[], None] = lambda: None
    ) -> None:
        self.seconds: dict[tuple[Op, int], list[float]] = {}
        self._clock, self._before = clock, before
        for op in ops:
            rank.replace_player(op, self._around)

    def _around(self, play: Callable[[Action], None]) -> Callable[[Action], None]:
        def play_timed(action: Action) -> None:
            self._before()
            start_s = self._clock()
            play(action)
            self.seconds.setdefault((action.op, action.stage), []).append(self._clock() - start_s)

        return play_timed

    def total_s(self, op: Op) -> float:
        """Sum over the stages of their medians."""
        return sum(median(times) for (one, _), times in self.seconds.items() if one is op)
