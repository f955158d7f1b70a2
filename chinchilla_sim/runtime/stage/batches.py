"""The data of a run: global batches cut from what the job yields, and a rank's microbatches of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.trace import as_tuple
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.stage.dtypes import cast_floating, weights_dtype

CALIBRATION_SAMPLES = 512


def global_batches(chunks: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """Cut chunks of any size into batches of `size`; the incomplete last one is dropped."""
    rest: tuple[Any, Any] | None = None
    for chunk in chunks:
        inputs, targets = chunk if rest is None else (_join_parts(rest[0], chunk[0]), _join_parts(rest[1], chunk[1]))
        count = batch_length(inputs)
        for start in range(0, count - size + 1, size):
            yield _slice(inputs, start, start + size), _slice(targets, start, start + size)
        rest = _slice(inputs, count - count % size, count), _slice(targets, count - count % size, count)


def batch_length(batch: Any) -> int:
    """Samples of a batch (a tensor or a tuple of them)."""
    return len(batch[0]) if isinstance(batch, tuple | list) else len(batch)


def calibration_inputs(job: TrainingJob, model: nn.Module, size: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The first CALIBRATION_SAMPLES samples of the training data in parts of `size` samples, the same on every rank."""
    inputs = (inputs for inputs, _ in global_batches(job.batches("train", 0, 0), size))
    for part in islice(inputs, max(1, CALIBRATION_SAMPLES // size)):
        yield tuple(cast_floating(tensor.to(device), weights_dtype(model)) for tensor in as_tuple(part))


class Shares:
    """Cuts a replica's microbatches out of global batches."""

    def __init__(self, plan: Plan, replica: int, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.device, self.dtype = plan.microbatch_size, device, dtype
        if plan.free_replicas:
            first, self.count = 0, plan.microbatch_count
        else:
            first, self.count = sum(plan.microbatches_of(before) for before in range(replica)), plan.microbatches_of(replica)
        self.starts = range(first * self.size, (first + self.count) * self.size, self.size)

    def inputs(self, batch: Any) -> list[tuple[Any, ...]]:
        """The model's inputs, in the precision of the job."""
        return [as_tuple(self._cut(batch, start, cast=True)) for start in self.starts]

    def targets(self, batch: Any) -> list[Any]:
        """What the loss compares with."""
        return [self._cut(batch, start) for start in self.starts]

    def _cut(self, batch: Any, start: int, cast: bool = False) -> Any:
        if isinstance(batch, tuple | list):
            return tuple(self._cut(part, start, cast) for part in batch)
        part = batch[start : start + self.size].to(self.device)
        return cast_floating(part, self.dtype) if cast else part


def _slice(batch: Any, start: int, end: int) -> Any:
    return tuple(part[start:end] for part in batch) if isinstance(batch, tuple | list) else batch[start:end]


def _join_parts(left: Any, right: Any) -> Any:
    if isinstance(left, tuple | list):
        return tuple(torch.cat(pair) for pair in zip(left, right, strict=True))
    return torch.cat([left, right])
