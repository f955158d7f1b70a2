"""What a rank keeps of a stage's weights to update them: the weights, their pieces (ZeRO), or fp32 masters of bf16 weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.agreement import Agreement
from chinchilla_sim.runtime.exchanges.groups import Groups, Seat
from chinchilla_sim.runtime.exchanges.sharding import Pieces, WeightGather
from chinchilla_sim.runtime.stage.stages import Stage

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


class StageUpdate:
    """The update of one stage.

    `masters[i]` is what `parameters[i]` is updated by: itself, or an fp32 copy of all or of this replica's piece of it. The
    optimizer updates `masters` but those that another stage of the rank updates. `starts[i]` counts the values of parameter i before its
    master, where that is a flat piece of it.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], masters: Sequence[nn.Parameter], updated: Sequence[nn.Parameter], make: MakeOptimizer
    ) -> None:
        self.parameters, self.masters = list(parameters), list(masters)
        self.optimizer = make(updated) if updated else None
        self.gather: WeightGather | None = None
        self.starts: list[int | None] = [None] * len(self.parameters)
        self.agreement: Agreement | None = None
        """Where replicas take local steps."""

    @property
    def held(self) -> list[Tensor]:
        """What is kept beside the weights and the optimizer's state: masters, and what replicas share."""
        return [*self.masters, *(self.agreement.shared if self.agreement else ()), *(self.agreement.moments if self.agreement else ())]

    def master_of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What a parameter of the stage is updated by."""
        return next(master for one, master in zip(self.parameters, self.masters, strict=True) if one is parameter)

    def collect(self) -> None:
        """Give the masters the gradients of their parameters; an exchange of pieces has done so already."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            gradient = parameter.grad
            if master is not parameter and gradient is not None:
                own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                master.grad, parameter.grad = own.to(master.dtype), None

    def apply(self) -> None:
        """One step of the optimizer; gradients are forgotten."""
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.grad = master.grad = None
        self._copy()

    def _copy(self) -> None:
        """Round masters of whole weights to them; those of FSDP2's shards are views of them."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter and not self.gather and not isinstance(parameter, DTensor):
                parameter.detach().copy_(master.detach())

    def spread(self) -> None:
        """Let the weights be what the masters have become; all replicas call it together."""
        self._copy()
        if self.gather:
            self.gather.issue()
            self.gather.wait()
            self.gather.finish()


def stage_update(plan: Plan, stage: Stage, owned: Sequence[nn.Parameter], seat: Seat, groups: Groups, make: MakeOptimizer) -> StageUpdate:
    """The update of a stage whose own parameters (of no stage before it on this rank) are `owned`."""
    parameters = stage.parameters()
    if not parameters:
        return StageUpdate([], [], [], make)
    ranks = plan.placement[stage.number]
    if plan.zero_stage in (1, 2) and len(ranks) > 1:
        pieces = Pieces(parameters, len(ranks))
        place = ranks.index(seat.rank)
        masters = [_master(piece) for piece in pieces.own(parameters, place)]
        update = StageUpdate(parameters, masters, masters, make)
        # Behind the tags of all buckets of gradients.
        tag = plan.stage_count * plan.gradient_buckets + stage.number
        update.gather = WeightGather(pieces, masters, groups.among[tuple(ranks)], tag)
        update.starts = [*pieces.starts(place)]
        return update
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        masters = [nn.Parameter(_local(parameter)) for parameter in parameters]
        return StageUpdate(parameters, masters, masters, make)
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        masters = [_master(parameter.detach()) for parameter in parameters]
        return StageUpdate(parameters, masters, masters, make)
    return StageUpdate(parameters, parameters, owned, make)


def _master(values: Tensor) -> nn.Parameter:
    """In fp32: a copy, unless they are so already."""
    return nn.Parameter(values.to(torch.float32))


def _local(parameter: nn.Parameter) -> Tensor:
    local: Tensor = parameter.detach().to_local()  # type: ignore[attr-defined]
    return local
