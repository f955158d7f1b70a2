"""The thin interpreter: plays one rank's actions in order over torch.distributed's public calls.

Receives are posted where the program says (early), sends and collectives are issued in one order per rank and run
beside the computation; an action waits only for what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.planner.action import CATEGORY, Action, Op, message_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.codecs import MessageCodec, TensorSpec, decode, encode
from chinchilla_sim.runtime.recorder import MessageKey, Recorder
from chinchilla_sim.runtime.stages import Stage, stage_parameters


@dataclass(slots=True)
class Groups:
    """Process groups of a rank: its stage's replicas, and one for each direction of messages (None: the default)."""

    replicas: Any = None
    forward: Any = None
    backward: Any = None


@dataclass(slots=True)
class _Step:
    """What is alive during one step."""

    inputs: Sequence[tuple[Tensor, ...]]
    targets: Sequence[Any]
    pending: dict[MessageKey, tuple[Any, Tensor]] = field(default_factory=dict)
    arrived: dict[MessageKey, list[Tensor]] = field(default_factory=dict)
    packed: dict[MessageKey, Tensor] = field(default_factory=dict)
    stage_inputs: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    stage_outputs: dict[int, Any] = field(default_factory=dict)
    input_gradients: dict[int, list[Tensor]] = field(default_factory=dict)
    sends: list[tuple[Any, Tensor]] = field(default_factory=list)
    loss: float = 0.0
    bucket: Tensor | None = None
    gathered: list[Tensor] = field(default_factory=list)
    collective: Any = None


class Interpreter:
    """One rank of a program."""

    def __init__(
        self,
        plan: Plan,
        actions: Sequence[Action],
        rank: int,
        stage: Stage,
        loss: Callable[[Any, Any], Tensor],
        optimizer: torch.optim.Optimizer | None,
        groups: Groups,
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self.plan, self.actions, self.rank, self.stage = plan, actions, rank, stage
        (self.position,), self.replica = plan.position[rank]
        self.loss, self.optimizer, self.groups, self.recorder, self.device = loss, optimizer, groups, recorder, device
        self.last = self.position == plan.stage_count - 1
        self.parameters = stage_parameters(stage)
        self.codecs = self._message_codecs()
        self._step = _Step([], [])
        self._play: dict[Op, Callable[[Action], None]] = {
            Op.F: self._forward,
            Op.B: self._backward,
            Op.SEND_F: self._send,
            Op.SEND_B: self._send,
            Op.RECV_F: self._post,
            Op.RECV_B: self._post,
            Op.ENCODE_F: self._encode_message,
            Op.ENCODE_B: self._encode_message,
            Op.DECODE_F: self._decode_message,
            Op.DECODE_B: self._decode_message,
            Op.ENCODE_GRAD: self._encode_gradients,
            Op.REDUCE_GRAD: self._reduce_gradients,
            Op.DECODE_GRAD: self._decode_gradients,
            Op.OPTIM: self._optimize,
        }

    def _message_codecs(self) -> dict[tuple[str, int], MessageCodec]:
        """(direction, boundary) -> how its tensors are packed; a gradient has its tensor's shape."""
        codecs = {}
        sides = (
            (self.position - 1, self.stage.input_specs, self.stage.input_needs_gradient),
            (self.position, self.stage.output_specs, self.stage.output_needs_gradient),
        )
        for boundary, specs, needs in sides:
            if 0 <= boundary < self.plan.stage_count - 1:
                kind = self.plan.activation_codecs[boundary]
                codecs["F", boundary] = MessageCodec(kind, specs)
                gradients = [TensorSpec(spec.shape, spec.dtype) for spec, needed in zip(specs, needs, strict=True) if needed]
                codecs["B", boundary] = MessageCodec(kind, gradients)
        return codecs

    def step(self, inputs: Sequence[tuple[Tensor, ...]], targets: Sequence[Any]) -> float:
        """Play one step on this replica's microbatches; returns this rank's share of the global mean loss."""
        self._step = step = _Step(inputs, targets)
        self.recorder.begin_step()
        for action in self.actions:
            self._play[action.op](action)
        for work, _ in step.sends:
            work.wait()
        self.recorder.end_step()
        return step.loss

    def _key(self, action: Action) -> MessageKey:
        direction, boundary, microbatch = message_of(action)
        return direction, boundary, microbatch, self.replica

    def _group(self, direction: str) -> Any:
        return self.groups.forward if direction == "F" else self.groups.backward

    def _tag(self, key: MessageKey) -> int:
        direction, boundary, microbatch, _ = key
        return 2 * (boundary * self.plan.microbatch_count + microbatch) + (direction == "B")

    def _record(self, action: Action, start_s: float) -> None:
        self.recorder.compute(str(action), CATEGORY[action.op], start_s)

    # Messages

    def _post(self, action: Action) -> None:
        key = self._key(action)
        buffer = self.codecs[key[:2]].empty(self.device)
        source = self.plan.rank_of(self.position + (-1 if action.op is Op.RECV_F else 1), self.replica)
        self.recorder.post(key, str(action))
        work = dist.irecv(buffer, src=source, group=self._group(key[0]), tag=self._tag(key))
        self._step.pending[key] = (work, buffer)

    def _send(self, action: Action) -> None:
        key = self._key(action)
        message = self._step.packed.pop(key) if key in self._step.packed else self._pack(action, key)
        target = self.plan.rank_of(self.position + (1 if action.op is Op.SEND_F else -1), self.replica)
        self.recorder.send(key, str(action), message.numel())
        work = dist.isend(message, dst=target, group=self._group(key[0]), tag=self._tag(key))
        self._step.sends.append((work, message))

    def _pack(self, action: Action, key: MessageKey) -> Tensor:
        microbatch = key[2]
        forward = key[0] == "F"
        tensors = self._step.stage_outputs[microbatch] if forward else self._step.input_gradients.pop(microbatch)
        return self.codecs[key[:2]].encode(tensors)

    def _encode_message(self, action: Action) -> None:
        start_s = monotonic()
        key = ("F", self.position, action.microbatch or 0, self.replica)
        if action.op is Op.ENCODE_B:
            key = ("B", self.position - 1, action.microbatch or 0, self.replica)
        self._step.packed[key] = self._pack(action, key)
        self._record(action, start_s)

    def _incoming_key(self, direction: str, microbatch: int) -> MessageKey:
        return direction, self.position - 1 if direction == "F" else self.position, microbatch, self.replica

    def _wait(self, key: MessageKey) -> Tensor:
        work, buffer = self._step.pending.pop(key)
        since_s = monotonic()
        work.wait()
        self.recorder.received(key, since_s)
        return buffer

    def _decode_message(self, action: Action) -> None:
        key = self._incoming_key("F" if action.op is Op.DECODE_F else "B", action.microbatch or 0)
        buffer = self._wait(key)
        start_s = monotonic()
        self._step.arrived[key] = self.codecs[key[:2]].decode(buffer)
        self._record(action, start_s)

    def _incoming(self, direction: str, microbatch: int) -> list[Tensor]:
        """Tensors of a message, decoded already or waited for now."""
        key = self._incoming_key(direction, microbatch)
        if key in self._step.arrived:
            return self._step.arrived.pop(key)
        return self.codecs[key[:2]].decode(self._wait(key))

    # Computation

    def _forward(self, action: Action) -> None:
        microbatch = action.microbatch or 0
        step = self._step
        inputs = tuple(self._incoming("F", microbatch)) if self.position else step.inputs[microbatch]
        start_s = monotonic()
        if self.plan.training:
            for tensor, needed in zip(inputs, self.stage.input_needs_gradient, strict=True):
                tensor.requires_grad_(needed)
            self._forward_training(microbatch, inputs)
        else:
            with torch.no_grad():
                step.stage_outputs[microbatch] = self.stage.module(*inputs)
        self._record(action, start_s)

    def _forward_training(self, microbatch: int, inputs: tuple[Tensor, ...]) -> None:
        step = self._step
        outputs = self.stage.module(*inputs)
        if self.last:
            # The mean over the global batch is the mean of the means of equal microbatches.
            share = self.plan.microbatch_count * self.plan.data_parallel_degree
            outputs = self.loss(self.stage.restore(outputs), step.targets[microbatch]) / share
            step.loss += float(outputs.detach())
        step.stage_inputs[microbatch], step.stage_outputs[microbatch] = inputs, outputs

    def _backward(self, action: Action) -> None:
        microbatch = action.microbatch or 0
        step = self._step
        gradients = None if self.last else self._incoming("B", microbatch)
        start_s = monotonic()
        outputs, inputs = step.stage_outputs.pop(microbatch), step.stage_inputs.pop(microbatch)
        if gradients is None:
            outputs.backward()
        else:
            needing = [tensor for tensor, needed in zip(outputs, self.stage.output_needs_gradient, strict=True) if needed]
            torch.autograd.backward(needing, gradients)
        if self.position:
            needing = [tensor for tensor, needed in zip(inputs, self.stage.input_needs_gradient, strict=True) if needed]
            step.input_gradients[microbatch] = [torch.zeros_like(t) if t.grad is None else t.grad for t in needing]
        self._record(action, start_s)

    # Gradients and update

    def _encode_gradients(self, action: Action) -> None:
        start_s = monotonic()
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in self.parameters]) if self.parameters else torch.zeros(0)
        self._step.bucket = encode(self._gradient_codec, flat)
        self._record(action, start_s)

    @property
    def _gradient_codec(self) -> str:
        return self.plan.gradient_codecs[self.position]

    def _reduce_gradients(self, action: Action) -> None:
        bucket = self._step.bucket
        assert bucket is not None
        summable = CODECS[self._gradient_codec].summable
        size = bucket.numel() * bucket.element_size()
        kind = "all_reduce" if summable else "all_gather"
        self.recorder.join(self.position, str(action), sent_bytes(kind, size, self.plan.data_parallel_degree))
        if not bucket.numel():
            return
        if summable:
            self._step.collective = dist.all_reduce(bucket, group=self.groups.replicas, async_op=True)
        else:
            self._step.gathered = [torch.empty_like(bucket) for _ in range(self.plan.data_parallel_degree)]
            self._step.collective = dist.all_gather(self._step.gathered, bucket, group=self.groups.replicas, async_op=True)

    def _wait_for_collective(self) -> None:
        if self._step.bucket is None:
            return
        since_s = monotonic()
        if self._step.collective is not None:
            self._step.collective.wait()
            self._step.collective = None
        self.recorder.joined(self.position, since_s)

    def _decode_gradients(self, action: Action) -> None:
        self._wait_for_collective()
        start_s = monotonic()
        count = sum(parameter.numel() for parameter in self.parameters)
        bucket = self._step.bucket
        assert bucket is not None
        payloads = self._step.gathered or [bucket]
        total = decode(self._gradient_codec, payloads[0], count)
        for payload in payloads[1:]:
            total = total.add_(decode(self._gradient_codec, payload, count))
        self._assign(total)
        self._step.bucket = None
        self._record(action, start_s)

    def _assign(self, flat: Tensor) -> None:
        """Let every parameter's gradient be its part of the reduced bucket."""
        start = 0
        for parameter in self.parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def _optimize(self, action: Action) -> None:
        if self._step.bucket is not None:
            self._wait_for_collective()
            self._assign(self._step.bucket)
        start_s = monotonic()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._record(action, start_s)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
