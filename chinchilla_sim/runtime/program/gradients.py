"""Gradients of one rank's stages from the last backward pass to the update: buckets, weights shared by stages, optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.planner.action import CATEGORY, Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.exchange import BucketExchange
from chinchilla_sim.runtime.exchanges.groups import Groups, Seat
from chinchilla_sim.runtime.exchanges.sharding import ShardExchange
from chinchilla_sim.runtime.program.updates import StageUpdate
from chinchilla_sim.runtime.record.recorder import CollectiveKey, Recorder
from chinchilla_sim.runtime.stage.stages import Stage

FIRST, SECOND = "gradients", "second round of gradients"
"""Names of the collectives of a bucket in records."""

Exchange = BucketExchange | ShardExchange


class StageGradients:
    """Exchange and update of one stage's weights."""

    def __init__(self, plan: Plan, stage: Stage, seat: Seat, groups: Groups, recorder: Recorder, update: StageUpdate) -> None:
        self.number, self.recorder, self.update = stage.number, recorder, update
        self.parameters = stage.parameters()
        self.buckets = _exchanges(plan, stage, seat, groups, update)
        self.split = len(self.buckets) > 1 and plan.buckets_leave_early
        self.late, self.pending = plan.gradient_delay > 0, False
        """Whether gradients are sent in the step behind their own; whether some are packed for the next one."""
        self._of_this_step: list[Tensor | None] = []
        self._under_way: list[int] = []

    @property
    def buffers(self) -> list[Tensor]:
        """What its exchanges keep from step to step."""
        return [tensor for exchange in self.buckets for tensor in exchange.buffers]

    def begin_step(self) -> None:
        """Be ready for what the other replicas will send."""
        if self.pending or not self.late:
            for exchange in self.buckets:
                exchange.begin()

    def leave(self, bucket: int) -> None:
        """Pack and send a bucket whose gradients are complete, while the backward pass goes on."""
        if self.buckets[bucket].parameters:
            self._encode(bucket)
            self._issue(bucket)

    def encode(self) -> None:
        """Pack all gradients (behind local steps differences of weights), unless they have left in buckets."""
        if not self.split and self.parameters:
            start_s = monotonic()
            if self.update.agreement:
                self.update.agreement.differ()
            self._encode(*range(len(self.buckets)), start_s=start_s)
        if self.late:
            self.pending = True
            for parameter in self.parameters:
                parameter.grad = None

    def reduce(self) -> None:
        """Send them, unless they have left; late ones are those that the step before has packed, if there was one."""
        if not self.split and (self.pending or not self.late):
            for bucket, exchange in enumerate(self.buckets):
                if exchange.parameters:
                    self._issue(bucket)

    def _encode(self, *buckets: int, start_s: float | None = None) -> None:
        start_s = monotonic() if start_s is None else start_s
        for bucket in buckets:
            self.buckets[bucket].encode()
        self.recorder.compute(str(Action(self.number, Op.ENCODE_GRAD)), CATEGORY[Op.ENCODE_GRAD], start_s)

    def _issue(self, bucket: int) -> None:
        self._join(FIRST, bucket)
        self.buckets[bucket].issue()
        self._under_way.append(bucket)

    def _join(self, name: str, bucket: int) -> None:
        label, sent = str(Action(self.number, Op.REDUCE_GRAD)), self.buckets[bucket].round_wire_bytes
        self.recorder.join((name, self.number, bucket, 0), label, sent[name == SECOND])

    def wait(self) -> None:
        """Wait for what is under way."""
        for bucket in self._under_way:
            self._wait(FIRST, bucket)

    def _wait(self, name: str, bucket: int) -> None:
        since_s = monotonic()
        self.buckets[bucket].wait()
        self.recorder.joined((name, self.number, bucket, 0), since_s)

    def finish(self) -> None:
        """Let every parameter's gradient be the sum over the replicas."""
        self._set_aside()
        for bucket in self._under_way:
            self.buckets[bucket].finish()
        self._under_way = []

    def _set_aside(self) -> None:
        """Where late gradients take the parameters' place, keep those of this step until they have been applied."""
        if self.late and not self._of_this_step:
            self._of_this_step = [parameter.grad for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None

    def decode(self) -> None:
        """Wait, unpack, and add up."""
        self._set_aside()
        if any(self.buckets[bucket].twice for bucket in self._under_way):
            self._decode_twice()
            return
        self.wait()
        start_s = monotonic()
        self.finish()
        self._record_decoding(start_s)

    def _decode_twice(self) -> None:
        """Of every bucket unpack the first round and issue the second, then unpack the results, as the simulation does."""
        under_way, self._under_way = self._under_way, []
        for bucket in under_way:
            self._wait(FIRST, bucket)
            start_s = monotonic()
            self.buckets[bucket].advance()
            self._record_decoding(start_s)
            if self.buckets[bucket].twice:
                self._join(SECOND, bucket)
        for bucket in under_way:
            if self.buckets[bucket].twice:
                self._wait(SECOND, bucket)
            start_s = monotonic()
            self.buckets[bucket].finish()
            self._record_decoding(start_s)

    def _record_decoding(self, start_s: float) -> None:
        self.recorder.compute(str(Action(self.number, Op.DECODE_GRAD)), CATEGORY[Op.DECODE_GRAD], start_s)

    def optimize(self) -> None:
        """One step of the optimizer."""
        self.update.collect()
        self.update.apply()
        if self._of_this_step:
            for parameter, gradient in zip(self.parameters, self._of_this_step, strict=True):
                parameter.grad = gradient
            self._of_this_step = []

    def agree(self) -> None:
        """Let all replicas go on from the same weights."""
        if self.update.agreement and self.parameters:
            self.update.agreement.agree()

    def gather(self) -> None:
        """Send the updated weights to the other replicas."""
        if self.update.gather:
            self.recorder.join(self._gather_key, str(Action(self.number, Op.UNSHARD)), self.update.gather.wire_bytes)
            self.update.gather.issue()

    def state(self) -> dict[str, Tensor]:
        """What this replica alone needs for the next steps: packed gradients that are late, or the state of its own optimizer."""
        found: dict[str, Tensor] = {}
        if self.late:
            exchanges = [exchange for exchange in self.buckets if isinstance(exchange, BucketExchange) and exchange.parameters]
            found |= {f"late.{number}": exchange.payload for number, exchange in enumerate(exchanges)}
        if self.update.agreement and self.update.optimizer:
            found |= {f"moment.{index}": moment for index, moment in enumerate(self.update.agreement.moments)}
            for index, master in enumerate(self.update.masters):
                kept = self.update.optimizer.state.get(master, {})
                found |= {f"optimizer.{index}.{key}": value for key, value in kept.items() if isinstance(value, Tensor)}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave between two steps of the same plan."""
        own = self.state()
        for key, tensor in state.items():
            own[key].copy_(tensor)
        self.pending = self.late and bool(state)

    def end_step(self) -> None:
        """Wait until all weights are here."""
        if self.update.gather and self.update.gather.wait():
            self.recorder.joined(self._gather_key)
            self.update.gather.finish()

    @property
    def _gather_key(self) -> CollectiveKey:
        return "weights", self.number, 0, 0


def _exchanges(plan: Plan, stage: Stage, seat: Seat, groups: Groups, update: StageUpdate) -> list[Exchange]:
    """One for each bucket; none where there are no replicas, or FSDP2 does it within the passes."""
    ranks = plan.placement[stage.number]
    if not plan.training or len(ranks) == 1 or plan.zero_stage == 3:
        return []
    codec, group, found = plan.gradient_codecs[stage.number], groups.among[tuple(ranks)], list[Exchange]()
    apart = stage.divider.undivided(stage.paths()) if stage.divider else []
    for bucket in range(stage.bucket_count):
        parameters, tag = stage.parameters(bucket), stage.number * plan.gradient_buckets + bucket
        if plan.zero_stage:
            masters = [update.master_of(parameter) for parameter in parameters]
            found.append(ShardExchange(codec, parameters, masters, group, len(ranks), ranks.index(seat.rank), tag, apart))
        else:
            found.append(BucketExchange(codec, parameters, group, len(ranks), tag, apart))
    return found


class SharedWeights:
    """One set of weights that several stages train: their gradients are summed over all of them."""

    def __init__(
        self, plan: Plan, number: int, copies: Sequence[Sequence[nn.Parameter]], dtype: torch.dtype, seat: Seat, groups: Groups
    ) -> None:
        """`copies[i]` are the masters of the i-th of this rank's stages that use them, in the same order; sums travel in `dtype`."""
        self.number, self.copies, self.dtype, self.replica = number, copies, dtype, seat.replica
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
        self._sum = torch.cat([gradient.reshape(-1) for gradient in total]).to(self.dtype)

    def reduce(self, recorder: Recorder, label: str) -> None:
        """Issue the sum over all ranks that hold them."""
        self.add_up()
        recorder.join(self.key, label, sent_bytes("all_reduce", self._sum.numel() * self._sum.element_size(), self.group_size))
        self._work = dist.all_reduce(self._sum, group=self.group, async_op=True)

    def finish(self, recorder: Recorder) -> None:
        """Wait for the sum, and give it to every stage."""
        if self._work is not None:
            since_s = monotonic()
            self._work.wait()
            recorder.joined(self.key, since_s)
            self._work = None
        else:
            self.add_up()
        for parameters in self.copies:
            start = 0
            # Copies of one rank are scaled apart where gradients are clipped.
            total = self._sum if len(self.copies) == 1 else self._sum.clone()
            for parameter in parameters:
                parameter.grad = total[start : start + parameter.numel()].view_as(parameter).to(parameter.dtype)
                start += parameter.numel()
        self.open = False
