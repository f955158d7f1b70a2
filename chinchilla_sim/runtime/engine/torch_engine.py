"""The second engine: a plan's schedule played by torch.distributed.pipelining, on the same stages.

torch's own classes order the passes and send the messages, one class per schedule; losses are divided and gradients summed over
replicas as the interpreter does, the latter behind the last pass. Spans are those of passes: torch keeps its messages to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.pipelining as pipelining
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from chinchilla_sim.planner.action import CATEGORY, Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.engine.engines import TORCH_SCHEDULES, check_engine
from chinchilla_sim.runtime.exchanges.groups import Groups, Seat
from chinchilla_sim.runtime.program.gradients import StageGradients
from chinchilla_sim.runtime.record.recorder import Recorder
from chinchilla_sim.runtime.stage.stages import Stage


class _LaidOut(torch.autograd.Function):
    """The same values; their gradient is contiguous, because torch's stages send it as it lies."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        """A view of the tensor."""
        return tensor.view_as(tensor)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        """The gradient in the order of its dimensions."""
        return gradient.contiguous()


def _lay_out(tensor: Tensor) -> Tensor:
    result: Tensor = _LaidOut.apply(tensor)  # type: ignore[no-untyped-call]
    return result


class _StageModule(nn.Module):
    """A stage as torch wants it: a module, and several outputs as a tuple."""

    def __init__(self, stage: Stage, splits: bool) -> None:
        super().__init__()
        self.stage, self.splits = stage, splits
        self.segments = nn.ModuleList(segment.module for segment in stage.segments)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the stage returns, laid out as messages need it, both ways."""
        outputs = self.stage(*(_lay_out(tensor) if tensor.requires_grad else tensor for tensor in inputs))
        # Where torch splits backward passes it detaches outputs in place: not those that an operator keeps for W, nor views.
        apart = [tensor.clone() if self.splits and tensor.requires_grad else tensor for tensor in outputs]
        return tuple(tensor.contiguous() for tensor in apart)


class _RecordedStage(PipelineStage):
    """Torch's stage, whose passes are written down."""

    recorder: Recorder | None = None

    def _record(self, op: Op, microbatch: int, run: Callable[[], Any]) -> Any:
        start_s = monotonic()
        result = run()
        if self.recorder is not None:
            self.recorder.compute(str(Action(self.stage_index, op, microbatch)), CATEGORY[op], start_s)
        return result

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """F."""
        return self._record(Op.F, fwd_chunk_id, lambda: super(_RecordedStage, self).forward_one_chunk(fwd_chunk_id, *args, **kwargs))

    def backward_one_chunk(self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False) -> Any:
        """B, or I."""
        whole = super().backward_one_chunk
        op = Op.B if full_backward else Op.I
        return self._record(op, bwd_chunk_id, lambda: whole(bwd_chunk_id, loss, full_backward, last_backward))

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """W."""
        weight = super().backward_weight_one_chunk
        return self._record(Op.W, bwd_chunk_id, lambda: weight(bwd_chunk_id, *args, **kwargs))


class TorchEngine:
    """Plays one rank of a plan; has what `RankRun` asks of an interpreter."""

    def __init__(
        self,
        plan: Plan,
        seat: Seat,
        stages: Sequence[Stage],
        loss: Callable[[Any, Any], Tensor],
        optimizers: Mapping[int, torch.optim.Optimizer],
        groups: Groups,
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        check_engine(plan, "torch")
        self.plan, self.seat, self.loss, self.groups, self.recorder = plan, seat, loss, groups, recorder
        self.stages = {stage.number: stage for stage in stages}
        self.last = plan.stage_count - 1 in self.stages
        self.optimizers = optimizers
        # What our own interpreter has besides: residuals of codecs, and a note of the present action for the watchdog.
        self.gradients: Mapping[int, StageGradients] = {}
        self.beat: Callable[[str], None] = lambda _: None
        self.targets: Sequence[Any] = ()
        self.pipeline = _make_pipeline_groups(plan)[seat.replica]
        self.torch_stages = [self._torch_stage(stage, device) for stage in stages]
        self.schedule = self._schedule()

    def _torch_stage(self, stage: Stage, device: torch.device) -> _RecordedStage:
        return _RecordedStage(
            _StageModule(stage, self.plan.splits_backward), stage.number, self.plan.stage_count, device, group=self.pipeline
        )

    def _schedule(self) -> Any:
        kind = getattr(pipelining, TORCH_SCHEDULES[self.plan.schedule])
        stages: Any = self.torch_stages[0] if issubclass(kind, PipelineScheduleSingle) else self.torch_stages
        return kind(stages, self.plan.microbatch_count, loss_fn=self._loss, scale_grads=False)

    def _loss(self, outputs: Any, number: Tensor) -> Tensor:
        """A microbatch's share of the mean over the global batch; `number` says which one, so that targets may be anything."""
        share = self.plan.global_batch_size // self.plan.microbatch_size
        leaves = outputs if isinstance(outputs, tuple) else (outputs,)
        restored = self.stages[self.plan.stage_count - 1].restore(leaves)
        return self.loss(restored, self.targets[int(number)]) / share

    def step(self, inputs: Sequence[tuple[Tensor, ...]], targets: Sequence[Any], begun_s: float | None = None) -> float:
        """Play one step on this rank's microbatches; returns its share of the global mean loss.

        The step is recorded from `begun_s` on, when the rank began to get them.
        """
        self.targets = targets
        self.recorder.begin_step()
        if begun_s is not None:
            self.recorder.compute("INPUT", "input", begun_s)
        for stage in self.torch_stages:
            # Torch's first step also finds out shapes, with passes that are none of the schedule's.
            stage.recorder = self.recorder
        whole = tuple(torch.cat(parts) for parts in zip(*inputs, strict=True)) if 0 in self.stages else ()
        losses: list[Tensor] = []
        numbers = torch.arange(self.plan.microbatch_count) if self.last else None
        self.schedule.step(*whole, target=numbers, losses=losses, return_outputs=False)
        for number in self.stages:
            self._update(number)
        self.recorder.end_step()
        return float(sum(loss.detach() for loss in losses)) if self.last else 0.0

    def _update(self, number: int) -> None:
        """Sum a stage's gradients over its replicas, and take a step of the optimizer."""
        parameters = self.stages[number].parameters()
        ranks = self.plan.placement[number]
        if len(ranks) > 1 and parameters:
            flat = torch.cat([_gradient_of(one).reshape(-1) for one in parameters])
            key = ("gradients", number, 0, 0)
            self.recorder.join(key, str(Action(number, Op.REDUCE_GRAD)), float(flat.numel() * flat.element_size()))
            dist.all_reduce(flat, group=self.groups.among[ranks])
            self.recorder.joined(key)
            start = 0
            for one in parameters:
                one.grad = flat[start : start + one.numel()].view_as(one)
                start += one.numel()
        start_s = monotonic()
        if number in self.optimizers:
            self.optimizers[number].step()
        for one in parameters:
            one.grad = None
        self.recorder.compute(str(Action(number, Op.OPTIM)), CATEGORY[Op.OPTIM], start_s)


def _make_pipeline_groups(plan: Plan) -> list[Any]:
    """The ranks of each replica in the order of its stages; every process makes all of them."""
    return [dist.new_group(list(plan.pipeline(replica))) for replica in range(plan.data_parallel_degree)]


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
