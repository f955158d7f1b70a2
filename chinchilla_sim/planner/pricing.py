"""Pricing: seconds and bytes of every action of a plan on a cluster. All physics is called from `cost/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.cost.codec import CODECS, decode_s, encode_s, payload_bytes
from chinchilla_sim.cost.collective import interpolate_s, ring_all_gather_s, ring_all_reduce_s, sent_bytes
from chinchilla_sim.cost.compute import accumulation_s, backward_s, forward_s, optimizer_s
from chinchilla_sim.cost.memory import inference_bytes, microbatches_in_flight, state_bytes
from chinchilla_sim.graph.task import Task, TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.program import Op
from chinchilla_sim.scenario.schema import JobSpec


@dataclass(frozen=True, slots=True)
class StagePrice:
    """One stage on one rank. `action_s` is per microbatch (or step); `later_backward_s` holds from the second one on."""

    action_s: dict[Op, float]
    later_backward_s: float
    held_bytes: float
    saved_bytes: float
    in_flight: int

    @property
    def peak_bytes(self) -> float:
        """Most bytes held at once."""
        return self.held_bytes + self.in_flight * self.saved_bytes


@dataclass(frozen=True, slots=True)
class Pricing:
    """`ranks[r]`; `boundary_bytes[s]` and `boundary_gradient_bytes[s]` are payloads of one microbatch behind stage s.

    `collective_s[s]` and `collective_sent_bytes[s]` are of the gradients of stage s.
    """

    ranks: tuple[StagePrice, ...]
    boundary_bytes: tuple[float, ...]
    boundary_gradient_bytes: tuple[float, ...]
    collective_s: tuple[float, ...]
    collective_sent_bytes: tuple[float, ...]

    def compute_s(self, rank: int, op: Op, microbatch: int | None) -> float:
        """Seconds of a compute action."""
        price = self.ranks[rank]
        return price.later_backward_s if op is Op.B and microbatch else price.action_s[op]

    def message_bytes(self, direction: str, boundary: int) -> float:
        """Payload of one message over a boundary."""
        return (self.boundary_bytes if direction == "F" else self.boundary_gradient_bytes)[boundary]


class Pricer:
    """Prices plans of one graph, cluster and job; task times are kept between plans."""

    def __init__(self, graph: TaskGraph, cluster: Cluster, job: JobSpec) -> None:
        self.graph, self.cluster, self.job = graph, cluster, job
        self.value_bytes = 4.0 if job.precision == "fp32" else 2.0
        self.value_scale = self.value_bytes / 4.0
        self.task_s = lru_cache(maxsize=None)(self._task_s)
        self._parameter_bytes = {task.name: graph.parameter_bytes_of([task]) for task in graph.tasks}

    def scale(self, microbatch_size: int) -> float:
        """Microbatch in units of the graph's batch."""
        return microbatch_size / self.graph.batch_size

    def _task_s(self, task: Task, microbatch_size: int, device: Device) -> tuple[float, float]:
        """Forward and backward seconds of one task."""
        scale, parameters = self.scale(microbatch_size), self._parameter_bytes[task.name]
        passes = forward_s, backward_s
        forward, backward = (seconds(task, scale, parameters, device, self.value_scale) for seconds in passes)
        return forward, backward

    def tasks_of(self, plan: Plan, stage: int) -> list[Task]:
        """Task objects of a stage."""
        return [self.graph.tasks[self.graph.position[name]] for name in plan.stages[stage]]

    def boundary_tasks(self, plan: Plan, stage: int) -> list[Task]:
        """Tasks whose outputs cross the boundary behind a stage."""
        return self.graph.live_after(self.graph.position[plan.stages[stage][-1]])

    def price(self, plan: Plan) -> Pricing:
        """Seconds and bytes of every action of the plan."""
        scale = self.scale(plan.microbatch_size) * self.value_scale
        boundaries = [self.boundary_tasks(plan, stage) for stage in range(plan.pipeline_parallel_degree - 1)]
        raw = [scale * sum(task.output_bytes for task in tasks) for tasks in boundaries]
        raw_gradients = [scale * sum(task.output_bytes for task in tasks if task.needs_gradient) for tasks in boundaries]
        collectives = [self._collective(plan, stage) for stage in range(plan.pipeline_parallel_degree)]
        return Pricing(
            ranks=tuple(self._stage_price(plan, rank, raw, raw_gradients) for rank in range(plan.rank_count)),
            boundary_bytes=tuple(
                self._message_bytes(codec, tasks, scale) for codec, tasks in zip(plan.activation_codecs, boundaries, strict=True)
            ),
            boundary_gradient_bytes=tuple(
                self._message_bytes(codec, [task for task in tasks if task.needs_gradient], scale)
                for codec, tasks in zip(plan.activation_codecs, boundaries, strict=True)
            ),
            collective_s=tuple(seconds for seconds, _ in collectives),
            collective_sent_bytes=tuple(size for _, size in collectives),
        )

    def _message_bytes(self, codec: str, tasks: Sequence[Task], scale: float) -> float:
        """Payload of a message that packs the outputs of several tasks, each on its own."""
        return sum(payload_bytes(codec, scale * task.output_bytes, self.value_bytes) for task in tasks)

    def exchange_s_per_byte(self, plan: Plan, stage: int) -> float:
        """Seconds of a stage's gradient exchange per byte of its parameters, if it held the whole model."""
        total = self.graph.total_parameter_bytes
        if plan.data_parallel_degree == 1 or not plan.training or not total:
            return 0.0
        return self._exchange(plan, stage, total)[0] / total

    def _stage_price(self, plan: Plan, rank: int, raw: Sequence[float], raw_gradients: Sequence[float]) -> StagePrice:
        stage, _ = plan.position[rank]
        device = self.cluster.device(plan.slots[rank], plan.rank_count)
        tasks = self.tasks_of(plan, stage)
        times = [self.task_s(task, plan.microbatch_size, device) for task in tasks]
        parameters = self.graph.parameter_bytes_of(tasks)
        first_backward_s = device.backward_fixed_s + sum(backward for _, backward in times)
        action_s = {
            Op.F: device.forward_fixed_s + sum(forward for forward, _ in times),
            Op.B: first_backward_s,
            Op.OPTIM: optimizer_s(parameters, self.job.optimizer, self.job.momentum, device),
        }
        action_s |= self._codec_s(plan, stage, raw, raw_gradients, device)
        action_s |= gradient_codec_s(plan, stage, parameters * self.value_scale, device)
        buffers = self._buffer_bytes(plan, sum(raw[boundary] for boundary in (stage - 1, stage) if 0 <= boundary < len(raw)))
        return StagePrice(
            action_s=action_s,
            later_backward_s=first_backward_s + accumulation_s(parameters, device),
            held_bytes=self._held_bytes(plan, stage, parameters) + buffers,
            saved_bytes=self._saved_bytes(plan, tasks),
            in_flight=microbatches_in_flight(plan.schedule, stage, plan.pipeline_parallel_degree, plan.microbatch_count)
            if plan.training
            else 1,
        )

    def _codec_s(self, plan: Plan, stage: int, raw: Sequence[float], raw_gradients: Sequence[float], device: Device) -> dict[Op, float]:
        seconds = {}
        if stage > 0:
            codec = plan.activation_codecs[stage - 1]
            seconds[Op.DECODE_F] = decode_s(codec, raw[stage - 1], device)
            seconds[Op.ENCODE_B] = encode_s(codec, raw_gradients[stage - 1], device)
        if stage < plan.pipeline_parallel_degree - 1:
            codec = plan.activation_codecs[stage]
            seconds[Op.ENCODE_F] = encode_s(codec, raw[stage], device)
            seconds[Op.DECODE_B] = decode_s(codec, raw_gradients[stage], device)
        return seconds

    @staticmethod
    def _buffer_bytes(plan: Plan, message_bytes: float) -> float:
        """Receive buffers of messages that are awaited at once."""
        return min(plan.receives_in_flight, plan.microbatch_count) * message_bytes

    def stage_bytes(self, plan: Plan, stage: int, tasks: Sequence[Task], in_flight: int, crossing_bytes: float) -> float:
        """Peak bytes of a stage that holds these tasks; `crossing_bytes` cross its boundaries per batch of the graph."""
        held = self._held_bytes(plan, stage, self.graph.parameter_bytes_of(tasks))
        buffers = self._buffer_bytes(plan, crossing_bytes * self.scale(plan.microbatch_size) * self.value_scale)
        return held + buffers + in_flight * self._saved_bytes(plan, tasks)

    def _held_bytes(self, plan: Plan, stage: int, parameters: float) -> float:
        if not plan.training:
            return inference_bytes(parameters, self.job.precision)
        bucket = 0.0
        if plan.data_parallel_degree > 1:
            payload = payload_bytes(plan.gradient_codecs[stage], parameters * self.value_scale, self.value_bytes)
            summable = CODECS[plan.gradient_codecs[stage]].summable
            bucket = parameters * self.value_scale + payload * (1 if summable else plan.data_parallel_degree)
        return state_bytes(parameters, self.job.optimizer, self.job.momentum, self.job.precision) + bucket

    def _saved_bytes(self, plan: Plan, tasks: Sequence[Task]) -> float:
        """Distinct tensors that the stage keeps per microbatch until its backward pass."""
        names = {name for task in tasks for name in task.saved} if plan.training else {tasks[-1].name}
        total = sum(self.graph.tasks[self.graph.position[name]].output_bytes for name in sorted(names))
        return total * self.scale(plan.microbatch_size) * self.value_scale

    def _collective(self, plan: Plan, stage: int) -> tuple[float, float]:
        """Seconds and sent bytes per rank of the gradient exchange of a stage."""
        replicas = plan.data_parallel_degree
        if replicas == 1 or not plan.training:
            return 0.0, 0.0
        return self._exchange(plan, stage, self.graph.parameter_bytes_of(self.tasks_of(plan, stage)))

    def _exchange(self, plan: Plan, stage: int, parameters: float) -> tuple[float, float]:
        codec = plan.gradient_codecs[stage]
        payload = payload_bytes(codec, parameters * self.value_scale, self.value_bytes)
        kind = "all_reduce" if CODECS[codec].summable else "all_gather"
        slots = [plan.slots[rank] for rank in plan.placement[stage]]
        return collective_s(self.cluster, kind, slots, payload), sent_bytes(kind, payload, plan.data_parallel_degree)


def gradient_codec_s(plan: Plan, stage: int, raw_bytes: float, device: Device) -> dict[Op, float]:
    """Seconds to pack the gradients of a stage into its bucket (a copy, then the codec) and to unpack the result."""
    if plan.data_parallel_degree == 1:
        return {}
    codec = plan.gradient_codecs[stage]
    copies = 1 if CODECS[codec].summable else plan.data_parallel_degree
    packing_s = device.elementwise_launch_s + 2 * raw_bytes / device.elementwise_bandwidth_bytes_per_s
    return {
        Op.ENCODE_GRAD: packing_s + encode_s(codec, raw_bytes, device),
        Op.DECODE_GRAD: decode_s(codec, raw_bytes, device, copies),
    }


def collective_s(cluster: Cluster, kind: str, slots: Sequence[int], payload: float) -> float:
    """Seconds of a collective among device slots: a measured table where the cluster has one, else the formula."""
    table = cluster.collective_s.get((kind, len(slots)))
    if table:
        return interpolate_s(table, payload)
    formula = ring_all_reduce_s if kind == "all_reduce" else ring_all_gather_s
    return formula(payload, len(slots), cluster.slowest_pair(slots), cluster.backend)
