"""Pricing: seconds and bytes of every action of a plan on a cluster. All physics is called from `cost/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.cost.codec import CODECS, decode_s, encode_s, payload_bytes
from chinchilla_sim.cost.collective import interpolate_s, ring_all_gather_s, ring_all_reduce_s, sent_bytes
from chinchilla_sim.cost.compute import FP32_BYTES, accumulation_s, backward_s, forward_s, optimizer_s
from chinchilla_sim.cost.memory import microbatches_in_flight, state_bytes
from chinchilla_sim.graph.profile import ACCELERATOR, ANY_DEVICE, Profile
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


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes of the weights of some tasks, and of what they save for their backward pass per batch of the graph."""

    trained_bytes: float
    untrained_bytes: float
    saved_bytes: float


def _growing(graph: TaskGraph, first: int) -> Iterator[Holding]:
    """Holdings of the compute tasks from `first` on, one task more each time."""
    weights: set[str] = set()
    tensors: set[str] = set()
    trained = untrained = saved = 0.0
    for task in graph.compute_tasks[first:]:
        for name in task.parameters:
            if name not in weights:
                weights.add(name)
                weight = graph.weights[name]
                trained += weight.bytes if weight.trained else 0.0
                untrained += 0.0 if weight.trained else weight.bytes
        for name in task.saved:
            if name not in tensors:
                tensors.add(name)
                saved += graph.tasks[graph.position[name]].output_bytes
        saved += task.saved_bytes
        yield Holding(trained, untrained, saved)


class Pricer:
    """Prices plans of one graph, cluster and job; task times are kept between plans.

    Times that the `profile` measured come before formulas.
    """

    def __init__(self, graph: TaskGraph, cluster: Cluster, job: JobSpec, profile: Profile | None = None) -> None:
        self.graph, self.cluster, self.job, self.profile = graph, cluster, job, profile or Profile()
        self.value_bytes = graph.value_bytes
        self._seconds: dict[tuple[str, int, int, Device], tuple[float, float]] = {}
        self._holdings_from: dict[int, list[Holding]] = {}

    def scale(self, microbatch_size: int) -> float:
        """Microbatch in units of the graph's batch."""
        return microbatch_size / self.graph.batch_size

    def task_s(self, task: Task, microbatch_size: int, device: Device, busy_ranks: int) -> tuple[float, float]:
        """Forward and backward seconds of one task (or group) while so many ranks are busy."""
        key = task.name, microbatch_size, busy_ranks, device
        if key not in self._seconds:
            times = [self._kernel_s(kernel, microbatch_size, device, busy_ranks) for kernel in task.kernels]
            self._seconds[key] = sum(forward for forward, _ in times), sum(backward for _, backward in times)
        return self._seconds[key]

    def _kernel_s(self, task: Task, microbatch_size: int, device: Device, busy_ranks: int) -> tuple[float, float]:
        for kind in (ANY_DEVICE, ACCELERATOR) if self.profile.times else ():
            measured = self.profile.seconds(task.name, microbatch_size, kind, busy_ranks)
            if measured:
                return measured
        scale = self.scale(microbatch_size)
        return forward_s(task, scale, device), backward_s(task, scale, device)

    def tasks_of(self, plan: Plan, stage: int) -> list[Task]:
        """Task objects of a stage."""
        return [self.graph.tasks[self.graph.position[name]] for name in plan.stages[stage]]

    def boundary_tasks(self, plan: Plan, stage: int) -> list[Task]:
        """Tasks whose outputs cross the boundary behind a stage."""
        return self.graph.live_after(self.graph.position[plan.stages[stage][-1]])

    def price(self, plan: Plan) -> Pricing:
        """Seconds and bytes of every action of the plan."""
        scale = self.scale(plan.microbatch_size)
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
        total = self.graph.trained_bytes_of(self.graph.tasks)
        if plan.data_parallel_degree == 1 or not plan.training or not total:
            return 0.0
        return self._exchange(plan, stage, total)[0] / total

    def _stage_price(self, plan: Plan, rank: int, raw: Sequence[float], raw_gradients: Sequence[float]) -> StagePrice:
        stage, _ = plan.position[rank]
        device = self.cluster.device(plan.slots[rank], plan.rank_count)
        tasks = self.tasks_of(plan, stage)
        times = [self.task_s(task, plan.microbatch_size, device, plan.rank_count) for task in tasks]
        parameters = self.graph.trained_bytes_of(tasks)
        first_backward_s = device.backward_fixed_s + sum(backward for _, backward in times)
        action_s = {
            Op.F: device.forward_fixed_s + sum(forward for forward, _ in times),
            Op.B: first_backward_s,
            Op.OPTIM: optimizer_s(parameters * FP32_BYTES / self.value_bytes, self.job.optimizer, self.job.momentum, device),
        }
        action_s |= self._codec_s(plan, stage, raw, raw_gradients, device)
        action_s |= gradient_codec_s(plan, stage, parameters, device)
        buffers = self._buffer_bytes(plan, sum(raw[boundary] for boundary in (stage - 1, stage) if 0 <= boundary < len(raw)))
        return StagePrice(
            action_s=action_s,
            later_backward_s=first_backward_s + accumulation_s(parameters, device),
            held_bytes=self._held_bytes(plan, stage, parameters, self.graph.untrained_bytes_of(tasks)) + buffers,
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

    def stage_bytes(self, plan: Plan, stage: int, first: int, end: int, in_flight: int, crossing_bytes: float) -> float:
        """Peak bytes of a stage of compute tasks first..end-1; `crossing_bytes` cross its boundaries per batch of the graph."""
        holding = self._holdings(first)[end - first - 1]
        scale = self.scale(plan.microbatch_size)
        saved = holding.saved_bytes if plan.training else self.graph.compute_tasks[end - 1].output_bytes
        held = self._held_bytes(plan, stage, holding.trained_bytes, holding.untrained_bytes)
        return held + self._buffer_bytes(plan, crossing_bytes * scale) + in_flight * scale * saved

    def _holdings(self, first: int) -> list[Holding]:
        """What the compute tasks first..first, first..first + 1 and so on hold, each weight and saved tensor once."""
        if first not in self._holdings_from:
            self._holdings_from[first] = list(_growing(self.graph, first))
        return self._holdings_from[first]

    def _held_bytes(self, plan: Plan, stage: int, parameters: float, frozen: float) -> float:
        if not plan.training:
            return parameters + frozen
        bucket = 0.0
        if plan.data_parallel_degree > 1:
            payload = payload_bytes(plan.gradient_codecs[stage], parameters, self.value_bytes)
            summable = CODECS[plan.gradient_codecs[stage]].summable
            bucket = parameters + payload * (1 if summable else plan.data_parallel_degree)
        return state_bytes(parameters, self.job.optimizer, self.job.momentum, self.job.precision) + frozen + bucket

    def _saved_bytes(self, plan: Plan, tasks: Sequence[Task]) -> float:
        """Distinct tensors that the stage keeps per microbatch until its backward pass."""
        names = {name for task in tasks for name in task.saved} if plan.training else {tasks[-1].name}
        total = sum(self.graph.tasks[self.graph.position[name]].output_bytes for name in sorted(names))
        beside = sum(task.saved_bytes for task in tasks) if plan.training else 0.0
        return (total + beside) * self.scale(plan.microbatch_size)

    def _collective(self, plan: Plan, stage: int) -> tuple[float, float]:
        """Seconds and sent bytes per rank of the gradient exchange of a stage."""
        replicas = plan.data_parallel_degree
        if replicas == 1 or not plan.training:
            return 0.0, 0.0
        return self._exchange(plan, stage, self.graph.trained_bytes_of(self.tasks_of(plan, stage)))

    def _exchange(self, plan: Plan, stage: int, parameters: float) -> tuple[float, float]:
        codec = plan.gradient_codecs[stage]
        payload = payload_bytes(codec, parameters, self.value_bytes)
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
