"""Peak memory of a rank: every allocation of tensors in one counted step, and the kernel's account of the process.

The counted step is one of the warm-up steps, which no timing includes. PyTorch's profiler reports each allocation and
release of the CPU allocator, so temporaries are counted too; what was there when the step began is counted by its
distinct storages. Scratch memory of libraries and what gloo buffers are in the process's resident set only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from chinchilla_sim.runtime.record.recorder import COUNT_VARIABLE

COUNTED_STEP = 2
"""Counted from 0: the optimizer's state is there by then, and steps up to recorder.WARM_UP_STEPS are in no median."""


class MemoryProbe:
    """Plays a rank's steps and counts one of them, where the launcher asked for it."""

    def __init__(self) -> None:
        self.process_start_bytes, _ = resident_bytes()
        self.counting = os.environ.get(COUNT_VARIABLE) == "1"
        self._played = 0
        self.tensor_bytes = self.held_bytes = 0.0

    def play(self, step: Callable[[], float], held_bytes: Callable[[], float]) -> float:
        """What `step` returns; `held_bytes` counts the tensors that are there before it."""
        self._played += 1
        if not self.counting or self._played != COUNTED_STEP + 1:
            return step()
        self.held_bytes = held_bytes()
        loss: float
        loss, peak_bytes = count_allocations(step)
        self.tensor_bytes = self.held_bytes + peak_bytes
        return loss

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form of the peaks so far."""
        return {
            "tensor_bytes": self.tensor_bytes,
            "held_bytes": self.held_bytes,
            "process_bytes": resident_bytes()[1],
            "process_start_bytes": self.process_start_bytes,
        }


def count_allocations(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and how many bytes tensors grew meanwhile beyond those that were there, on all threads."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    recorded: Any = profiler.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return result, float(max(accumulate((event.nbytes() for event in events), initial=0)))


def storage_bytes(tensors: Iterable[Tensor]) -> float:
    """Bytes of the distinct storages behind some tensors, of sharded ones what is here.

    >>> base = torch.zeros(10)
    >>> storage_bytes([base, base[:5]])
    40.0
    """
    here = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, here)}
    return float(sum(storages.values()))


def batch_bytes(batch: Any) -> float:
    """Bytes of what was cut out of a data set, however large that is.

    >>> batch_bytes([(torch.zeros(4, 10)[:2], torch.zeros(2))])
    88.0
    """
    return sum(map(batch_bytes, batch), 0.0) if isinstance(batch, list | tuple) else float(batch.nbytes)


def optimizer_tensors(optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    """Moments and counters of an optimizer."""
    for state in optimizer.state.values() if optimizer else ():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def resident_bytes() -> tuple[float, float]:
    """Resident set of this process, now and at its largest (0, 0 where the kernel does not tell)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    rows = dict(line.split(":", 1) for line in lines if ":" in line)
    now, most = (1024.0 * int(rows[name].split()[0]) if name in rows else 0.0 for name in ("VmRSS", "VmHWM"))
    return now, most
