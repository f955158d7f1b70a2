"""Clipping: the 2-norm of all gradients of the model, over stages, shards, lanes and weights that stages share, each counted once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.groups import Groups, Seat
from chinchilla_sim.runtime.program.updates import StageUpdate
from chinchilla_sim.runtime.record.recorder import CollectiveKey, Recorder
from chinchilla_sim.runtime.stage.stages import Stage

SMALLEST_NORM = 1e-6
"""As torch.nn.utils.clip_grad_norm_ has it."""


class GradientNorm:
    """The norm of one step's gradients; `limit` is the largest that is left alone."""

    def __init__(
        self, plan: Plan, seat: Seat, stages: Mapping[int, Stage], updates: Mapping[int, StageUpdate], groups: Groups, limit: float
    ) -> None:
        self.limit, self.updates = limit, updates
        ranks = plan.norm_ranks(seat.replica)
        self.group, self.group_size = groups.norm, len(ranks) * plan.group_width
        self.key: CollectiveKey = ("norm", 0, 0, ranks[0])
        # Every stage that shares a weight has its whole gradient by now: the first one counts it.
        twice = {
            id(one)
            for stage in stages.values()
            for number, row in stage.shared.items()
            if stage.number > plan.shared_stages[number][0]
            for one in row
        }
        # Of whole gradients every replica in the sum has the same ones.
        whole = plan.free_replicas and not plan.zero_stage
        self.share = {number: 1.0 / len(plan.placement[number]) if whole else 1.0 for number in updates}
        self.counted = {number: _by_share(stages[number], update, twice, plan.group_width) for number, update in updates.items()}
        self._squares = torch.zeros(1)
        self._work: Any = None

    def begin_step(self) -> None:
        """Start from nothing."""
        self._squares = torch.zeros_like(self._squares)

    def add(self, stage: int) -> None:
        """Add up the squares of a stage's gradients."""
        for share, masters in self.counted[stage].items():
            gradients = [master.grad for master in masters if master.grad is not None and master.numel()]
            if gradients:
                norms = torch._foreach_norm(gradients)
                self._squares = self._squares.to(norms[0].device) + share * self.share[stage] * torch.stack(norms).square().sum()

    def reduce(self, recorder: Recorder, label: str) -> None:
        """Issue the sum over all ranks that hold some."""
        recorder.join(self.key, label, sent_bytes("all_reduce", self._squares.element_size(), self.group_size))
        self._work = dist.all_reduce(self._squares, group=self.group, async_op=True)

    def wait(self, recorder: Recorder) -> None:
        """Wait for it."""
        if self._work is not None:
            self._work.wait()
            recorder.joined(self.key)
            self._work = None

    def scale(self, stage: int) -> None:
        """Scale a stage's gradients, so that the norm of all is at most the limit."""
        factor = (self.limit / (self._squares.sqrt() + SMALLEST_NORM)).clamp(max=1.0)
        for gradient in _gradients(self.updates[stage]):
            gradient.mul_(factor)


def _by_share(stage: Stage, update: StageUpdate, twice: Collection[int], lanes: int) -> dict[float, list[nn.Parameter]]:
    """The masters of a stage but those counted elsewhere; of a weight that is not divided every lane counts its share."""
    whole = set(map(id, stage.divider.undivided(stage.paths()))) if stage.divider else set[int]()
    found: dict[float, list[nn.Parameter]] = {}
    for one, master in zip(update.parameters, update.masters, strict=True):
        if id(one) not in twice:
            found.setdefault(1.0 / lanes if id(one) in whole else 1.0, []).append(master)
    return found


def _gradients(update: StageUpdate) -> Iterable[Tensor]:
    return (master.grad for master in update.masters if master.grad is not None)
