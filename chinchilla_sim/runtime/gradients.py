"""Gradients of one rank's stages from the last backward pass to the update: buckets, weights shared by stages, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.planner.action import CATEGORY, Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchange import BucketExchange
from chinchilla_sim.runtime.groups import Groups, Seat
from chinchilla_sim.runtime.recorder import Recorder
from chinchilla_sim.runtime.stages import Stage

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


class StageGradients:
    """Exchange and update of one stage's weights."""

    def __init__(self, plan: Plan, stage: Stage, groups: Groups, recorder: Recorder, optimizer: torch.optim.Optimizer | None) -> None:
        self.number, self.recorder, self.optimizer = stage.number, recorder, optimizer
        self.parameters = stage.parameters()
        ranks = plan.placement[stage.number]
        self.buckets: list[BucketExchange] = []
        if plan.training and len(ranks) > 1:
            codec, group = plan.gradient_codecs[stage.number], groups.among[tuple(ranks)]
            self.buckets = [BucketExchange(codec, stage.parameters(bucket), group, len(ranks)) for bucket in range(stage.bucket_count)]
        self.split = len(self.buckets) > 1
        self._under_way: list[int] = []

    def leave(self, bucket: int) -> None:
        """Pack and send a bucket whose gradients are complete, while the backward pass goes on."""
        if self.buckets[bucket].parameters:
            self._encode(bucket)
            self._issue(bucket)

    def encode(self) -> None:
        """Pack all gradients, unless they have left in buckets."""
        if not self.split and self.parameters:
            self._encode(0)

    def reduce(self) -> None:
        """Send them, unless they have left."""
        if not self.split and self.parameters:
            self._issue(0)

    def _encode(self, bucket: int) -> None:
        start_s = monotonic()
        self.buckets[bucket].encode()
        self.recorder.compute(str(Action(self.number, Op.ENCODE_GRAD)), CATEGORY[Op.ENCODE_GRAD], start_s)

    def _issue(self, bucket: int) -> None:
        exchange = self.buckets[bucket]
        self.recorder.join(("gradients", self.number, bucket, 0), str(Action(self.number, Op.REDUCE_GRAD)), exchange.wire_bytes)
        exchange.issue()
        self._under_way.append(bucket)

    def wait(self) -> None:
        """Wait for what is under way."""
        for bucket in self._under_way:
            self.buckets[bucket].wait()
            self.recorder.joined(("gradients", self.number, bucket, 0))

    def finish(self) -> None:
        """Let every parameter's gradient be the sum over the replicas."""
        for bucket in self._under_way:
            self.buckets[bucket].finish()
        self._under_way = []

    def decode(self) -> None:
        """Wait, unpack, and add up."""
        self.wait()
        start_s = monotonic()
        self.finish()
        self.recorder.compute(str(Action(self.number, Op.DECODE_GRAD)), CATEGORY[Op.DECODE_GRAD], start_s)

    def update(self) -> None:
        """One step of the optimizer."""
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None


class SharedWeights:
    """One set of weights that several stages train: their gradients are summed over all of them."""

    def __init__(self, plan: Plan, number: int, copies: Sequence[Sequence[nn.Parameter]], seat: Seat, groups: Groups) -> None:
        """`copies[i]` are the parameters of the i-th of this rank's stages that use them, in the same order."""
        self.number, self.copies, self.replica = number, copies, seat.replica
        ranks = plan.sharing_ranks(number, 0 if plan.free_replicas else seat.replica)
        self.group, self.group_size = groups.among.get(ranks), len(ranks)
        self.key = ("shared", number, 0, 0 if plan.free_replicas else seat.replica)
        # A stage's gradients are sums over its replicas by now, and every one of them takes part with its share.
        self.share = [
            1.0 / len(plan.placement[stage]) if plan.free_replicas else 1.0 for stage in plan.shared_stages[number] if stage in seat.stages
        ]
        self.open = False
        self._sum = torch.zeros(0)
        self._work: Any = None

    def add_up(self) -> None:
        """The sum over this rank's own stages."""
        total: list[Tensor] = []
        for share, parameters in zip(self.share, self.copies, strict=True):
            gradients = [torch.zeros_like(one) if one.grad is None else one.grad * share for one in parameters]
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else gradients
        self._sum = torch.cat([gradient.reshape(-1) for gradient in total])

    def reduce(self, recorder: Recorder, label: str) -> None:
        """Issue the sum over all ranks that hold them."""
        self.add_up()
        recorder.join(self.key, label, sent_bytes("all_reduce", self._sum.numel() * self._sum.element_size(), self.group_size))
        self._work = dist.all_reduce(self._sum, group=self.group, async_op=True)

    def finish(self, recorder: Recorder) -> None:
        """Wait for the sum, and give it to every stage."""
        if self._work is not None:
            self._work.wait()
            recorder.joined(self.key)
            self._work = None
        else:
            self.add_up()
        for parameters in self.copies:
            start = 0
            for parameter in parameters:
                parameter.grad = self._sum[start : start + parameter.numel()].view_as(parameter)
                start += parameter.numel()
        self.open = False
