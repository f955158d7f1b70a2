"""Messages between stages: receives posted early, sends issued in order, codecs of the boundary; hand-overs within a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chinchilla_sim.planner.action import CATEGORY, Action, Op, message_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.codecs import MessageCodec
from chinchilla_sim.runtime.exchanges.groups import Groups, Seat, process_of
from chinchilla_sim.runtime.record.recorder import MessageKey, Recorder
from chinchilla_sim.runtime.stage.lanes import LaneShares
from chinchilla_sim.runtime.stage.stages import Stage


@dataclass(slots=True)
class _UnderWay:
    """What is on its way during one step."""

    pending: dict[MessageKey, tuple[Any, Tensor]] = field(default_factory=dict)
    arrived: dict[MessageKey, list[Tensor]] = field(default_factory=dict)
    packed: dict[MessageKey, Tensor] = field(default_factory=dict)
    leaving: dict[MessageKey, Sequence[Tensor]] = field(default_factory=dict)
    sends: dict[MessageKey, tuple[Any, Tensor]] = field(default_factory=dict)


class Messages:
    """All messages of one rank."""

    def __init__(
        self, plan: Plan, seat: Seat, stages: Mapping[int, Stage], groups: Groups, recorder: Recorder, device: torch.device
    ) -> None:
        self.plan, self.seat, self.groups, self.recorder, self.device = plan, seat, groups, recorder, device
        self.shares = self._shares(stages)
        self.codecs = {key: MessageCodec(plan.activation_codecs[key[1]], shares.specs) for key, shares in self.shares.items()}
        self._now = _UnderWay()

    def _shares(self, stages: Mapping[int, Stage]) -> dict[tuple[str, int], LaneShares]:
        """(direction, boundary) -> what this process sends of its tensors; a gradient has its tensor's shape."""
        found = {}
        for number, stage in stages.items():
            sides = (
                (number - 1, stage.input_specs, stage.input_needs_gradient, stage.input_divided),
                (number, stage.output_specs, stage.output_needs_gradient, stage.output_divided),
            )
            lanes = stage.divider.lanes if stage.divider else None
            for boundary, specs, needs, divided in sides:
                if 0 <= boundary < self.plan.stage_count - 1:
                    found["F", boundary] = LaneShares(specs, divided, lanes)
                    gradients = [(spec, own) for spec, needed, own in zip(specs, needs, divided, strict=True) if needed]
                    found["B", boundary] = LaneShares([spec for spec, _ in gradients], [own for _, own in gradients], lanes)
        return found

    def begin_step(self) -> None:
        """Forget the step before."""
        self._now = _UnderWay()

    def end_step(self) -> None:
        """Wait until everything has left, and free it."""
        for work, _ in self._now.sends.values():
            work.wait()
        self._now.sends.clear()

    def key(self, action: Action) -> MessageKey:
        """What a message's two ends have in common."""
        direction, boundary, microbatch = message_of(action)
        return direction, boundary, microbatch, self.plan.lane_of(self.seat.replica, microbatch)

    def _incoming(self, forward: bool, stage: int, microbatch: int) -> MessageKey:
        return self.key(Action(stage, Op.RECV_F if forward else Op.RECV_B, microbatch))

    def _outgoing(self, forward: bool, stage: int, microbatch: int) -> MessageKey:
        return self.key(Action(stage, Op.SEND_F if forward else Op.SEND_B, microbatch))

    def _peer(self, key: MessageKey, upper: bool) -> int:
        _, boundary, _, lane = key
        return process_of(self.plan, self.plan.rank_of(boundary + upper, lane), self.seat.lane)

    def _group(self, direction: str) -> Any:
        return self.groups.forward if direction == "F" else self.groups.backward

    def _tag(self, key: MessageKey) -> int:
        direction, boundary, microbatch, _ = key
        return 2 * (boundary * max(self.plan.microbatch_count, *self.plan.replica_microbatch_counts, 0) + microbatch) + (direction == "B")

    def post(self, action: Action) -> None:
        """Post a receive."""
        key = self.key(action)
        buffer = self.codecs[key[:2]].empty(self.device)
        source = self._peer(key, upper=key[0] == "B")
        self.recorder.post(key, str(action))
        self._now.pending[key] = dist.irecv(buffer, src=source, group=self._group(key[0]), tag=self._tag(key)), buffer

    def send(self, action: Action) -> None:
        """Send what the stage left, packed by now or a single tensor as it is."""
        key = self.key(action)
        message = self._now.packed.pop(key) if key in self._now.packed else self._pack(key)
        target = self._peer(key, upper=key[0] == "F")
        self.recorder.send(key, str(action), message.numel())
        self._now.sends[key] = dist.isend(message, dst=target, group=self._group(key[0]), tag=self._tag(key)), message

    def _pack(self, key: MessageKey) -> Tensor:
        return self.codecs[key[:2]].encode(self.shares[key[:2]].take(self._now.leaving.pop(key)))

    def encode(self, action: Action) -> None:
        """Pack what a stage left."""
        assert action.microbatch is not None
        start_s = monotonic()
        key = self._outgoing(action.op is Op.ENCODE_F, action.stage, action.microbatch)
        self._now.packed[key] = self._pack(key)
        self.recorder.compute(str(action), CATEGORY[action.op], start_s)

    def decode(self, action: Action) -> None:
        """Wait for a message and unpack it."""
        assert action.microbatch is not None
        key = self._incoming(action.op is Op.DECODE_F, action.stage, action.microbatch)
        buffer = self._wait(key)
        start_s = monotonic()
        self._now.arrived[key] = self.codecs[key[:2]].decode(buffer)
        self.recorder.compute(str(action), CATEGORY[action.op], start_s)

    def _wait(self, key: MessageKey) -> Tensor:
        work, buffer = self._now.pending.pop(key)
        since_s = monotonic()
        work.wait()
        self.recorder.received(key, since_s)
        self._free_answered(key)
        return buffer

    def _free_answered(self, key: MessageKey) -> None:
        """A gradient has come back for what was sent ahead, which so has arrived: gloo does not tell (`is_completed` stays false)."""
        sent = self._now.sends.pop(("F", *key[1:]), None) if key[0] == "B" else None
        if sent is not None:
            sent[0].wait()

    def leave(self, forward: bool, stage: int, microbatch: int, tensors: Sequence[Tensor]) -> None:
        """What a stage has made for the next one (or, backward, for the one before)."""
        key = self._outgoing(forward, stage, microbatch)
        if self.plan.crosses(key[1], key[3]):
            self._now.leaving[key] = tensors
        else:
            self._now.arrived[key] = list(tensors)

    def take(self, forward: bool, stage: int, microbatch: int) -> list[Tensor]:
        """What another stage left for this one: handed over, unpacked already, or waited for now."""
        key = self._incoming(forward, stage, microbatch)
        if key in self._now.arrived:
            return self._now.arrived.pop(key)
        return self.codecs[key[:2]].decode(self._wait(key))

    def join(self, forward: bool, stage: int, microbatch: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What was taken, made whole from the shares of all lanes."""
        key = self._incoming(forward, stage, microbatch)
        crossed = self.plan.crosses(key[1], key[3])
        return self.shares[key[:2]].join(tensors, key[0]) if crossed else list(tensors)
