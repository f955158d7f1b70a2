"""What virtual replicas make of their gradients: exchanges in every step, one step late, or of differences behind local steps.

Replicas share the parameters of one model, one after the other: `enter`, its pass, `leave`; then comes the `end` of the step. Updates and
agreements are those of real ranks, and so is their order (`program/gradients.py`, `program/interpreter.py`).
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.accuracy.virtual_replicas import VirtualExchange
from chinchilla_sim.runtime.exchanges.agreement import Agreement
from chinchilla_sim.runtime.program.updates import StageUpdate
from chinchilla_sim.runtime.rank.optimizers import make_optimizer
from chinchilla_sim.scenario.job import JobSpec


class VirtualSteps(Protocol):
    """What a step does with gradients, in the order in which it is called."""

    @property
    def optimizers(self) -> list[Optimizer]:
        """Whose learning rates a step sets."""

    def enter(self, replica: int) -> None:
        """Let the parameters be those of a replica."""

    def leave(self, replica: int) -> None:
        """Take the parameters' gradients as those of a replica."""

    def end(self, done: int) -> None:
        """What follows all replicas' passes, after so many steps."""

    def settle(self) -> None:
        """Let the parameters be what a run would end with."""


def virtual_steps(plan: Plan, spec: JobSpec, exchange: VirtualExchange) -> VirtualSteps:
    """The steps that a plan asks for."""
    if plan.local_steps > 1:
        return LocalSteps(plan, spec, exchange)
    return LateSteps(spec, exchange) if plan.gradient_delay else EveryStep(spec, exchange)


class EveryStep:
    """Each step applies the sum of its own gradients."""

    def __init__(self, spec: JobSpec, exchange: VirtualExchange) -> None:
        self.exchange, self.clip_norm, parameters = exchange, spec.clip_gradient_norm, exchange.parameters
        self.masters = [one if one.dtype == torch.float32 else _copy(one) for one in parameters]
        self.update = StageUpdate(parameters, self.masters, self.masters, partial(make_optimizer, spec))

    @property
    def optimizers(self) -> list[Optimizer]:
        """The one of all replicas."""
        return _optimizers([self.update])

    def enter(self, replica: int) -> None:
        """All replicas have the same weights."""

    def leave(self, replica: int) -> None:
        """Pack them, and forget them."""
        self.exchange.pack(replica)

    def end(self, done: int) -> None:
        """Exchange and update."""
        self.exchange.finish()
        self.update.collect()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        self.update.apply()

    def settle(self) -> None:
        """They are that."""


class LateSteps(EveryStep):
    """Each step applies the sum of the gradients of the step before, then packs its own; the first one applies none."""

    def __init__(self, spec: JobSpec, exchange: VirtualExchange) -> None:
        super().__init__(spec, exchange)
        self.own: list[list[Tensor | None]] = []
        self.pending = False

    def leave(self, replica: int) -> None:
        """Keep them until those before have been unpacked."""
        self.own.append([parameter.grad for parameter in self.exchange.parameters])
        for parameter in self.exchange.parameters:
            parameter.grad = None

    def end(self, done: int) -> None:
        """Update by what was packed a step ago, and pack."""
        if self.pending:
            super().end(done)
        for replica, gradients in enumerate(self.own):
            for parameter, gradient in zip(self.exchange.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.exchange.pack(replica)
        self.own, self.pending = [], True


class LocalSteps:
    """Every replica updates weights of its own, and all agree now and then (`exchanges/agreement.py`)."""

    def __init__(self, plan: Plan, spec: JobSpec, exchange: VirtualExchange) -> None:
        self.plan, self.exchange, parameters = plan, exchange, exchange.parameters
        self.share = 1.0 / plan.data_parallel_degree
        self.updates, self.agreements = list[StageUpdate](), list[Agreement]()
        for _ in range(plan.data_parallel_degree):
            masters = [_copy(parameter) for parameter in parameters]
            self.updates.append(StageUpdate(parameters, masters, masters, partial(make_optimizer, spec)))
            self.agreements.append(Agreement(parameters, masters, self.share, spec.outer_learning_rate, spec.outer_momentum))

    @property
    def optimizers(self) -> list[Optimizer]:
        """One of each replica."""
        return _optimizers(self.updates)

    def enter(self, replica: int) -> None:
        """Copy its weights."""
        self.updates[replica].spread()

    def leave(self, replica: int) -> None:
        """Update it."""
        self.updates[replica].collect()
        self.updates[replica].apply()

    def end(self, done: int) -> None:
        """In a step that exchanges let all replicas agree."""
        if not self.plan.exchanges_in(done):
            return
        for replica, agreement in enumerate(self.agreements):
            agreement.differ()
            self.exchange.pack(replica)
        self.exchange.finish()
        sums = [parameter.grad for parameter in self.exchange.parameters]
        for agreement in self.agreements:
            for parameter, total in zip(self.exchange.parameters, sums, strict=True):
                parameter.grad = total
            agreement.agree()

    def settle(self) -> None:
        """The mean of all replicas'; they go on from their own."""
        with torch.no_grad():
            for parameter, *own in zip(self.exchange.parameters, *(agreement.own for agreement in self.agreements), strict=True):
                parameter.copy_(torch.stack(own).mul_(self.share).sum(0))


def _copy(parameter: nn.Parameter) -> nn.Parameter:
    """In fp32, with memory of its own."""
    return nn.Parameter(parameter.detach().to(torch.float32, copy=True))


def _optimizers(updates: list[StageUpdate]) -> list[Optimizer]:
    return [update.optimizer for update in updates if update.optimizer]
