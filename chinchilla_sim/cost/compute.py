"""Seconds of computation on one device (additive roofline, or a measured curve where a device has one: products.py).

    kernel       t = launches * launch_s + flop / flop_per_s + bytes / memory_bandwidth
    linear layer, forward: as measured in the number format of its weight, where the device has that (linear.py)
    other kernels with weights in another format: the weight is unpacked first, 8 B per value and pass, where the device has formats
    group        sum of its kernels
    microbatch   sum of its kernels + forward_fixed_s or backward_fixed_s, and what the host program takes beside (with_host_s)
    accumulation of a gradient into an existing one reads both and writes one: 3 P bytes
    optimizer    adam reads p, g, m, v and writes p, m, v (28 B per fp32 parameter); sgd 12 B, with momentum 20 B;
                 12 B more beside 2-byte weights
    clipping     the norm reads all gradients (4 B per fp32 value), scaling reads and writes them (8 B)

The sum, not the maximum of the classic roofline (Williams, Waterman & Patterson 2009): on the CPU cores that
were measured, loading weights does not hide behind products (64x784x512 and 8x784x512 both fit within 5 %).
"""

from __future__ import annotations

from math import log, prod

from numpy import interp

from chinchilla_sim.cluster.curves import LinearCurve, ProductCurve
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.linear import FP32, linear_s
from chinchilla_sim.cost.products import product_s, stream_s
from chinchilla_sim.graph.operators import LOOKUPS
from chinchilla_sim.graph.task import ROUNDS, Task

FP32_BYTES = 4
SHALLOWEST = 4.0
"""Fewer multiplications per output than this are no product, but work on single values."""

DEFAULT_DEPTH = 1024.0
"""Where a graph has no shapes."""

ALIGNMENT_BYTES = 16
UNALIGNED_SHARE = 0.4
"""Speed of products with rows that are not multiples of ALIGNMENT_BYTES long (a vocabulary of 50257) over that of aligned ones: a third
in vTrain's runs without tensor parallelism; half by the 25 % that padding to 50304 brought nanoGPT (A. Karpathy, 2023-02-03)."""

FP8_CASTS = 1.0
"""Passes over a product's 2-byte operands that its casts to fp8 take: read once, written twice at half the size (plain and transposed)."""

LARGEST_QUANTIZED_WIDTH = 30_000
"""Wider outputs are vocabularies: heads stay in bf16."""

HOST_CORNER = 2.5
"""Exponent between host and device; 2 to 3 fit vTrain's runs with 1 to 8 samples a microbatch, which cross the corner."""

MIXED_BYTES_PER_VALUE = 12.0
"""An update of fp32 masters beside 2-byte weights: gradients become fp32 (2 + 4), weights are rounded (2), and the norm reads all (4)."""

UNPACKING = {"bf16": (1, 2.0), "int8": (2, 1.0), "int8-static": (2, 1.0), "int8-weights": (2, 1.0), "int4": (6, 0.5)}
"""Kernels that make plain weights of packed ones (`runtime/variant/number_formats.py`), and bytes that a packed value has."""

ROUNDING_PASSES = 9
"""Kernels that round a tensor, each of which reads and writes it: scales, division, rounding, limits, back again, difference and sum."""
ROUNDS_INPUT = ("int8", "int8-static")

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
    if device.products:
        depth = _depth(task)
        return _on_curve(
            device,
            device.products,
            task.launch_count,
            scale * task.forward_flop,
            moved,
            depth,
            _is_aligned(task, depth),
            _is_quantized(task, device),
        )
    measured_s = _linear_s(task, scale, device)
    if measured_s is not None:
        return measured_s + _rounding_s(task, scale, device)
    return (
        task.launch_count * device.forward_launch_s
        + scale * task.forward_flop / device.flop_per_s
        + moved / device.memory_bandwidth_bytes_per_s
        + _unpacking_s(task, device)
        + _rounding_s(task, scale, device)
    )


def is_measured(task: Task, device: Device) -> bool:
    """Whether the device was measured in a linear layer's number format."""
    return _curve_of(task, device) is not None


def _curve_of(task: Task, device: Device) -> LinearCurve | None:
    if task.op != "linear" or not device.linear or not task.shapes:
        return None
    return device.curve_of(task.weight_format or (FP32 if task.output_bytes == FP32_BYTES * prod(task.shapes[0]) else ""))


def _linear_s(task: Task, scale: float, device: Device) -> float | None:
    """Seconds of a linear layer whose number format the device was measured in; None for all else."""
    curve = _curve_of(task, device)
    if curve is None:
        return None
    *batch, outputs = task.shapes[0]
    return linear_s(curve, scale * prod(batch), _depth(task), outputs) / device.core_share


def _unpacking_s(task: Task, device: Device) -> float:
    """Seconds in which a kernel that knows no packed weights gets them as plain ones, every time anew; lookups unpack only the rows."""
    if not task.weight_format or not device.linear or task.op == "linear":
        return 0.0
    passes, stored_bytes = UNPACKING[task.weight_format]
    values = task.output_bytes / FP32_BYTES if task.op in LOOKUPS else task.weight_bytes / stored_bytes
    return passes * (device.elementwise_launch_s + 2.0 * FP32_BYTES * values / device.elementwise_bandwidth_bytes_per_s)


def rereading_s(task: Task, held_bytes: float, device: Device) -> float:
    """Seconds more that a kernel takes to read its weights where all weights between two uses of them have `held_bytes`.

    What was measured of a kernel was measured with its own weights alone.
    """
    if not device.reread or not task.weight_bytes or held_bytes <= task.weight_bytes or task.op in LOOKUPS:
        return 0.0
    sizes, seconds = zip(*device.reread, strict=True)
    alone, together = (float(interp(log(size), [log(one) for one in sizes], seconds)) for size in (task.weight_bytes, held_bytes))
    return task.weight_bytes * max(0.0, together - alone) / device.core_share


def _rounding_s(task: Task, scale: float, device: Device) -> float:
    """Seconds in which a layer that is trained for integer weights rounds them, and an int8 one its input."""
    if ROUNDS not in (attributes := dict(task.attributes)):
        return 0.0
    moved = [task.weight_bytes, *([scale * (task.read_bytes - task.weight_bytes)] if attributes[ROUNDS] in ROUNDS_INPUT else [])]
    return ROUNDING_PASSES * sum(device.elementwise_launch_s + 2.0 * size / device.elementwise_bandwidth_bytes_per_s for size in moved)


def _backward_kernel_s(task: Task, scale: float, device: Device) -> float:
    if not task.needs_gradient or task.launch_count == 0:
        return 0.0
    gradients = float(bool(task.input_gradient_flop)) + float(bool(task.weight_gradient_flop)) or 1.0
    total = task.backward_read_bytes + task.backward_written_bytes
    moved = task.backward_weight_bytes + scale * (total - task.backward_weight_bytes)
    if device.products:
        width, rows = _backward_depths(task, scale)
        parts = [(task.input_gradient_flop, width), (task.weight_gradient_flop, rows)]
        made = [(flop, depth) for flop, depth in parts if flop] or [(0.0, 1.0)]
        launches, share = task.launch_count, moved / len(made)
        aligned, quantized = _is_aligned(task, _depth(task)), _is_quantized(task, device)
        return sum(_on_curve(device, device.products, launches, scale * flop, share, depth, aligned, quantized) for flop, depth in made)
    return (
        gradients * task.launch_count * device.backward_launch_s
        + scale * task.backward_flop / device.flop_per_s
        + moved / device.memory_bandwidth_bytes_per_s
    )


def _on_curve(
    device: Device, curve: ProductCurve, launches: int, flop: float, moved: float, depth: float, aligned: bool, quantized: bool
) -> float:
    """Seconds of one product, or of kernels that only move bytes; views take none."""
    if flop and depth >= SHALLOWEST:
        rate, cast_s = device.peak_flop_per_s * (1.0 if aligned else UNALIGNED_SHARE), 0.0
        if quantized:
            rate, cast_s = device.quantized_flop_per_s, FP8_CASTS * stream_s(curve, moved, device.peak_bytes_per_s) / device.streaming_share
        return product_s(curve, flop, moved, depth, rate, device.peak_bytes_per_s) / device.sustained_share + cast_s
    streaming_s = stream_s(curve, moved, device.peak_bytes_per_s) - curve.launch_s if moved else 0.0
    return launches * curve.launch_s + streaming_s / device.streaming_share


def _is_aligned(task: Task, depth: float) -> bool:
    """Whether the rows of a product's 2-byte operands start at multiples of ALIGNMENT_BYTES, as tensor cores read them."""
    if "conv" in task.op or not task.weight_gradient_flop or not task.shapes or not task.shapes[0]:
        return True
    value_bytes = task.output_bytes / prod(task.shapes[0])
    return value_bytes > 2 or all(width * value_bytes % ALIGNMENT_BYTES == 0 for width in (task.shapes[0][-1], round(depth)))


def _is_quantized(task: Task, device: Device) -> bool:
    """Whether a product runs in fp8: those with weights do, but for embedding and head (Micikevicius et al. 2022)."""
    if not device.quantized_flop_per_s or not task.weight_gradient_flop or "conv" in task.op or not task.shapes or not task.shapes[0]:
        return False
    return task.shapes[0][-1] < LARGEST_QUANTIZED_WIDTH


def with_host_s(device_s: float, host_s: float) -> float:
    """Seconds of a pass that keeps the device busy for `device_s` and the program that starts its kernels for `host_s`.

    The longer of the two, with a soft corner: some stretches of a pass wait for the one, some for the other, and kernels that
    were started ahead cover only part of that.

    >>> round(with_host_s(3.0, 4.0), 2)
    4.69
    """
    longer, shorter = max(device_s, host_s), min(device_s, host_s)
    return longer * (1.0 + (shorter / longer) ** HOST_CORNER) ** (1.0 / HOST_CORNER) if longer else 0.0


def host_shares(device_s: float, host_s: float) -> tuple[float, float]:
    """Weights (a, b) with  a x + b y <= with_host_s(x, y)  for all x and y, and equality at x = device_s, y = host_s.

    The soft corner is a norm; these are the gradient of it there. A sum over tasks with them never exceeds the pass of any part of them.

    >>> a, b = host_shares(3.0, 4.0)
    >>> abs(3.0 * a + 4.0 * b - with_host_s(3.0, 4.0)) < 1e-12
    True
    """
    whole = with_host_s(device_s, host_s)
    if not whole:
        return 1.0, 0.0
    return (device_s / whole) ** (HOST_CORNER - 1), (host_s / whole) ** (HOST_CORNER - 1)


def launches(task: Task) -> tuple[int, int]:
    """Kernels that a program starts for a task's forward and backward pass."""
    forward = backward = 0
    for kernel in task.kernels:
        forward += kernel.launch_count
        products = int(bool(kernel.input_gradient_flop)) + int(bool(kernel.weight_gradient_flop))
        backward += kernel.launch_count * (products or 1) if kernel.needs_gradient else 0
    return forward, backward


def weight_launches(task: Task) -> int:
    """Of the kernels of the backward pass those that make gradients of weights, which may be put off."""
    return sum(kernel.launch_count for kernel in task.kernels if kernel.weight_gradient_flop and kernel.needs_gradient)


def _backward_depths(task: Task, scale: float) -> tuple[float, float]:
    """Length of the sums of the input's gradient (output features) and of the weights' (rows of the batch)."""
    if not task.shapes or not task.shapes[0]:
        return _depth(task), _depth(task)
    shape = task.shapes[0]
    if "conv" in task.op and len(shape) > 2:
        # Sums run over output channels and the kernel's window, about as long as the forward pass's; rows are batch and positions.
        return _depth(task), scale * prod(shape) / shape[1]
    return float(shape[-1]), scale * prod(shape[:-1])


def _depth(task: Task) -> float:
    """Length of the sums that make one output of a product."""
    values = float(prod(task.shapes[0])) if task.shapes and task.shapes[0] else 0.0
    return task.forward_flop / (2.0 * values) if values else DEFAULT_DEPTH


def accumulation_s(parameter_bytes: float, device: Device) -> float:
    """Seconds to add one microbatch's gradients to those that are there."""
    return 3.0 * parameter_bytes / device.elementwise_bandwidth_bytes_per_s if parameter_bytes else 0.0


def clipping_s(gradient_bytes: float, device: Device) -> tuple[float, float]:
    """Seconds of the norm of fp32 gradients, and of scaling them to a smaller one."""
    if not gradient_bytes:
        return 0.0, 0.0
    read_s = gradient_bytes / device.elementwise_bandwidth_bytes_per_s
    return device.elementwise_launch_s + read_s, device.elementwise_launch_s + 2 * read_s


def difference_s(parameter_bytes: float, device: Device) -> float:
    """Seconds to take fp32 weights from those that replicas share, weighted: two are read and one is written."""
    return device.elementwise_launch_s + 3 * parameter_bytes / device.elementwise_bandwidth_bytes_per_s if parameter_bytes else 0.0


def agreement_s(parameter_bytes: float, momentum: float, device: Device) -> float:
    """Seconds to move shared fp32 weights by a mean difference and to copy them to the replica's own; momentum is read and written too."""
    passes = 4 + (3 if momentum else 0)
    return device.elementwise_launch_s + passes * parameter_bytes / device.elementwise_bandwidth_bytes_per_s if parameter_bytes else 0.0


def optimizer_s(parameter_bytes: float, optimizer: str, momentum: float, device: Device, mixed: bool = False) -> float:
    """Seconds of one update of fp32 (master) parameters, with the fixed time of a step; 0 parameters cost only the latter.

    `mixed` is an update with fp32 masters of 2-byte weights.
    """
    kind = "sgd-momentum" if optimizer == "sgd" and momentum else optimizer
    bytes_per_value = OPTIMIZER_BYTES_PER_VALUE[kind] + (MIXED_BYTES_PER_VALUE if mixed else 0.0)
    moved = bytes_per_value * parameter_bytes / FP32_BYTES
    launch_s = device.optimizer_launch_s if parameter_bytes else 0.0
    return device.step_fixed_s + launch_s + moved / device.optimizer_bandwidth_bytes_per_s
