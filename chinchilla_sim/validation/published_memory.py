"""Peak memory of a published row, counted as its software holds it and in the definition that the row uses.

A device holds, per parameter of its part (mixed precision with adam; v is 2 in half precision):

    weights v, gradients v, fp32 masters and moments 12     divided by ZeRO (`cost.memory.state_parts`)
    buckets, v                                              plain data parallelism (Li et al. 2020)
    two gathered units and the gradients of one, v each     ZeRO 3: a unit is a layer, what lies outside layers is a unit of its own
    cast weights, 2                                         autocast (its cache of half-precision copies)

While the passes run the activations that the schedule keeps in flight come on top. The optimizer's step needs instead

    fp32 gradients, 4                 of what a device updates, where its gradients are kept in half precision
    flat gradients and bucket, 2 v    ZeRO 1 and 2, also on one replica: the optimizer flattens all the same
    update, 8                         torch's Adam on one flat tensor: root of the second moments, and the quotient (fused kernels: none)

The allocated peak is the larger of the two. What the device itself shows (nvidia-smi) has the CUDA context and the communicators'
buffers on top, and keeps the flat tensors' segments while the passes run: they do not fit into the holes that activations leave.
A device must have room for the allocated peak, the context, and its largest tensor once more, whose old place is split by
then (fragmentation).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_sim.cluster.topology import CONTEXT_BYTES
from chinchilla_sim.cost.memory import FP32_BYTES, STATE_COPIES, state_parts
from chinchilla_sim.graph.task import LOSS_OP, Task, TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.pricing.recompute import loss_parts
from chinchilla_sim.planner.program import passes_of
from chinchilla_sim.validation.published_model import FUSED_FAMILIES, Model, Row, count_of, precision_of, repeats_of

COMMUNICATOR_BYTES = 0.25e9
"""Channels' buffers of one NCCL communicator to a few peers (4 MiB each way and peer and channel); round figure."""
GATHERED_UNITS = 2.0
UPDATE_BYTES = 8.0
LOSS_SHARE = {"bert": 80 / 512, "transformer_xl": 0.1}
"""Share of the positions (BERT predicts 80 of 512, or a span) or of the vocabulary (adaptive softmax: the first cluster for every
position, Grave et al. 2017) whose logits the code really makes, where the formula makes all; 1 for other models."""
EIGHT_BIT_COPIES = 0.5
"""Two moments of a byte each, in fp32 values (Dettmers et al. 2022)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the fullest device: asked for by tensors, needed for the step to succeed; and what the row's authors would read."""

    allocated_bytes: float
    needed_bytes: float
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
    flattens: bool
    fused_update: bool

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
        """Buckets of the gradients, or gathered weights; `root` of the parameters lie outside the `layers`."""
        if self.replicas == 1:
            return 0.0
        if self.zero_stage == 3:
            unit = (parameters - root) / max(1, layers)
            return (2 * root + (GATHERED_UNITS + 1) * unit) * self.value_bytes
        return parameters * self.value_bytes if self.plain and not self.zero_stage else 0.0

    def flat_bytes(self, parameters: float) -> float:
        """Flat gradients and the bucket that they are exchanged in."""
        return 2 * parameters * self.value_bytes if self.zero_stage in (1, 2) else 0.0

    def step_bytes(self, parameters: float) -> float:
        """What the optimizer's step needs for a while beside the flat gradients."""
        own = parameters / (self.replicas if self.zero_stage else 1)
        fp32_gradients = self.mixed and (self.zero_stage < 3 or self.flattens)
        return own * (FP32_BYTES * fp32_gradients + (UPDATE_BYTES if self.flattens and not self.fused_update else 0.0))


def _software_of(row: Row, plan: Plan) -> _Software:
    text, optimizer = row["precision"].lower(), row["optimizer"].lower()
    half, pure = precision_of(row) in ("fp16", "bf16"), "pure" in text
    autocast = half and ("amp" in text or "autocast" in text)
    zero_stage = min(3, count_of(row, "zero_stage", 0))
    return _Software(
        value_bytes=2.0 if half else FP32_BYTES,
        optimizer="sgd" if "sgd" in optimizer else "8-bit" if "8bit" in optimizer or "8-bit" in optimizer else "adam",
        mixed=half and not pure and not autocast,
        autocast=autocast,
        zero_stage=zero_stage,
        replicas=plan.exchange_degree,
        plain=plan.tensor_parallel_degree * plan.pipeline_parallel_degree == 1,
        flattens=zero_stage in (1, 2) or bool(re.search(r"zero-?1", row["other_config"].lower())),
        fused_update=row["model_family"] not in FUSED_FAMILIES,
    )


def memory_of(row: Row, model: Model, plan: Plan, pricer: Pricer, pricing: Pricing) -> Memory:
    """Peak of every position of a pipeline, and what the row reports of them."""
    graph, software, context = pricer.for_devices(plan).graph, _software_of(row, plan), context_bytes(plan)
    longest = repeats_of(model)[:1]
    inside = {task.name for repeat in longest for task in graph.compute_tasks[repeat.start : repeat.end]}
    layers, scale, loss_share = sum(one.count for one in longest), pricer.scale(plan.microbatch_size), LOSS_SHARE.get(model.formula, 1.0)
    allocated, reserved, needed = [], [], []
    for rank, passes in zip(plan.pipeline(0), passes_of(plan, 0), strict=True):
        tasks = [graph.tasks[graph.position[name]] for stage in plan.position[rank][0] for name in plan.stages[stage]]
        parameters = graph.trained_bytes_of(tasks) / graph.value_bytes
        root = graph.trained_bytes_of([task for task in tasks if task.name not in inside]) / graph.value_bytes
        held = software.state_bytes(parameters) + graph.untrained_bytes_of(tasks)
        parts = pricing.held_parts(plan, rank)
        moving = pricing.peak_bytes(plan, rank, passes) - sum(parts.values()) + parts["receive buffers"]
        moving -= (1.0 - loss_share) * scale * sum(sum(loss_parts(graph, task)) for task in tasks)
        busy, flat = held + moving + software.exchange_bytes(parameters, root, layers), software.flat_bytes(parameters)
        allocated.append(max(busy, held + flat + software.step_bytes(parameters)))
        reserved.append(max(allocated[-1], busy + flat))
        needed.append(max(allocated[-1], busy + scale * _largest_bytes(graph, tasks, loss_share)))
    return Memory(max(allocated), max(needed) + context, _reported(row["mem_def"], allocated, reserved, context))


def _largest_bytes(graph: TaskGraph, tasks: Sequence[Task], loss_share: float) -> float:
    """The largest tensor that a kernel of the graph's batch makes: of a loss its logits in fp32."""
    logits = [loss_parts(graph, task)[:2] for task in tasks]
    made = {name for task in tasks if task.op == LOSS_OP for name in task.saved}
    others = (task.output_bytes for task in tasks if task.launch_count and task.name not in made)
    return max((*(loss_share * max(pair) for pair in logits), *others), default=0.0)


def context_bytes(plan: Plan) -> float:
    """What a device has occupied before the first tensor: its context, and a communicator for the world and for each axis."""
    axes = (plan.tensor_parallel_degree, plan.pipeline_parallel_degree, plan.data_parallel_degree, plan.context_parallel_degree)
    communicators = sum(axis > 1 for axis in axes) + (len(plan.slots) > 1)
    return CONTEXT_BYTES + COMMUNICATOR_BYTES * communicators


def _reported(definition: str, allocated: list[float], reserved: list[float], context: float) -> float:
    """Bytes in the row's definition: nvidia-smi shows the first device, programs print what their tensors ask for.

    Where nothing is said the fullest device was looked at.

    >>> [_reported(text, [2.0, 3.0], [4.0, 5.0], 1.0) for text in ("GB, nvidia-smi", "max_memory_allocated", "reserved", "GB")]
    [5.0, 3.0, 5.0, 6.0]
    """
    text = definition.lower()
    if "smi" in text:
        return reserved[0] + context
    if "reserved" in text:
        return max(reserved)
    return max(allocated) if re.search(r"alloc|printed|torch", text) else max(reserved) + context
