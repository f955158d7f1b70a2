"""One rank's part of a whole run: epochs of steps, learning rates, metrics, and what it leaves in the run's folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import astuple
from functools import partial
from itertools import count, islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.compress import AS_IT_IS, Variant
from chinchilla_sim.graph.contract import TrainingJob, factory_of, load_job
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.engine.engines import Engine, plan_of_plain_stages
from chinchilla_sim.runtime.exchanges.agreement import Agreement
from chinchilla_sim.runtime.exchanges.groups import Groups, make_groups, process_of, seat_of
from chinchilla_sim.runtime.program.fully_sharded import shard_stage
from chinchilla_sim.runtime.program.interpreter import Interpreter
from chinchilla_sim.runtime.program.updates import StageUpdate, stage_update
from chinchilla_sim.runtime.rank.optimizers import make_optimizer, set_learning_rate
from chinchilla_sim.runtime.record.clock import clock_name, read_offset
from chinchilla_sim.runtime.record.heartbeat import Heartbeat
from chinchilla_sim.runtime.record.memory import MemoryProbe, batch_bytes, optimizer_tensors, storage_bytes
from chinchilla_sim.runtime.record.recorder import Recorder
from chinchilla_sim.runtime.saved.checkpoint import Checkpoints
from chinchilla_sim.runtime.saved.continuation import Position, restore_random, take_up
from chinchilla_sim.runtime.saved.parts import first_names
from chinchilla_sim.runtime.stage.batches import Shares, batch_length, global_batches
from chinchilla_sim.runtime.stage.dtypes import run_dtype
from chinchilla_sim.runtime.stage.lanes import Lanes
from chinchilla_sim.runtime.stage.stages import Stage, cut_stages, own_parameters
from chinchilla_sim.runtime.stage.whole_variant import variant_module
from chinchilla_sim.runtime.variant.sparsity import Masks

if TYPE_CHECKING:
    from chinchilla_sim.runtime.engine.torch_engine import TorchEngine


class RankRun:
    """State of one rank over a whole run; the process group is there already."""

    def __init__(self, file: PlanFile, folder: Path, device: torch.device, engine: Engine = "chinchilla") -> None:
        self.file, self.folder, self.device, self.engine = file, folder, device, engine
        self.memory = MemoryProbe()
        self.plan, self.spec = file.plan, file.scenario.job
        self.seat = seat_of(self.plan, dist.get_rank())
        self.groups: Groups = make_groups(self.plan, self.seat, ordered_messages=device.type == "cuda")
        self.job: TrainingJob = load_job(*factory_of(file.scenario), to_run=True)
        self.model = self._model()
        self.names = first_names(self.model)
        self.variant = Variant(**file.scenario.model.compression.changes)
        self.recorder = Recorder(self.plan.group_width)
        degree = self.plan.tensor_parallel_degree
        self.lanes = Lanes(self.groups.lanes, degree, self.seat.lane) if degree > 1 else None
        self.stages: list[Stage] = self._cut()
        self.updates = self._updates()
        self.optimizers = {number: update.optimizer for number, update in self.updates.items() if update.optimizer}
        self.interpreter = self._make_engine()
        self.shares = Shares(self.plan, self.seat.replica, device, run_dtype(self.spec.precision))
        self.total_steps = self._total_steps()
        self.masks = self._make_masks()
        self.losses: list[float] = []
        self.epoch_s: list[float] = []
        self.metrics: dict[str, float] = {}
        self.lines: list[dict[str, Any]] = []
        self.first_step = 0
        self.loss_processes = [process_of(self.plan, rank, 0) for rank in self.plan.placement[-1]]
        self.checkpoints = Checkpoints(self)
        self.heartbeat = Heartbeat(folder, self.seat.process)
        self.interpreter.beat = self.heartbeat.at

    def _make_engine(self) -> Interpreter | TorchEngine:
        """What plays the steps; both have the same two names."""
        if self.engine == "chinchilla":
            program, rank = lower(self.plan), self.seat.rank
            return Interpreter(
                self.plan, program.actions[rank], self.seat, self.stages, self.job.loss, self.updates, self.groups,
                self.recorder, self.device, self.spec.clip_gradient_norm, program.local.actions[rank] if program.local else (),
            )  # fmt: skip
        from chinchilla_sim.runtime.engine.torch_engine import TorchEngine

        return TorchEngine(self.plan, self.seat, self.stages, self.job.loss, self.optimizers, self.groups, self.recorder, self.device)

    def _model(self) -> nn.Module:
        torch.manual_seed(self.spec.seed)
        model: nn.Module = self.job.model()
        weights = self.file.scenario.model.weights
        if weights:
            model.load_state_dict(torch.load(weights, weights_only=True))
        # Ranks draw their dropout masks apart, the lanes of a rank alike where they hold the same.
        torch.manual_seed(self.spec.seed + self.seat.rank)
        return model.to(self.device, run_dtype(self.spec.precision))

    def _cut(self) -> list[Stage]:
        plan = self.plan if self.engine == "chinchilla" else plan_of_plain_stages(self.plan)
        stages = cut_stages(self.job, self.model, plan, self.seat.stages, self.device, variant=self.variant, lanes=self.lanes)
        if plan.zero_stage < 3 or not plan.training or plan.data_parallel_degree == 1:
            return stages
        dtype = run_dtype(self.spec.precision)
        return [shard_stage(plan, stage, self.groups, self.recorder, dtype) for stage in stages]

    def _updates(self) -> dict[int, StageUpdate]:
        if not self.plan.training:
            return {}
        pairs = zip(self.stages, own_parameters(self.stages), strict=True)
        make = partial(make_optimizer, self.spec)
        updates = {stage.number: stage_update(self.plan, stage, owned, self.seat, self.groups, make) for stage, owned in pairs}
        if self.plan.local_steps > 1:
            share = self.plan.microbatches_of(self.seat.replica) * self.plan.microbatch_size / self.plan.global_batch_size
            for update in updates.values():
                outer = self.spec.outer_learning_rate, self.spec.outer_momentum
                update.agreement = Agreement(update.parameters, update.masters, share, *outer)
        return updates

    def _total_steps(self) -> int:
        """Steps of all epochs, which learning rates fall over and zeros spread over; 0 where nobody asks."""
        if not self.plan.training or (self.spec.learning_rate_schedule == "constant" and not self.variant.sparsity):
            return 0
        samples = sum(batch_length(inputs) for inputs, _ in self.job.batches("train", self.spec.seed, 0))
        return samples // self.spec.global_batch_size * self.spec.epochs

    def _make_masks(self) -> Masks | None:
        """What keeps values at zero, where a sparse variant is trained."""
        if not self.plan.training or not self.variant.sparsity:
            return None
        parameters = [parameter for owned in own_parameters(self.stages) for parameter in owned]
        return Masks(parameters, self.variant.sparsity, min(self.total_steps, self.spec.total_steps or self.total_steps))

    @property
    def steps(self) -> int:
        """Steps made so far, those before a checkpoint included."""
        return self.first_step + len(self.recorder.intervals)

    def run(self) -> None:
        """All epochs from where a checkpoint left the run, then the records."""
        limit = self.spec.total_steps or sys.maxsize
        clock = [read_offset(clock_name(), self.device)]
        self.heartbeat.at("reading of checkpoints")
        position = take_up(self) if self.plan.training else Position()
        self._write_lines()
        for epoch in range(position.epoch, self.spec.epochs):
            start_s = monotonic() - position.epoch_s
            self._epoch(epoch, limit, position, start_s)
            position = Position()
            self.epoch_s.append(monotonic() - start_s)
            self._report(epoch)
            if self.steps >= limit:
                break
        self.heartbeat.at("end")
        self.checkpoints.close()
        if not self.steps:
            raise RunError(f"the data has fewer than {self.spec.global_batch_size} samples: no step was made")
        record = self.recorder.to_dict() | {"losses": self.losses, "epoch_s": self.epoch_s, "metrics": self.metrics}
        clock.append(read_offset(clock_name(), self.device))
        record |= {"memory": self.memory.to_dict(), "clock": [astuple(reading) for reading in clock]}
        record["lane_collectives"] = [[*key, count] for key, count in sorted(self.lanes.counts.items())] if self.lanes else []
        (self.folder / f"rank{self.seat.process}.json").write_text(json.dumps(record))
        dist.barrier()
        self.heartbeat.close()

    def _epoch(self, epoch: int, limit: int, position: Position, start_s: float) -> None:
        """The steps of an epoch behind a position."""
        split = "train" if self.plan.training else "validation"
        batches = global_batches(self.job.batches(split, self.spec.seed, epoch), self.spec.global_batch_size)
        batches = islice(batches, position.step_of_epoch, None)
        for number in count(position.step_of_epoch):
            if self.steps >= limit:
                return
            self.heartbeat.step = self.steps
            self.heartbeat.at("its data")
            begun_s = monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            inputs, targets = self.shares.inputs(batch[0]), self.shares.targets(batch[1])
            restore_random(self, position)
            position = Position()
            begun_s += self.checkpoints.before_step(epoch, number, begun_s - start_s)
            for optimizer in self.optimizers.values():
                set_learning_rate(optimizer, self.spec, self.steps, self.total_steps)
            step = partial(self.interpreter.step, inputs, targets, begun_s)
            if not self.plan.exchanges_in(self.steps):
                step = partial(step, exchanging=False)
            loss = self.memory.play(step, partial(self._held_bytes, inputs, targets))
            if self.masks:
                self.masks.after_step(self.steps)
            if self.interpreter.last and self.plan.training:
                self.losses.append(loss)

    def _held_bytes(self, inputs: Any, targets: Any) -> float:
        """What this rank's stages need before a step begins: weights, their optimizer, exchanges, and of the batch what the ends take."""
        tensors = [tensor for stage in self.stages for tensor in stage.state().values()]
        tensors += [tensor for optimizer in self.optimizers.values() for tensor in optimizer_tensors(optimizer)]
        tensors += [tensor for update in self.updates.values() for tensor in update.held]
        tensors += [tensor for gradients in self.interpreter.gradients.values() for tensor in gradients.buffers]
        first, last = 0 in self.seat.stages, self.interpreter.last
        return storage_bytes(tensors) + (batch_bytes(inputs) if first else 0.0) + (batch_bytes(targets) if last else 0.0)

    def _report(self, epoch: int) -> None:
        """Gather the weights on the first process, evaluate, and write one line of metrics."""
        self.heartbeat.at(f"evaluation of epoch {epoch + 1}")
        gathered = self._gather_weights() if self.plan.training else {}
        if self.seat.process:
            return
        if gathered:
            _load(self.model, gathered)
            torch.save(self.model.state_dict(), self.folder / "weights.pt")
        self.metrics = self._evaluate() if gathered or self.file.scenario.model.weights else {}
        self.lines.append({"epoch": epoch + 1, "steps": self.steps, "epoch_s": round(self.epoch_s[-1], 4), **self.metrics})
        self._write_lines()

    def _write_lines(self) -> None:
        """Metrics of all epochs so far, without what was written behind the checkpoint that the run goes on from."""
        if self.seat.process == 0:
            partial_file = self.folder / "metrics.jsonl.partial"
            partial_file.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            partial_file.replace(self.folder / "metrics.jsonl")

    def _evaluate(self) -> dict[str, float]:
        """The job's own metrics of the model, or of its variant."""
        evaluate = getattr(self.job, "evaluate", None)
        if evaluate is None:
            return {}
        model = self.model if self.variant == AS_IT_IS else variant_module(self.job, self.model, self.plan, self.device, self.variant)
        metrics: dict[str, float] = evaluate(_in_fp32(model))
        return metrics

    def _gather_weights(self) -> dict[str, Tensor]:
        """The whole model's state on the first process, from the first replica of every stage; {} elsewhere.

        Between two exchanges of local steps weights are the mean of all replicas'.
        """
        ours: dict[str, Tensor] = {}
        for stage in self.stages:
            whole = {name: _whole(tensor, stage.dtype) for name, tensor in (stage.state() | self._means(stage)).items()}
            if self.plan.placement[stage.number][0] == self.seat.rank:
                ours |= stage.divider.whole_weights(whole) if stage.divider else whole
        owners = [process_of(self.plan, rank, 0) for rank in dict.fromkeys(row[0] for row in self.plan.placement)]
        if self.seat.process:
            if self.seat.process in owners:
                dist.send_object_list([[(name, tuple(t.shape), t.dtype) for name, t in ours.items()]], dst=0)
                for tensor in ours.values():
                    dist.send(tensor.contiguous(), dst=0)
            return {}
        for owner in filter(None, owners):
            ours |= dict(self._receive_weights(owner))
        ours = self.stages[0].expand(ours)
        # A tied weight has the name that its stage uses. What no stage uses, such as a frozen buffer, stays as it was.
        found = {self.names.get(path, path): tensor for path, tensor in ours.items()}
        return {path: found.get(self.names.get(path, path), tensor) for path, tensor in self.model.state_dict().items()}

    def _means(self, stage: Stage) -> dict[str, Tensor]:
        """Mean weights of the replicas of a stage by name, where these differ."""
        update = self.updates.get(stage.number)
        if update is None or update.agreement is None or self.steps % self.plan.local_steps == 0:
            return {}
        means = update.agreement.means(self.groups.among[tuple(self.plan.placement[stage.number])])
        return {name: means[tensor.data_ptr()] for name, tensor in stage.state().items() if tensor.data_ptr() in means}

    def _receive_weights(self, owner: int) -> Iterator[tuple[str, Tensor]]:
        listing: list[Any] = [None]
        dist.recv_object_list(listing, src=owner)
        for name, shape, dtype in listing[0]:
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
            dist.recv(tensor, src=owner)
            yield name, tensor


def _in_fp32(model: nn.Module) -> nn.Module:
    """A model that takes what the job's data gives: itself, or a copy of one in half precision."""
    floating = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    return model if all(dtype == torch.float32 for dtype in floating) else deepcopy(model).float()


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a model these weights; those that were given up for shards get their memory back."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.shape != state[name].shape:
            tensor.data = torch.empty_like(state[name])
    model.load_state_dict(state)


def _whole(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A sharded tensor put together, which all its holders do at the same time; others as they are."""
    return tensor.full_tensor().to(dtype) if isinstance(tensor, DTensor) else tensor
