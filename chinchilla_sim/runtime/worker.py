"""One rank of a real run: `python -m chinchilla_sim.runtime.worker RUN_FOLDER`, started by torchrun.

The folder holds plan.json; every rank writes `rank<R>.json` (what it recorded) or `rank<R>.error` (its traceback),
rank 0 writes metrics.jsonl and weights.pt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.contract import TrainingJob, factory_of, load_job
from chinchilla_sim.graph.trace import as_tuple
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile, load_plan
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.interpreter import Groups, Interpreter
from chinchilla_sim.runtime.launch import die_with_parent
from chinchilla_sim.runtime.recorder import Recorder
from chinchilla_sim.runtime.stages import Stage, cut_stage, stage_parameters, stage_state
from chinchilla_sim.scenario.job import JobSpec

TIMEOUT = timedelta(seconds=120)


def main(folder: Path) -> int:
    """Run this rank; the return value is the exit code."""
    rank = int(os.environ["RANK"])
    try:
        prepare_process()
        _Rank(folder, rank).run()
    except BaseException:
        (folder / f"rank{rank}.error").write_text(traceback.format_exc())
        raise
    return 0


def prepare_process() -> None:
    """What every process that computes does first.

    One thread per rank; numbers too small for a normal float become 0 (moments of rarely used weights decay there,
    and arithmetic on them is slow); Linux ends the process with its launcher.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    die_with_parent(signal.SIGKILL)


class _Rank:
    """State of one rank over the whole run."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.file: PlanFile = load_plan(folder / "plan.json")
        self.plan: Plan = self.file.plan
        self.spec: JobSpec = self.file.scenario.job
        (self.position,), self.replica = self.plan.position[rank]
        self.device = self._device()
        self.groups = self._join()
        self.job: TrainingJob = load_job(*factory_of(self.file.scenario), to_run=True)
        self.model = self._model()
        self.stage: Stage = cut_stage(self.job, self.model, self.plan, self.position, self.device)
        self.recorder = Recorder()
        self.optimizer = self._optimizer()
        self.interpreter = Interpreter(
            self.plan, lower(self.plan).actions[rank], rank, self.stage, self.job.loss, self.optimizer, self.groups, self.recorder,
            self.device,
        )  # fmt: skip
        self.learning_rate = self._learning_rate()
        self.losses: list[float] = []
        self.epoch_s: list[float] = []
        self.metrics: dict[str, float] = {}

    def _device(self) -> torch.device:
        local = int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
            torch.cuda.set_device(local)
            return torch.device("cuda", local)
        return torch.device("cpu")

    def _join(self) -> Groups:
        """Join the other ranks. NCCL runs a pair's messages in order on one communicator: one group per direction there."""
        nccl = self.device.type == "cuda"
        dist.init_process_group("nccl" if nccl else "gloo", timeout=TIMEOUT)
        groups = Groups()
        everyone = list(range(self.plan.rank_count))
        if nccl:
            groups.forward, groups.backward = dist.new_group(everyone), dist.new_group(everyone)
        if self.plan.data_parallel_degree > 1:
            for stage, members in enumerate(self.plan.placement):
                group = dist.new_group(list(members))
                if stage == self.position:
                    groups.replicas = group
        return groups

    def _model(self) -> nn.Module:
        torch.manual_seed(self.spec.seed)
        model: nn.Module = self.job.model()
        weights = self.file.scenario.model.weights
        if weights:
            model.load_state_dict(torch.load(weights, weights_only=True))
        return model.to(self.device)

    def _optimizer(self) -> torch.optim.Optimizer | None:
        parameters = stage_parameters(self.stage)
        if not parameters or not self.plan.training:
            return None
        if self.spec.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.spec.learning_rate, fused=True)
        return torch.optim.SGD(parameters, lr=self.spec.learning_rate, momentum=self.spec.momentum, fused=True)

    def _learning_rate(self) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Linear decay to 0 over all steps of the run, or None for a constant rate."""
        if self.optimizer is None or self.spec.learning_rate_schedule == "constant":
            return None
        samples = sum(_length(inputs) for inputs, _ in self.job.batches("train", self.spec.seed, 0))
        total = samples // self.spec.global_batch_size * self.spec.epochs
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: max(0.0, 1.0 - step / max(1, total)))

    def run(self) -> None:
        """All epochs, then the records."""
        limit = self.spec.total_steps or sys.maxsize
        for epoch in range(self.spec.epochs):
            start_s = monotonic()
            self._epoch(epoch, limit)
            self.epoch_s.append(monotonic() - start_s)
            self._report(epoch)
            if len(self.recorder.intervals) >= limit:
                break
        if not self.recorder.intervals:
            raise RunError(f"the data has fewer than {self.spec.global_batch_size} samples: no step was made")
        record = self.recorder.to_dict() | {"losses": self.losses, "epoch_s": self.epoch_s, "metrics": self.metrics}
        (self.folder / f"rank{self.rank}.json").write_text(json.dumps(record))
        dist.barrier()
        dist.destroy_process_group()

    def _epoch(self, epoch: int, limit: int) -> None:
        split = "train" if self.plan.training else "validation"
        for inputs, targets in global_batches(self.job.batches(split, self.spec.seed, epoch), self.spec.global_batch_size):
            if len(self.recorder.intervals) >= limit:
                return
            microbatches = [self._microbatch(inputs, index) for index in range(self.plan.microbatch_count)]
            labels = [self._microbatch(targets, index) for index in range(self.plan.microbatch_count)]
            loss = self.interpreter.step([as_tuple(microbatch) for microbatch in microbatches], labels)
            if self.learning_rate is not None:
                self.learning_rate.step()
            if self.interpreter.last and self.plan.training:
                self.losses.append(loss)

    def _microbatch(self, batch: Any, index: int) -> Any:
        """This replica's microbatch of a global batch (a tensor or a tuple of them)."""
        if isinstance(batch, tuple | list):
            return tuple(self._microbatch(part, index) for part in batch)
        size = self.plan.microbatch_size
        start = (self.replica * self.plan.microbatch_count + index) * size
        return batch[start : start + size].to(self.device)

    def _report(self, epoch: int) -> None:
        """Gather the weights on rank 0, evaluate, and write one line of metrics."""
        gathered = self._gather_weights() if self.plan.training else {}
        if self.rank:
            return
        if gathered:
            self.model.load_state_dict(gathered)
            torch.save(self.model.state_dict(), self.folder / "weights.pt")
        evaluate = getattr(self.job, "evaluate", None)
        self.metrics = evaluate(self.model) if evaluate and (gathered or self.file.scenario.model.weights) else {}
        line = {"epoch": epoch + 1, "steps": len(self.recorder.intervals), "epoch_s": round(self.epoch_s[-1], 4), **self.metrics}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _gather_weights(self) -> dict[str, Tensor]:
        """The whole model's state on rank 0, from the first replica of every stage; {} elsewhere."""
        ours = stage_state(self.stage)
        owners = [ranks[0] for ranks in self.plan.placement]
        if self.rank:
            if self.rank in owners:
                dist.send_object_list([[(name, tuple(t.shape), t.dtype) for name, t in ours.items()]], dst=0)
                for tensor in ours.values():
                    dist.send(tensor.contiguous(), dst=0)
            return {}
        # What no stage uses, such as a frozen buffer, stays as it was.
        state: dict[str, Tensor] = dict(self.model.state_dict()) | (ours if 0 in owners else {})
        for owner in owners:
            if owner:
                state |= self._receive_weights(owner)
        return state

    def _receive_weights(self, owner: int) -> dict[str, Tensor]:
        listing: list[Any] = [None]
        dist.recv_object_list(listing, src=owner)
        state = {}
        for name, shape, dtype in listing[0]:
            state[name] = torch.empty(shape, dtype=dtype, device=self.device)
            dist.recv(state[name], src=owner)
        return state


def global_batches(chunks: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """Cut chunks of any size into batches of `size`; the incomplete last one is dropped."""
    rest: tuple[Any, Any] | None = None
    for chunk in chunks:
        inputs, targets = chunk if rest is None else (_join_parts(rest[0], chunk[0]), _join_parts(rest[1], chunk[1]))
        count = _length(inputs)
        for start in range(0, count - size + 1, size):
            yield _slice(inputs, start, start + size), _slice(targets, start, start + size)
        rest = _slice(inputs, count - count % size, count), _slice(targets, count - count % size, count)


def _length(batch: Any) -> int:
    return len(batch[0]) if isinstance(batch, tuple | list) else len(batch)


def _slice(batch: Any, start: int, end: int) -> Any:
    return tuple(part[start:end] for part in batch) if isinstance(batch, tuple | list) else batch[start:end]


def _join_parts(left: Any, right: Any) -> Any:
    if isinstance(left, tuple | list):
        return tuple(torch.cat(pair) for pair in zip(left, right, strict=True))
    return torch.cat([left, right])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
