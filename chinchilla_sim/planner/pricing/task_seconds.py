"""Seconds of single tasks and kernels: measured where a profile has them, else by the formulas of `cost/`, each kept for all plans.

Repeated layers have kernels that differ in nothing but names: those are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.compute import backward_s, forward_s, is_measured, rereading_s, weight_gradient_share
from chinchilla_sim.graph.profile import ACCELERATOR, ANY_DEVICE, Profile
from chinchilla_sim.graph.task import Task


class TaskSeconds:
    """Of one graph, whose batch has `batch_size` samples, on any device; times that the `profile` measured come before formulas.

    Where devices hold parts, what was measured was the `whole` kernel: a part takes of that what the formulas say. A profile `of` another
    form of the model counts alike. In inference `held_bytes` of weights are read again in every pass, 0 where other things come between.
    """

    def __init__(self, batch_size: int, profile: Profile, whole: Mapping[str, Task] | None = None, held_bytes: float = 0.0) -> None:
        self.batch_size, self.profile, self.held_bytes = batch_size, profile, held_bytes
        self.whole = profile.tasks or whole or {}
        self.whole_held_bytes = (profile.held_bytes or held_bytes) if held_bytes else 0.0
        self._tasks: dict[tuple[str, int, int, Device], tuple[float, float, float]] = {}
        self._kinds: dict[Task, int] = {}
        self._kind_of: dict[str, int] = {}
        self._kernels: dict[tuple[int, int, Device, float], tuple[float, float]] = {}

    def of_task(self, task: Task, microbatch_size: int, device: Device, busy_ranks: int) -> tuple[float, float, float]:
        """Forward, backward, and the backward's weight gradients, of a task or group while so many ranks are busy."""
        key = task.name, microbatch_size, busy_ranks, device
        if key not in self._tasks:
            forward = backward = weights = 0.0
            for kernel in task.kernels:
                kernel_forward_s, kernel_backward_s = self.of_kernel(kernel, microbatch_size, device, busy_ranks)
                forward += kernel_forward_s
                backward += kernel_backward_s
                weights += kernel_backward_s * weight_gradient_share(kernel)
            self._tasks[key] = forward, backward, weights
        return self._tasks[key]

    def of_kernel(self, kernel: Task, microbatch_size: int, device: Device, busy_ranks: int) -> tuple[float, float]:
        """Forward and backward of one operator."""
        forward, backward = self._unscaled(kernel, microbatch_size, device, busy_ranks)
        forward_scale, backward_scale = self.profile.scales.get(kernel.name, (1.0, 1.0))
        return forward * forward_scale, backward * backward_scale

    def _unscaled(self, kernel: Task, microbatch_size: int, device: Device, busy_ranks: int) -> tuple[float, float]:
        for kind in (ANY_DEVICE, ACCELERATOR) if self.profile.times else ():
            measured = self.profile.seconds(kernel.name, microbatch_size, kind, busy_ranks)
            if measured:
                sustained = measured[0] / device.core_share, measured[1] / device.core_share
                return self._part_of(sustained, kernel, microbatch_size, device)
        return self._by_formula(kernel, microbatch_size, device)

    def _part_of(self, measured: tuple[float, float], kernel: Task, microbatch_size: int, device: Device) -> tuple[float, float]:
        whole = self.whole.get(kernel.name, kernel)
        if whole == kernel:
            return measured
        if kernel.weight_format != whole.weight_format and is_measured(kernel, device):
            # What one format is off by says nothing about another.
            return self._by_formula(kernel, microbatch_size, device)
        sides = self._by_formula(kernel, microbatch_size, device), self._by_formula(whole, microbatch_size, device, self.whole_held_bytes)
        rows = zip(measured, *sides, strict=True)
        forward, backward = (seconds * part / all_of_it if all_of_it else seconds for seconds, part, all_of_it in rows)
        return forward, backward

    def _by_formula(self, kernel: Task, microbatch_size: int, device: Device, held_bytes: float | None = None) -> tuple[float, float]:
        held_bytes = self.held_bytes if held_bytes is None else held_bytes
        key = self._kind(kernel), microbatch_size, device, held_bytes
        if key not in self._kernels:
            scale = microbatch_size / self.batch_size
            again_s = rereading_s(kernel, held_bytes, device)
            self._kernels[key] = forward_s(kernel, scale, device) + again_s, backward_s(kernel, scale, device)
        return self._kernels[key]

    def _kind(self, kernel: Task) -> int:
        """One number for all kernels that cost the same."""
        name = kernel.name if self.whole.get(kernel.name) is not kernel else f"{kernel.name} as a whole"
        if name not in self._kind_of:
            plain = replace(kernel, name="", parameters=(), saved=(), operands=(), module="")
            self._kind_of[name] = self._kinds.setdefault(plain, len(self._kinds))
        return self._kind_of[name]
