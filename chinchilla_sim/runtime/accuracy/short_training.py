"""A model in training in one process, with one change: what real ranks would do, replica by replica.

The replicas are virtual: each passes its share of every batch through the same stages, and `virtual_steps.py` makes steps of what they
find. For codecs of activations the model is cut in two in its middle, and what crosses goes through the message codec of a boundary, both
ways. Stages, passes, codecs, optimizers and data are those of real runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.compress import AS_IT_IS as PLAIN
from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.accuracy.virtual_replicas import VirtualExchange
from chinchilla_sim.runtime.accuracy.virtual_steps import virtual_steps
from chinchilla_sim.runtime.exchanges.codecs import MessageCodec
from chinchilla_sim.runtime.rank.optimizers import set_learning_rate
from chinchilla_sim.runtime.stage.batches import Shares
from chinchilla_sim.runtime.stage.dtypes import run_dtype
from chinchilla_sim.runtime.stage.passes import Passes
from chinchilla_sim.runtime.stage.stages import Stage, cut_stages, own_parameters
from chinchilla_sim.runtime.variant.sparsity import Masks
from chinchilla_sim.scenario.job import JobSpec

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Change:
    """One change by its name in the accuracy table; the fields that differ from those of the job as it is."""

    name: str
    gradients: str = "none"
    activations: str = "none"
    variant: Variant = PLAIN
    local_steps: int = 1
    gradient_delay: int = 0


def whole_plan(plan: Plan, spec: JobSpec, replicas: int, change: Change) -> Plan:
    """One replica's plan as that of all of them, with a change; RunError where the runtime does not play a change."""
    placement = tuple(tuple(row[0] + replica * plan.stage_count for replica in range(replicas)) for row in plan.placement)
    whole = replace(
        plan,
        placement=placement,
        slots=tuple(range(replicas * plan.stage_count)),
        global_batch_size=spec.global_batch_size,
        gradient_codecs=(change.gradients,) * plan.stage_count,
        activation_codecs=(change.activations,) * (plan.stage_count - 1),
        clips_gradients=spec.clip_gradient_norm is not None,
        local_steps=change.local_steps,
        gradient_delay=change.gradient_delay,
    )
    if whole.asynchronous and replicas == 1:
        raise RunError("one replica has nobody to exchange with: write --replicas 2")
    if words := unplayable(whole):
        raise RunError(f"the runtime does not play {' or '.join(words)}")
    return whole


class ShortTraining:
    """One model in training with virtual replicas, and one change."""

    def __init__(self, job: TrainingJob, spec: JobSpec, total_steps: int, plan: Plan, model: nn.Module, variant: Variant = PLAIN) -> None:
        """`plan` is that of all replicas, with what is changed; the learning rate falls over `total_steps`."""
        self.job, self.spec, self.total_steps, self.plan, self.model, self.variant = job, spec, total_steps, plan, model, variant
        self.replicas = plan.data_parallel_degree
        self.averaged = 1 if plan.local_steps > 1 else self.replicas
        """Replicas whose mean loss is minimized together."""
        self.stages = cut_stages(job, model, plan, range(plan.stage_count), CPU, variant=variant)
        self.passes = [Passes(stage, None) for stage in self.stages]
        self.owned = [parameter for row in own_parameters(self.stages) for parameter in row]
        self._owner = {parameter.data_ptr(): parameter for parameter in self.owned}
        self.exchange = VirtualExchange(plan.gradient_codecs[0], self.owned, self.replicas)
        self.steps = virtual_steps(plan, spec, self.exchange)
        self.masks = Masks(self.owned, variant.sparsity, total_steps) if variant.sparsity else None
        self.boundary = Boundary(self.stages[0], plan.activation_codecs[0]) if len(self.stages) > 1 else None
        self.shares = [Shares(plan, replica, CPU, run_dtype(spec.precision)) for replica in range(self.replicas)]

    @property
    def sent_bytes(self) -> float:
        """What one rank sends in a mean step of what the change is about."""
        return self.boundary.wire_bytes if self.boundary else self.exchange.wire_bytes / self.plan.local_steps

    @property
    def plain_bytes(self) -> float:
        """The same as it is."""
        if self.boundary:
            return Boundary(self.stages[0], "none").wire_bytes
        return VirtualExchange("none", list(self.model.parameters()), self.replicas).wire_bytes

    def step(self, inputs: Any, targets: Any, done: int) -> float:
        """One optimizer step on a global batch, after so many others; returns its mean loss."""
        for optimizer in self.steps.optimizers:
            set_learning_rate(optimizer, self.spec, done, self.total_steps)
        self.model.train()
        loss, kept = 0.0, list[Tensor]()
        for replica, shares in enumerate(self.shares):
            self.steps.enter(replica)
            loss += self._pass(shares.inputs(inputs)[0], shares.targets(targets)[0])
            self.steps.leave(replica)
            # Statistics of a batch norm are each replica's own; the first one's are kept.
            kept = kept or [buffer.clone() for buffer in self.model.buffers()]
        for buffer, own in zip(self.model.buffers(), kept, strict=False):
            buffer.copy_(own)
        self.steps.end(done)
        if self.masks:
            self.masks.after_step(done + 1)
        return loss

    def settle(self) -> None:
        """Let the model's weights be what a run would end with: the mean, where replicas have their own."""
        self.steps.settle()

    def _pass(self, inputs: tuple[Tensor, ...], targets: Any) -> float:
        """Forward and backward of one replica's share."""
        last = self.stages[-1]
        loss = lambda outputs: self.job.loss(last.restore(outputs), targets) / self.averaged  # noqa: E731
        tensors = inputs
        if self.boundary:
            tensors = self.boundary.forward(self.passes[0].forward(0, inputs, None))
        value = float(self.passes[-1].forward(0, tensors, loss)[0].detach()) * (self.averaged / self.replicas)
        gradients = self.passes[-1].backward(0, None, _stay)
        if self.boundary:
            self.passes[0].backward(0, self.boundary.backward(gradients), _stay)
        self._add_twins()
        return value

    def _add_twins(self) -> None:
        """A weight that both stages use has one gradient."""
        for parameter in (one for stage in self.stages for one in stage.parameters()):
            owner = self._owner[parameter.data_ptr()]
            if parameter is not owner and parameter.grad is not None:
                owner.grad = parameter.grad if owner.grad is None else owner.grad + parameter.grad
                parameter.grad = None


class Boundary:
    """What crosses between two stages, through the codec of its messages."""

    def __init__(self, below: Stage, codec: str) -> None:
        needing = [spec for spec, needed in zip(below.output_specs, below.output_needs_gradient, strict=True) if needed]
        self._forward, self._backward = MessageCodec(codec, below.output_specs), MessageCodec(codec, needing)

    @property
    def wire_bytes(self) -> float:
        """Of one message there and one back."""
        return float(self._forward.wire_bytes + self._backward.wire_bytes)

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Activations as the upper stage gets them."""
        return tuple(self._forward.decode(self._forward.encode(tensors)))

    def backward(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Their gradients as the lower stage gets them."""
        return self._backward.decode(self._backward.encode(gradients))


def _stay(_: int) -> None:
    """Gradients leave behind the whole pass."""
