"""Seconds of computation on one device (additive roofline).

    kernel       t = launches * launch_s + flop / flop_per_s + bytes / memory_bandwidth
    group        sum of its kernels
    microbatch   sum of its kernels + forward_fixed_s or backward_fixed_s
    accumulation of a gradient into an existing one reads both and writes one: 3 P bytes
    optimizer    adam reads p, g, m, v and writes p, m, v (28 B per fp32 parameter); sgd 12 B, with momentum 20 B

The sum, not the maximum of the classic roofline (Williams, Waterman & Patterson 2009): on the CPU cores that
were measured, loading weights does not hide behind products (64x784x512 and 8x784x512 both fit within 5 %).
"""

from __future__ import annotations

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.graph.task import Task

FP32_BYTES = 4
OPTIMIZER_BYTES_PER_VALUE = {"adam": 28.0, "sgd": 12.0, "sgd-momentum": 20.0}


def forward_s(task: Task, scale: float, device: Device) -> float:
    """Seconds of a task's forward pass on `scale` times the graph's batch."""
    return sum(_forward_kernel_s(kernel, scale, device) for kernel in task.kernels)


def backward_s(task: Task, scale: float, device: Device) -> float:
    """Seconds of a task's backward pass; weights are read for the input's gradient, their gradients written."""
    return sum(_backward_kernel_s(kernel, scale, device) for kernel in task.kernels)


def weight_gradient_share(task: Task) -> float:
    """Share of a kernel's backward seconds that makes gradients of weights (W), by flop; the rest makes the input's (I)."""
    return task.weight_gradient_flop / task.backward_flop if task.backward_flop else 0.0


def _forward_kernel_s(task: Task, scale: float, device: Device) -> float:
    moved = task.weight_bytes + scale * (task.read_bytes + task.written_bytes - task.weight_bytes)
    return (
        task.launch_count * device.forward_launch_s
        + scale * task.forward_flop / device.flop_per_s
        + moved / device.memory_bandwidth_bytes_per_s
    )


def _backward_kernel_s(task: Task, scale: float, device: Device) -> float:
    if not task.needs_gradient or task.launch_count == 0:
        return 0.0
    gradients = float(bool(task.input_gradient_flop)) + float(bool(task.weight_gradient_flop)) or 1.0
    total = task.backward_read_bytes + task.backward_written_bytes
    moved = task.backward_weight_bytes + scale * (total - task.backward_weight_bytes)
    return (
        gradients * task.launch_count * device.backward_launch_s
        + scale * task.backward_flop / device.flop_per_s
        + moved / device.memory_bandwidth_bytes_per_s
    )


def accumulation_s(parameter_bytes: float, device: Device) -> float:
    """Seconds to add one microbatch's gradients to those that are there."""
    return 3.0 * parameter_bytes / device.elementwise_bandwidth_bytes_per_s if parameter_bytes else 0.0


def optimizer_s(parameter_bytes: float, optimizer: str, momentum: float, device: Device) -> float:
    """Seconds of one update of fp32 (master) parameters, with the fixed time of a step; 0 parameters cost only the latter."""
    kind = "sgd-momentum" if optimizer == "sgd" and momentum else optimizer
    moved = OPTIMIZER_BYTES_PER_VALUE[kind] * parameter_bytes / FP32_BYTES
    launch_s = device.optimizer_launch_s if parameter_bytes else 0.0
    return device.step_fixed_s + launch_s + moved / device.optimizer_bandwidth_bytes_per_s
