"""ZeRO 3: a stage under FSDP2 (`fully_shard`), its collectives recorded and each in the form that gloo does fastest.

Every bucket of the stage is one unit whose weights are gathered before its part of a pass and freed behind it, while the next
unit's are under way; weights that several units use belong to the stage and stay for the whole pass. Gradients are summed and divided in
every backward pass: FSDP2 waits for each sum where there are no streams (on CPU). Segments that run again do so inside
their unit's backward pass, by `torch.utils.checkpoint`, so that their weights are gathered once for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count, groupby, pairwise
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
from torch.utils.checkpoint import checkpoint

from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.codecs import HALF
from chinchilla_sim.runtime.exchanges.groups import Groups
from chinchilla_sim.runtime.exchanges.posted import PostedExchange
from chinchilla_sim.runtime.record.recorder import CollectiveKey, Recorder
from chinchilla_sim.runtime.stage.stages import Segment, Stage


class _Unit(nn.Module):
    """Segments whose weights travel together."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segment.module for segment in segments)
        self.again = [segment.again for segment in segments]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        for segment, again in zip(self.segments, self.again, strict=True):
            tensors = checkpoint(segment, *tensors, use_reentrant=False) if again and torch.is_grad_enabled() else segment(*tensors)
        return tensors


class _Whole(nn.Module):
    """All units of a stage."""

    def __init__(self, units: Sequence[_Unit]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        for unit in self.units:
            tensors = unit(*tensors)
        return tensors


def shard_stage(plan: Plan, stage: Stage, groups: Groups, recorder: Recorder, dtype: torch.dtype) -> Stage:
    """The stage with its trained parameters (fp32) divided over its replicas; it computes in `dtype`."""
    group = groups.among[tuple(plan.placement[stage.number])]
    units = [_Unit(list(segments)) for _, segments in groupby(stage.segments, key=lambda segment: segment.bucket)]
    whole = _Whole(units)
    trained = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    where = {id(parameter): _place_of(whole, name) for name, parameter in whole.named_parameters()}
    full = [parameter.detach() for parameter in trained]
    for parameter in trained:
        parameter.data = parameter.data.float()
    frozen = {parameter for parameter in whole.parameters() if not parameter.requires_grad}
    mesh = DeviceMesh.from_group(group, full[0].device.type if full else "cpu")
    codec = HALF.get(plan.gradient_codecs[stage.number])
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=codec or dtype, cast_forward_inputs=False)
    together = [row for row in _together(units) if any(parameter.requires_grad for unit in row for parameter in unit.parameters())]
    for row in together:
        fully_shard(row, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=frozen)
    fully_shard(whole, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=frozen)
    _set_up(whole, [row[0] for row in together], stage.number, recorder)
    for parameter in trained:
        # The model that the stages were cut from holds no second copy.
        parameter.data = parameter.data.new_empty(0)
    segment = Segment(whole, stage.input_needs_gradient, stage.output_needs_gradient)
    shared = {number: [_found(where, one) for one in parameters] for number, parameters in stage.shared.items()}
    modules = tuple(segment.module for segment in stage.segments)
    return replace(stage, segments=(segment,), shared=shared, modules=modules)


def _together(units: Sequence[_Unit]) -> list[list[nn.Module]]:
    """Units by the weights that they share: those are gathered before the first of them and freed behind the last."""
    rows: list[list[nn.Module]] = []
    for unit in units:
        own = {*unit.parameters()}
        sharing = [row for row in rows if any(own & {*other.parameters()} for other in row)]
        rows = [row for row in rows if row not in sharing]
        rows.append([*(other for row in sharing for other in row), unit])
    return sorted(rows, key=lambda row: units.index(row[0]))


def _place_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _found(where: dict[int, tuple[nn.Module, str]], parameter: nn.Parameter) -> nn.Parameter:
    """What has taken a parameter's place."""
    module, attribute = where[id(parameter)]
    found: nn.Parameter = getattr(module, attribute)
    return found


def _set_up(whole: Any, units: Sequence[Any], number: int, recorder: Recorder) -> None:
    """Sums instead of means, as losses are shares of the global mean; gathers one unit ahead; collectives of ours."""
    turns = count()
    modules: list[FSDPModule] = [whole, *units]
    for module in modules:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_custom_all_gather(_Gather(number, recorder, turns))
        module.set_custom_reduce_scatter(_Scatter(number, recorder, turns))
    whole._set_unshard_async_op(True)
    for before, behind in pairwise(units):
        before.set_modules_to_forward_prefetch([behind])
        behind.set_modules_to_backward_prefetch([before])


class _Recorded:
    """A collective of one stage; all its replicas count them in the same order."""

    def __init__(self, number: int, recorder: Recorder, turns: count[int]) -> None:
        self.number, self.recorder, self.turns = number, recorder, turns

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def _join(self, what: str, op: Op, kind: str, payload: Tensor, group: dist.ProcessGroup) -> CollectiveKey:
        key = what, self.number, next(self.turns), 0
        sent = sent_bytes(kind, payload.numel() * payload.element_size(), group.size())
        self.recorder.join(key, str(Action(self.number, op)), sent)
        return key


class _Gathering(dist.Work):
    """Weights on their way, as FSDP2 wants to wait for them."""

    def __init__(self, exchange: PostedExchange, recorder: Recorder, key: CollectiveKey) -> None:
        super().__init__()
        self.exchange, self.recorder, self.key = exchange, recorder, key

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Wait for all of them; the process group's own timeout holds."""
        since_s = monotonic()
        self.exchange.wait()
        self.recorder.joined(self.key, since_s)
        return True


class _Gather(_Recorded, AllGather):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False) -> dist.Work | None:
        key = self._join("weights", Op.UNSHARD, "all_gather", input_tensor, group)
        exchange = PostedExchange(output_tensor.view(group.size(), -1).unbind(), group, 2 * self.number)
        exchange.gather(input_tensor.view(-1))
        work = _Gathering(exchange, self.recorder, key)
        if async_op:
            return work
        work.wait()
        return None


class _Scatter(_Recorded, ReduceScatter):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        """Every rank's part goes straight to it: half the bytes of gloo's own, which is an all-reduce (see sharding.py)."""
        key = self._join("gradients", Op.REDUCE_GRAD, "reduce_scatter", input_tensor, group)
        arriving = torch.empty_like(input_tensor).view(group.size(), -1)
        exchange = PostedExchange(arriving.unbind(), group, 2 * self.number + 1)
        exchange.scatter(input_tensor.view(group.size(), -1).unbind())
        exchange.wait()
        if output_tensor.dtype == torch.float32:
            torch.sum(arriving, 0, dtype=torch.float32, out=output_tensor)
        else:
            output_tensor.copy_(arriving.sum(0, dtype=torch.float32))
        self.recorder.joined(key)
        return None
