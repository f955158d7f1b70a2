"""Pricing: seconds and bytes of every action of a plan on a cluster. All physics is called from `cost/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.cost.codec import CODECS, Matrices, exchange_kind, least_payload_bytes, matrices_of, payload_bytes
from chinchilla_sim.cost.compute import FP32_BYTES, accumulation_s, clipping_s, launches, optimizer_s, weight_launches, with_host_s
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.shard import ShardedGraph, shard_graph
from chinchilla_sim.graph.task import Task, TaskGraph
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.blocking import blocking_of
from chinchilla_sim.planner.pricing.buckets import bucket_ends, trained_sizes
from chinchilla_sim.planner.pricing.exchanges import Exchanges
from chinchilla_sim.planner.pricing.holdings import Holding, growing
from chinchilla_sim.planner.pricing.packing import between_rounds_of, boundary_codec_s, gradient_codec_s, local_steps_s, sharding_s
from chinchilla_sim.planner.pricing.prices import NO_EXCHANGE, Bucket, Exchange, Pricing, StagePrice
from chinchilla_sim.planner.pricing.recompute import Blocks
from chinchilla_sim.planner.pricing.sharing import norm_exchanges, shared_exchanges, with_sharing
from chinchilla_sim.planner.pricing.stage_memory import StageMemory
from chinchilla_sim.planner.pricing.task_seconds import TaskSeconds
from chinchilla_sim.scenario.job import JobSpec


class Pricer:
    """Prices plans of one graph, cluster and job; task times are kept between plans.

    Times that the `profile` measured come before formulas.
    """

    def __init__(
        self,
        graph: TaskGraph,
        cluster: Cluster,
        job: JobSpec,
        profile: Profile | None = None,
        part: ShardedGraph | None = None,
        whole: TaskGraph | None = None,
    ) -> None:
        """With a `part` of a `whole` graph it prices what one device of a group does."""
        self.graph, self.cluster, self.job, self.profile = graph, cluster, job, profile or Profile()
        self.part, self.collectives = part, part.collectives if part else {}
        self._device_pricers: dict[tuple[int, bool, int, int], Pricer] = {}
        self.value_bytes = graph.value_bytes
        kernels = {kernel.name: kernel for task in whole.tasks for kernel in task.kernels} if whole else {}
        held_bytes = graph.total_parameter_bytes if job.kind == "inference" else 0.0
        self._task_seconds = TaskSeconds(graph.batch_size, self.profile, kernels, held_bytes)
        self._memory = StageMemory(graph, job, cluster.backend, part, self.matrices)
        self._holdings_from: dict[tuple[int, str], list[Holding]] = {}
        self._stage_prices: dict[tuple[object, ...], StagePrice] = {}
        self._exchanges = Exchanges(cluster)
        self._matrices: dict[tuple[str, str, int], Matrices] = {}

    def scale(self, microbatch_size: int) -> float:
        """Microbatch in units of the graph's batch."""
        return microbatch_size / self.graph.batch_size

    def task_s(self, task: Task, microbatch_size: int, device: Device, busy_ranks: int) -> tuple[float, float, float]:
        """Seconds of one task (or group) while so many ranks are busy: forward, backward, and the backward's weight gradients."""
        return self._task_seconds.of_task(task, microbatch_size, device, self.cluster.measured_count(busy_ranks))

    def tasks_of(self, plan: Plan, stage: int) -> list[Task]:
        """Task objects of a stage."""
        return [self.graph.tasks[self.graph.position[name]] for name in plan.stages[stage]]

    def boundary_tasks(self, plan: Plan, stage: int) -> list[Task]:
        """Tasks whose outputs cross the boundary behind a stage."""
        return self.graph.live_after(self.graph.position[plan.stages[stage][-1]])

    def for_devices(self, plan: Plan) -> Pricer:
        """The pricer of what one device does: of its part of the graph where several devices work in lockstep."""
        key = plan.tensor_parallel_degree, plan.sequence_parallel, plan.context_parallel_degree, plan.expert_parallel_degree
        if key == (1, False, 1, 1):
            return self
        if key not in self._device_pricers:
            part = shard_graph(self.graph, *key)
            # What was measured was measured whole, and says nothing of what devices hold.
            profile = replace(self.profile, memory_bytes={}, colocated={}, variants={}, input_s=0.0)
            self._device_pricers[key] = Pricer(part.graph, self.cluster, self.job, profile, part, self.graph)
        return self._device_pricers[key]

    def price(self, plan: Plan) -> Pricing:
        """Seconds and bytes of every action of the plan."""
        scale, device_pricer = self.scale(plan.microbatch_size), self.for_devices(plan)
        stages = range(plan.stage_count)
        boundaries = [self.boundary_tasks(plan, stage) for stage in stages[:-1]]
        raw = [scale * sum(task.output_bytes for task in tasks) for tasks in boundaries]
        raw_gradients = [scale * sum(task.output_bytes for task in tasks if task.needs_gradient) for tasks in boundaries]
        # Each device of a rank packs and sends its part of what crosses a boundary.
        own, own_gradients = ([size / plan.group_width for size in sizes] for sizes in (raw, raw_gradients))
        # Replicas on like devices cost the same: each kind is priced once.
        prices: dict[tuple[int, Device], StagePrice] = {}
        for stage in stages:
            for rank in plan.placement[stage]:
                device = self.device_of(plan, rank)
                if (stage, device) not in prices:
                    prices[stage, device] = device_pricer.kept_stage_price(plan, stage, device, own, own_gradients)
        return Pricing(
            stages=tuple(tuple(prices[stage, self.device_of(plan, rank)] for rank in plan.placement[stage]) for stage in stages),
            boundary_bytes=tuple(
                self._message_bytes(codec, tasks, scale) for codec, tasks in zip(plan.activation_codecs, boundaries, strict=True)
            ),
            boundary_gradient_bytes=tuple(
                self._message_bytes(codec, [task for task in tasks if task.needs_gradient], scale)
                for codec, tasks in zip(plan.activation_codecs, boundaries, strict=True)
            ),
            gradients=tuple(device_pricer.gradient_exchange(plan, stage) for stage in stages),
            weights=tuple(device_pricer.weight_exchange(plan, stage) for stage in stages) if plan.zero_stage else (),
            shared=shared_exchanges(plan, device_pricer.graph, self.cluster, self._exchanges.ring),
            norm=norm_exchanges(plan, self.cluster, self._exchanges.ring),
            input_s=self._of_ranks(plan, lambda device: self.profile.input_s / device.core_share),
            message_s=self._of_ranks(plan, lambda device: device.host_message_s),
        )

    def _of_ranks(self, plan: Plan, seconds: Callable[[Device], float]) -> tuple[float, ...]:
        """Seconds by rank; empty where there are none."""
        found = tuple(seconds(self.device_of(plan, rank)) for rank in range(plan.rank_count))
        return found if any(found) else ()

    def device_of(self, plan: Plan, rank: int) -> Device:
        """Device of a rank while all ranks of the plan are busy."""
        return self.cluster.device(plan.slots_of(rank)[0], len(plan.slots))

    def gradient_exchange(self, plan: Plan, stage: int) -> Exchange:
        """The exchange of all gradients of a stage among its replicas, for one device of a rank."""
        return self._gradients(plan, stage, self.tasks_of(plan, stage))

    def weight_exchange(self, plan: Plan, stage: int) -> Exchange:
        """The all-gather of a stage's sharded weights."""
        return self._exchanges.of_weights(plan, stage, self.graph.trained_bytes_of(self.tasks_of(plan, stage)))

    def _message_bytes(self, codec: str, tasks: Sequence[Task], scale: float) -> float:
        """Payload of a message that packs the outputs of several tasks, each on its own."""
        return sum(payload_bytes(codec, scale * task.output_bytes, self.value_bytes) for task in tasks)

    def exchange_s_per_byte(self, plan: Plan, stage: int) -> float:
        """Seconds of a stage's gradient exchange per byte of its parameters, if it held the whole model."""
        total = self.graph.trained_bytes_of(self.graph.tasks)
        return self._gradients(plan, stage, self.graph.tasks).idle_s / total if total else 0.0

    def matrices(self, tasks: Sequence[Task]) -> Matrices:
        """Rows and columns of what neighbouring tasks train."""
        key = tasks[0].name, tasks[-1].name, len(tasks)
        if key not in self._matrices:
            self._matrices[key] = matrices_of([one for one in self.graph.weights_of(tasks) if one.trained], self.value_bytes)
        return self._matrices[key]

    def gradient_payload_bytes(self, codec: str, tasks: Sequence[Task]) -> float:
        """What a rank gives to the exchange of the gradients of neighbouring tasks."""
        return payload_bytes(codec, self.graph.trained_bytes_of(tasks), self.value_bytes, self.matrices(tasks))

    def least_payloads(self, codecs: Sequence[str], tasks: Sequence[Task]) -> NDArray[np.float64]:
        """Bytes that each trained weight of some tasks adds at least to what a rank exchanges, by codec and weight."""
        weights = [one for one in self.graph.weights_of(tasks) if one.trained]
        shapes = [matrices_of([one], self.value_bytes) for one in weights]
        payloads = [
            [least_payload_bytes(codec, one.bytes, self.value_bytes, shape) for one, shape in zip(weights, shapes, strict=True)]
            for codec in codecs
        ]
        return np.array(payloads, dtype=np.float64)

    def kept_stage_price(self, plan: Plan, stage: int, device: Device, raw: Sequence[float], raw_gradients: Sequence[float]) -> StagePrice:
        """The price of a stage, from another plan where all that it depends on is the same."""
        around = slice(max(0, stage - 1), stage + 1)
        group = plan.slots_of(plan.placement[stage][0]) if self.collectives else ()
        experts = plan.placement[stage][: plan.expert_parallel_degree] if plan.expert_parallel_degree > 1 else ()
        experts = tuple(plan.slots_of(rank)[0] for rank in experts)
        key = (
            *(plan.stages[stage], device, plan.microbatch_size, plan.microbatch_count, len(plan.slots), plan.training),
            *(
                stage > 0 and plan.crosses(stage - 1),
                stage < plan.stage_count - 1 and plan.crosses(stage),
                plan.activation_codecs[around],
                tuple(raw[around]),
                tuple(raw_gradients[around]),
            ),
            *(plan.gradient_codecs[stage], plan.gradient_buckets, plan.exchange_degree_of(stage), plan.zero_stage),
            *(
                plan.recompute_of(stage),
                plan.receives_in_flight,
                plan.clips_gradients,
                plan.local_steps > 1,
                plan.share_of(stage),
                plan.replica_microbatch_counts,
                plan.buckets_leave_early,
                plan.splits_backward,
                group,
                experts,
            ),
        )
        if key not in self._stage_prices:
            self._stage_prices[key] = self.stage_price(plan, stage, device, raw, raw_gradients)
        return self._stage_prices[key]

    def stage_price(self, plan: Plan, stage: int, device: Device, raw: Sequence[float], raw_gradients: Sequence[float]) -> StagePrice:
        """One stage on one device of its rank; `raw` are bytes that this device sends over each boundary."""
        tasks = self.tasks_of(plan, stage)
        times = [self.task_s(task, plan.microbatch_size, device, len(plan.slots)) for task in tasks]
        parameters = self.graph.trained_bytes_of(tasks)
        weights_s = sum(weights for _, _, weights in times)
        backward_s = device.backward_fixed_s + sum(backward for _, backward, _ in times)
        action_s = {
            Op.F: device.forward_fixed_s + sum(forward for forward, _, _ in times),
            Op.B: backward_s,
            Op.I: backward_s - weights_s,
            Op.W: weights_s,
            Op.OPTIM: self._optimizer_s(plan, stage, parameters, device),
        }
        if plan.clips_gradients:
            norm_s, scaling_s = clipping_s(self._updated_bytes(plan, stage, parameters), device)
            action_s |= {Op.NORM_GRAD: norm_s, Op.OPTIM: action_s[Op.OPTIM] + scaling_s}
        action_s |= boundary_codec_s(plan, stage, raw, raw_gradients, device)
        action_s |= gradient_codec_s(plan, stage, parameters, device, self.matrices(tasks))
        for op, seconds in local_steps_s(plan, self._updated_bytes(plan, stage, parameters), self.job.outer_momentum, device).items():
            action_s[op] = action_s.get(op, 0.0) + seconds
        kept = self._memory.kept(plan, stage, tasks)
        if kept.again:
            again_s = self._again_s(tasks, kept.again, plan.microbatch_size, device, len(plan.slots))
            for op in (Op.B, Op.I):
                action_s[op] += again_s
        blocking_s, blocking_bytes = self._blocking(plan, stage, tasks, kept.again)
        for op, floor_s in self._host_floors_s(tasks, kept.again, device).items():
            blocked_s = blocking_s.get(op, 0.0)
            action_s[op] = with_host_s(action_s[op] + blocked_s, floor_s) - blocked_s
        share = len(self.graph.weights_of(tasks)) / max(1, len(self.graph.weights_of(self.graph.tasks)))
        for op, seconds in sharding_s(plan, stage, share, self.profile.sharding_s, device).items():
            action_s[op] += seconds
        return StagePrice(
            action_s=action_s,
            accumulation_s=accumulation_s(parameters, device),
            **self._memory.of(plan, stage, tasks, kept, raw, raw_gradients),
            blocking_s={op: seconds for op, seconds in blocking_s.items() if seconds},
            blocking_bytes={op: size for op, size in blocking_bytes.items() if size},
            buckets=self._buckets(plan, tasks, times),
            between_rounds_s=between_rounds_of(plan, stage, parameters, device, self.matrices(tasks)),
        )

    def _blocking(self, plan: Plan, stage: int, tasks: Sequence[Task], again: frozenset[str]) -> tuple[dict[Op, float], dict[Op, float]]:
        """Seconds that passes wait for collectives of their own, and bytes that all devices of the rank send in these."""
        if self.part is None:
            return {}, {}
        return blocking_of(self.part, self.cluster, plan, stage, tasks, again, self.scale(plan.microbatch_size))

    def _host_floors_s(self, tasks: Sequence[Task], again: frozenset[str], device: Device) -> dict[Op, float]:
        """What the host program takes to start all kernels and collectives of a pass: nothing runs faster than it is started."""
        if not device.host_launch_s:
            return {}
        forward = backward = weights = 0
        fixed_s = device.host_microbatch_s / 2
        for task in tasks:
            forward_launches, backward_launches = self.launches_of(task)
            weights += weight_launches(task)
            forward += forward_launches
            twice = forward_launches if task.name in again else sum(launches(kernel)[0] for kernel in task.members if kernel.name in again)
            backward += backward_launches + twice
        fixed = {Op.F: fixed_s, Op.B: fixed_s, Op.I: fixed_s, Op.W: 0.0}
        started = {Op.F: forward, Op.B: backward, Op.I: backward - weights, Op.W: weights}
        return {op: fixed[op] + device.host_launch_s * started[op] for op in fixed}

    def launches_of(self, task: Task) -> tuple[int, int]:
        """Kernels and collectives that a program starts for a task's forward and backward pass."""
        forward, backward = launches(task)
        inside = self.collectives.get(task.name)
        return forward + (len(inside.forward) if inside else 0), backward + (len(inside.backward) if inside else 0)

    def blocks(self, recompute: str) -> Blocks:
        """What is computed again under full or selective recompute."""
        return self._memory.blocks(recompute)

    def again_s(self, tasks: Sequence[Task], recompute: str, microbatch_size: int, device: Device, busy_ranks: int) -> float:
        """Forward seconds that the backward pass of some tasks runs again under a kind of recompute."""
        return self._again_s(tasks, self.blocks(recompute).recompute(tasks).again, microbatch_size, device, busy_ranks)

    def _again_s(self, tasks: Sequence[Task], again: frozenset[str], microbatch_size: int, device: Device, busy_ranks: int) -> float:
        """Forward seconds of the tasks, and of single kernels within groups, that the backward pass runs again."""
        whole = [task for task in tasks if task.name in again]
        inside = [kernel for task in tasks if task.name not in again for kernel in task.members if kernel.name in again]
        measured = self.cluster.measured_count(busy_ranks)
        seconds = sum(self.task_s(task, microbatch_size, device, busy_ranks)[0] for task in whole)
        return seconds + sum(self._task_seconds.of_kernel(kernel, microbatch_size, device, measured)[0] for kernel in inside)

    def _optimizer_s(self, plan: Plan, stage: int, parameters: float, device: Device) -> float:
        fp32_bytes = self._updated_bytes(plan, stage, parameters)
        return optimizer_s(fp32_bytes, self.job.optimizer, self.job.momentum, device, mixed=self.value_bytes < FP32_BYTES)

    def _updated_bytes(self, plan: Plan, stage: int, parameters: float) -> float:
        """Bytes in fp32 of what one device updates."""
        shards = plan.exchange_degree_of(stage) if plan.zero_stage else 1
        return parameters * FP32_BYTES / self.value_bytes / shards

    def completed(self, plan: Plan) -> Plan:
        """The plan with what its graph and job decide: weights that stages share, and whether gradients are clipped."""
        clips = plan.training and self.job.clip_gradient_norm is not None
        plan = with_sharing(plan, self.graph)
        return plan if plan.clips_gradients == clips else replace(plan, clips_gradients=clips)

    def _buckets(self, plan: Plan, tasks: Sequence[Task], times: Sequence[tuple[float, float, float]]) -> tuple[Bucket, ...]:
        """The stage in so many runs of tasks of about equal parameter bytes."""
        if plan.gradient_buckets == 1 and plan.zero_stage < 3:
            return ()
        totals = [sum(column) or 1.0 for column in zip(*times, strict=True)]
        sizes = trained_sizes(self.graph, tasks)
        buckets: list[Bucket] = []
        start = 0
        for end in bucket_ends(sizes, plan.gradient_buckets):
            forward_s, backward_s = (sum(row[column] for row in times[start:end]) for column in (0, 1))
            buckets.append(Bucket(forward_s / totals[0], backward_s / totals[1], sum(sizes[start:end])))
            start = end
        return tuple(buckets)

    def stage_bytes(self, plan: Plan, stage: int, first: int, end: int, in_flight: int, crossing_bytes: float) -> float:
        """Peak bytes of a stage of compute tasks first..end-1; `crossing_bytes` cross its boundaries per batch of the graph."""
        holding = self.holdings(first)[end - first - 1]
        scale, tasks = self.scale(plan.microbatch_size), self.graph.compute_tasks[first:end]
        saved = holding.saved_bytes if plan.training else tasks[-1].output_bytes
        held = sum(self.held_parts(plan, stage, tasks, holding.trained_bytes, holding.untrained_bytes).values())
        transient = scale * holding.transient_bytes if plan.training else 0.0
        return held + self._memory.buffer_bytes(plan, stage, crossing_bytes * scale) + in_flight * scale * saved + transient

    def holdings(self, first: int, recompute: str = "none") -> list[Holding]:
        """What the compute tasks first..first, first..first + 1 and so on hold, each weight and saved tensor once."""
        key = first, recompute
        if key not in self._holdings_from:
            blocks = None if recompute == "none" else self.blocks(recompute)
            self._holdings_from[key] = list(growing(self.graph, first, blocks))
        return self._holdings_from[key]

    def held_parts(self, plan: Plan, stage: int, tasks: Sequence[Task], parameters: float, frozen: float) -> dict[str, float]:
        """What a stage of some tasks would hold all the time, gradients with it."""
        return self._memory.held_parts(plan, stage, tasks, parameters, frozen, gradients=True)

    def _gradients(self, plan: Plan, stage: int, tasks: Sequence[Task]) -> Exchange:
        """The exchange of all gradients of a stage; a codec that cannot be summed on the way makes it an all-gather."""
        if not plan.training:
            return NO_EXCHANGE
        codec = plan.gradient_codecs[stage]
        payload = self.gradient_payload_bytes(codec, tasks)
        # Where no matrix shrinks there are no factors to send in a second round.
        rounds = CODECS[codec].rounds if payload < self.graph.trained_bytes_of(tasks) else 1
        return self._exchanges.of_gradients(plan, stage, exchange_kind(codec, plan.zero_stage), payload, rounds)
