"""Bytes that one device holds of a stage: all the time, for each microbatch, and while its passes run.

Two kinds of software hold them. That of GPUs lays gradients out flat and keeps them, and what is received has buffers of its own. Torch
on CPUs, where this project's runtime plays (`Backend.tensor_by_tensor`), allocates tensor by tensor (`liveness.py`):

    batch         the first stage's inputs of all microbatches are there from the beginning of the step
    gradients     come with the first backward pass, in which activations go as they come, and leave with the update; a later pass
                  makes each anew and adds it. A bucket that leaves on the way is copied to its exchange's buffer and freed
    messages      as many receives as are posted; what a pass takes becomes its input. What is sent ahead is kept until its
                  gradient comes back, what is sent back until the step ends (gloo does not tell when a message has left)
    collectives   inside passes: gloo's threads let go of a finished gather's pieces only when they get a core; one for each
    ZeRO 1, 2     gradients are whole until the exchange, which holds them once as sent and once as it arrives
    ZeRO 3        two units' weights, one unit's gradients; its sum takes them twice, and their share (FSDP2)
    bf16          the update needs gradients in fp32
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from chinchilla_sim.cluster.topology import Backend
from chinchilla_sim.cost.codec import CODECS, Matrices, exchange_kind, payload_bytes
from chinchilla_sim.cost.memory import FP32_BYTES, exchange_parts, state_parts
from chinchilla_sim.graph.shard import ShardedGraph, collectives_of
from chinchilla_sim.graph.task import INPUT_OP, LOSS_OP, Task, TaskGraph
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.buckets import bucket_ends, trained_sizes
from chinchilla_sim.planner.pricing.liveness import Floats, Levels, Liveness
from chinchilla_sim.planner.pricing.recompute import Blocks, Kept, keep_all
from chinchilla_sim.scenario.job import JobSpec

UNITS = 2
"""Of ZeRO 3, whose weights are there at once: the present one, and the next."""


class StageMemory:
    """Memory of stages of one graph under one job."""

    def __init__(
        self, graph: TaskGraph, job: JobSpec, backend: Backend, part: ShardedGraph | None, matrices: Callable[[Sequence[Task]], Matrices]
    ) -> None:
        """`part` is what the graph is of a whole one, where devices work in lockstep."""
        self.graph, self.job, self.value_bytes, self.matrices = graph, job, graph.value_bytes, matrices
        self.tensor_by_tensor, self.threads = backend.tensor_by_tensor, backend.concurrent_collectives
        self.collectives = part.collectives if part else {}
        self.liveness = Liveness(graph, in_blocks=self.tensor_by_tensor)
        self._blocks: dict[str, Blocks] = {}

    def blocks(self, recompute: str) -> Blocks:
        """What is computed again under full or selective recompute."""
        if recompute not in self._blocks:
            self._blocks[recompute] = Blocks(self.graph, recompute)
        return self._blocks[recompute]

    def kept(self, plan: Plan, stage: int, tasks: Sequence[Task]) -> Kept:
        """What a microbatch leaves until its backward pass, for the graph's batch."""
        if not plan.training:
            return Kept(self.liveness.forward_bytes(tasks), 0.0)
        recompute = plan.recompute_of(stage)
        return keep_all(self.graph, tasks) if recompute == "none" else self.blocks(recompute).recompute(tasks)

    def of(
        self, plan: Plan, stage: int, tasks: Sequence[Task], kept: Kept, raw: Sequence[float], raw_gradients: Sequence[float]
    ) -> dict[str, Any]:
        """Fields of the stage's price; `raw` and `raw_gradients` are bytes that a device sends over each boundary, and gets back."""
        scale = plan.microbatch_size / self.graph.batch_size
        held = self.held_parts(plan, stage, tasks, self.graph.trained_bytes_of(tasks), self.graph.untrained_bytes_of(tasks))
        saved, transient = (size * scale for size in (kept.saved_bytes, kept.transient_bytes))
        if not self.tensor_by_tensor:
            held |= {
                "receive buffers": self.buffer_bytes(
                    plan, stage, sum(raw[boundary] for boundary in (stage - 1, stage) if 0 <= boundary < len(raw))
                )
            }
            return {
                "held_parts": held, "saved_bytes": saved, "transient_bytes": transient, "kept_bytes": self._kept_bytes(plan, tasks, saved),
            }  # fmt: skip
        if stage == 0:
            held["batch"] = (
                scale
                * max(plan.replica_microbatch_counts, default=plan.share_of(stage))
                * sum(task.output_bytes for task in self.graph.tasks if task.op == INPUT_OP)
            )
        messages = self._messages(plan, stage, tasks, raw, raw_gradients)
        if not plan.training:
            # The last stage keeps its answers.
            left = scale * tasks[-1].output_bytes if stage == plan.stage_count - 1 else 0.0
            return {"held_parts": held, "saved_bytes": saved, "left_bytes": left, **messages}
        return {"held_parts": held, **self._passes(plan, stage, tasks, scale), **messages}

    def _passes(self, plan: Plan, stage: int, tasks: Sequence[Task], scale: float) -> dict[str, Any]:
        """What is kept for each microbatch, and the most that every pass needs."""
        recompute, parameters = plan.recompute_of(stage), self.graph.trained_bytes_of(tasks)
        leaving = self.boundary(plan, stage) if stage < plan.stage_count - 1 else []
        returning = sum(task.output_bytes for task in leaving if task.needs_gradient)
        arriving = self.boundary(plan, stage - 1) if stage else []
        levels = self.liveness.levels(tasks, None if recompute == "none" else self.blocks(recompute), arriving, returning)
        first, later, forward = self._growing(plan, stage, tasks, levels)
        saved, kept = scale * levels.saved, scale * float(levels.deferred.sum())
        transients = {Op.F: (forward, forward)}
        if plan.splits_backward:
            highest = levels.highest(scale, np.zeros(len(tasks)), split=True) - saved
            transients |= {Op.I: (highest, highest)}
            transients |= {Op.W: (levels.highest_apart(scale, first) - kept, levels.highest_apart(scale, later) - kept)}
        held = scale * self._collective_bytes(plan, tasks)
        transients |= {Op.B: (levels.highest(scale, first) - saved, levels.highest(scale, later) - saved)}
        replicas = plan.exchange_degree_of(stage)
        gradients = parameters / replicas if plan.zero_stage == 3 else parameters
        return {
            "saved_bytes": saved,
            "kept_bytes": kept if plan.splits_backward else saved,
            "transients": {op: (first + held, later + held) for op, (first, later) in transients.items()},
            "gradient_bytes": gradients,
            "update_bytes": self._update_bytes(plan, stage, parameters),
        }

    def _growing(self, plan: Plan, stage: int, tasks: Sequence[Task], levels: Levels) -> tuple[Floats, Floats, float]:
        """Gradients (and gathered weights) while the first and a later backward pass are at each task; what a forward pass gathers."""
        replicas, sizes = plan.exchange_degree_of(stage), trained_sizes(self.graph, tasks)
        ends = bucket_ends(sizes, plan.gradient_buckets)
        if replicas > 1 and plan.zero_stage == 3:
            return self._gathering(tasks, levels, ends, sizes, replicas)
        whole = levels.growth()
        if replicas == 1 or not plan.buckets_leave_early or plan.share_of(stage) > 1:
            return whole, levels.made, 0.0
        # Of buckets that have left there is the buffer they were copied to; with ZeRO it is new, and so is the one for what arrives.
        own = levels.growth(ends)
        new = plan.zero_stage > 0 and exchange_kind(plan.gradient_codecs[stage], plan.zero_stage) == "reduce_scatter"
        return own + (2 if new else 0) * (whole - own), levels.made, 0.0

    @staticmethod
    def _gathering(
        tasks: Sequence[Task], levels: Levels, ends: Sequence[int], sizes: Sequence[float], replicas: int
    ) -> tuple[Floats, Floats, float]:
        units = [sum(sizes[start:end]) for start, end in pairwise([0, *ends])]
        gathered = min(UNITS, len(units)) * max(units)
        own, whole = levels.growth(ends), levels.growth()
        # The loss is none of FSDP's modules.
        later = own + gathered * np.array([task.op != LOSS_OP for task in tasks])
        for (start, _), size in zip(pairwise([0, *ends]), units, strict=True):
            later[start] = max(later[start], (2 + 1 / replicas) * size + (gathered if start else 0.0))
        return later + (whole - own) / replicas, later, gathered

    def _update_bytes(self, plan: Plan, stage: int, parameters: float) -> float:
        """What exchange and update need beside the gradients."""
        replicas, plain = plan.exchange_degree_of(stage), exchange_kind(plan.gradient_codecs[stage], plan.zero_stage) == "reduce_scatter"
        shards = replicas if plan.zero_stage else 1
        fp32 = parameters * FP32_BYTES / self.value_bytes / shards if self.value_bytes < FP32_BYTES else 0.0
        exchange = parameters if plan.zero_stage in (1, 2) and replicas > 1 and plain else 0.0
        return max(fp32, exchange)

    def _collective_bytes(self, plan: Plan, tasks: Sequence[Task]) -> float:
        """Pieces of gathers inside passes that are over and not let go of yet, for the graph's batch; sums count where they are used."""
        forward, backward = collectives_of(self.collectives[task.name] for task in tasks if task.name in self.collectives)
        tensors = {"all_gather": plan.tensor_parallel_degree + 1.0, "all_to_all": 2.0}
        return self.threads * max((one.payload_bytes * tensors.get(one.kind, 0.0) for one in (*forward, *backward)), default=0.0)

    def _messages(
        self, plan: Plan, stage: int, tasks: Sequence[Task], raw: Sequence[float], raw_gradients: Sequence[float]
    ) -> dict[str, Any]:
        """What a posted receive takes, and what is kept of what was sent, each way."""
        before, behind = stage > 0 and plan.crosses(stage - 1), stage < plan.stage_count - 1 and plan.crosses(stage)
        awaited, sent = [0.0, 0.0], [0.0, 0.0]
        if before:
            awaited[0] = self._packed(plan, stage - 1, raw[stage - 1])
            sent[1] = self._packed(plan, stage - 1, raw_gradients[stage - 1]) if plan.training else 0.0
        if behind:
            awaited[1] = self._packed(plan, stage, raw_gradients[stage]) if plan.training else 0.0
            leaving = self.boundary(plan, stage)
            saved = {name for task in tasks for name in task.saved} if plan.training and plan.recompute_of(stage) == "none" else set()
            # A single tensor is sent from where it lies.
            there = plan.activation_codecs[stage] == "none" and len(leaving) == 1 and leaving[0].name in saved
            sent[0] = 0.0 if there else self._packed(plan, stage, raw[stage])
        return {"awaited_bytes": (awaited[0], awaited[1]), "sent_bytes": (sent[0], sent[1])}

    def _packed(self, plan: Plan, boundary: int, raw_bytes: float) -> float:
        return payload_bytes(plan.activation_codecs[boundary], raw_bytes, self.value_bytes)

    def boundary(self, plan: Plan, stage: int) -> list[Task]:
        """Tasks whose outputs cross the boundary behind a stage."""
        return self.graph.live_after(self.graph.position[plan.stages[stage][-1]])

    @staticmethod
    def buffer_bytes(plan: Plan, stage: int, message_bytes: float) -> float:
        """Receive buffers of messages that are awaited at once."""
        count = plan.share_of(stage) if plan.free_replicas else plan.microbatch_count
        return min(plan.receives_in_flight, count) * message_bytes

    def held_parts(
        self, plan: Plan, stage: int, tasks: Sequence[Task], parameters: float, frozen: float, gradients: bool = False
    ) -> dict[str, float]:
        """What a stage holds all the time (with `gradients` also where they come and go).

        On GPUs ZeRO 3 holds two gathered buckets beside its shards, and one of whole gradients.
        """
        if not plan.training:
            return {"weights": parameters + frozen}
        replicas, job = plan.exchange_degree_of(stage), self.job
        parts = state_parts(parameters, job.optimizer, job.momentum, job.precision, plan.zero_stage, replicas)
        parts["weights"] += frozen
        codec = CODECS[plan.gradient_codecs[stage]]
        matrices = self.matrices(tasks) if codec.name == "low-rank" else None
        if self.tensor_by_tensor:
            parts["gradients"] = (parameters if plan.zero_stage < 3 else parameters / replicas) if gradients else 0.0
            whole = plan.zero_stage == 0 or exchange_kind(codec.name, plan.zero_stage) != "reduce_scatter"
            if replicas > 1 and plan.zero_stage < 3 and whole:
                parts |= exchange_parts(codec.name, parameters, self.value_bytes, replicas, matrices)
        elif replicas > 1 and plan.zero_stage == 3:
            parts["exchange buffers"] = 3 * parameters / plan.gradient_buckets
        elif replicas > 1:
            payload = payload_bytes(codec.name, parameters, self.value_bytes, matrices)
            parts["exchange buffers"] = parameters + payload * (1 if codec.summable else replicas)
            if codec.feedback:
                parts["error feedback"] = parameters
        if plan.local_steps > 1:
            copies = 2 if job.outer_momentum else 1
            parts["shared weights"] = copies * parameters * FP32_BYTES / self.value_bytes
        return parts

    def _kept_bytes(self, plan: Plan, tasks: Sequence[Task], saved: float) -> float:
        """What the weight gradients still need once the input's gradient is made: inputs of products, and gradients of their outputs."""
        if not plan.training:
            return 0.0
        kernels = [kernel for task in tasks for kernel in task.kernels if kernel.weight_gradient_flop]
        inputs = {name for kernel in kernels for name in kernel.saved}
        kept = sum(self.graph.tasks[self.graph.position[name]].output_bytes for name in sorted(inputs) if name in self.graph.position)
        return min(saved, (kept + sum(kernel.output_bytes for kernel in kernels)) * plan.microbatch_size / self.graph.batch_size)
