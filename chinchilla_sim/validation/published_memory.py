"""Peak memory of a published row, counted as its software holds it and in the definition that the row uses.

A device holds, per parameter of its part (mixed precision with adam; v is 2 in half precision):

    weights v, gradients v, fp32 masters and moments 12     divided by ZeRO (`cost.memory.state_parts`)
    flat gradients and their bucket, 2 v                    ZeRO 1 and 2 (also on one replica: the optimizer flattens all the same)
    buckets, v                                              plain data parallelism (Li et al. 2020)
    two gathered units and the gradients of one, v each     ZeRO 3: a unit is a layer, what lies outside layers is a unit of its own
    cast weights, 2                                         autocast (its cache of half-precision copies)
    fp32 gradients 4, the update's temporary 4              during the optimizer's step only, when no activations are there

and the activations that the schedule keeps in flight. The peak is the larger of the passes' and the step's. The CUDA context and
the buffers of communicators come on top where the device itself was asked (nvidia-smi) and where it must fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from chinchilla_sim.cost.memory import FP32_BYTES, STATE_COPIES, state_parts
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.prices import Pricing
from chinchilla_sim.planner.pricing import Pricer
from chinchilla_sim.planner.program import passes_of
from chinchilla_sim.validation.published_model import Model, Row, count_of, precision_of, repeats_of

CONTEXT_BYTES = 0.8e9
"""CUDA context with PyTorch's kernels loaded and cuBLAS's workspace; round figure, 0.5 to 1 GB are reported for V100 to H100."""
COMMUNICATOR_BYTES = 0.25e9
"""Channels' buffers of one NCCL communicator to a few peers (4 MiB each way and peer and channel); round figure."""
GATHERED_UNITS = 2.0
EIGHT_BIT_COPIES = 0.5
"""Two moments of a byte each, in fp32 values (Dettmers et al. 2022)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the fullest device: asked for by tensors, occupied on the device; and what the row's authors would read."""

    allocated_bytes: float
    occupied_bytes: float
    reported_bytes: float


@dataclass(frozen=True, slots=True)
class _Software:
    """How a row trains, as far as memory goes."""

    value_bytes: float
    optimizer: str
    mixed: bool
    autocast: bool
    zero_stage: int
    replicas: int
    plain: bool

    def state_bytes(self, parameters: float) -> float:
        """Weights, gradients, masters and moments of so many parameters."""
        stored = parameters * (FP32_BYTES if self.autocast else self.value_bytes)
        zero = self.zero_stage if self.replicas > 1 else 0
        kind = "sgd" if self.optimizer == "sgd" else "adam"
        parts = state_parts(stored, kind, 0.0, "bf16" if self.mixed else "fp32", zero, self.replicas)
        if self.optimizer == "8-bit":
            parts["optimizer state"] *= (1 + EIGHT_BIT_COPIES) / (1 + STATE_COPIES["adam"]) if self.mixed else EIGHT_BIT_COPIES / 2
        return sum(parts.values()) + (parameters * self.value_bytes if self.autocast else 0.0)

    def exchange_bytes(self, parameters: float, root: float, layers: int) -> float:
        """Buffers of the gradients' exchange and of gathered weights; `root` of the parameters lie outside the `layers`."""
        if self.zero_stage == 3:
            unit = (parameters - root) / max(1, layers)
            return (2 * root + (GATHERED_UNITS + 1) * unit) * self.value_bytes if self.replicas > 1 else 0.0
        if self.zero_stage:
            return 2 * parameters * self.value_bytes
        return parameters * self.value_bytes if self.plain and self.replicas > 1 else 0.0

    def step_bytes(self, parameters: float) -> float:
        """What the optimizer's step needs for a while."""
        own = parameters / (self.replicas if self.zero_stage else 1)
        return own * FP32_BYTES * (self.mixed + (self.optimizer != "sgd"))


def _software_of(row: Row, plan: Plan) -> _Software:
    text, optimizer = row["precision"].lower(), row["optimizer"].lower()
    half, pure = precision_of(row) in ("fp16", "bf16"), "pure" in text
    autocast = half and ("amp" in text or "autocast" in text)
    return _Software(
        value_bytes=2.0 if half else FP32_BYTES,
        optimizer="sgd" if "sgd" in optimizer else "8-bit" if "8bit" in optimizer or "8-bit" in optimizer else "adam",
        mixed=half and not pure and not autocast,
        autocast=autocast,
        zero_stage=min(3, count_of(row, "zero_stage", 0)),
        replicas=plan.exchange_degree,
        plain=plan.tensor_parallel_degree * plan.pipeline_parallel_degree == 1,
    )


def memory_of(row: Row, model: Model, plan: Plan, pricer: Pricer, pricing: Pricing) -> Memory:
    """Peak of every position of a pipeline, and what the row reports of them."""
    graph, software = pricer.for_devices(plan).graph, _software_of(row, plan)
    longest = repeats_of(model)[:1]
    inside = {task.name for repeat in longest for task in graph.compute_tasks[repeat.start : repeat.end]}
    peaks = []
    for rank, passes in zip(plan.pipeline(0), passes_of(plan, 0), strict=True):
        tasks = [graph.tasks[graph.position[name]] for stage in plan.position[rank][0] for name in plan.stages[stage]]
        parameters = graph.trained_bytes_of(tasks) / graph.value_bytes
        root = graph.trained_bytes_of([task for task in tasks if task.name not in inside]) / graph.value_bytes
        layers = sum(repeat.count for repeat in longest)
        parts = pricing.held_parts(plan, rank)
        moving = pricing.peak_bytes(plan, rank, passes) - sum(parts.values()) + parts["receive buffers"]
        held = software.state_bytes(parameters) + software.exchange_bytes(parameters, root, layers)
        peaks.append(held + graph.untrained_bytes_of(tasks) + max(moving, software.step_bytes(parameters)))
    context = context_bytes(plan)
    return Memory(max(peaks), max(peaks) + context, _reported(row["mem_def"], peaks, context))


def context_bytes(plan: Plan) -> float:
    """What a device has occupied before the first tensor: its context, and a communicator for the world and for each axis."""
    axes = (plan.tensor_parallel_degree, plan.pipeline_parallel_degree, plan.data_parallel_degree, plan.context_parallel_degree)
    communicators = sum(axis > 1 for axis in axes) + (len(plan.slots) > 1)
    return CONTEXT_BYTES + COMMUNICATOR_BYTES * communicators


def _reported(definition: str, peaks: list[float], context: float) -> float:
    """Bytes in the row's definition: nvidia-smi shows the first device, programs print what their tensors ask for.

    >>> _reported("GB, nvidia-smi", [2.0, 3.0], 1.0), _reported("max_memory_allocated", [2.0, 3.0], 1.0), _reported("GB", [2.0, 3.0], 1.0)
    (3.0, 3.0, 4.0)
    """
    text = definition.lower()
    if "smi" in text:
        return peaks[0] + context
    return max(peaks) + (0.0 if re.search(r"alloc|reserved|printed|torch", text) else context)
