"""Contiguous stages with replica counts of their own under our costs, exactly, for every number of stages.

PipeDream's question (Narayanan et al. 2019; `peers/replicated_stages.py` answers it in its own cost model), with memory and with devices in
a given order: a stage behind d devices takes the next r of them. One stream of m microbatches is dealt out, so its busiest rank runs
n = ceil(m / r) of them. With T the forward and backward seconds of a task on the slowest of its devices, P its parameter bytes, e(r) the
seconds per byte of the exchange among r replicas (it grows with r), and y the seconds that a link is busy with what crosses a cut, the
stage of tasks j..i-1 takes

    stage_s(d, r)[j, i] = max(n (sum of T + fixed) + e(r) sum of P,  n y_j,  n y_i)                         _Costs.stage_s

seconds per step, and infinitely many where a cut is not allowed or its bytes pass the memory of a device: 1F1B has
ceil((D - d) / r) microbatches under way there, as all D devices are used (`program.under_way`). Over stages, devices and tasks

    best[k][d][i] = min over r <= d, j < i of  max(best[k-1][d-r][j], stage_s(d-r, r)[j, i])                split_with_replicas

is exact for the slowest stage; among equal prefixes the smaller sum of their stages wins. O(K D^2 N^2) for K stages, D devices, N tasks.
What a step takes besides its slowest stage (ramps, latencies, exchanges that meet) is left to the simulator, which chooses among K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.codec import payload_bytes
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.space.configuration import Sharding
from chinchilla_sim.planner.space.partition import allowed_cuts

Floats = NDArray[np.float64]
StageSeconds = Callable[[int, int], Floats]
Origin = tuple[NDArray[np.int64], NDArray[np.int64]]
"""By devices and tasks: where the last stage begins, and its replicas."""


@dataclass(frozen=True, slots=True)
class ReplicatedSplit:
    """Tasks and replicas of every stage, and the seconds of the slowest."""

    sizes: tuple[int, ...]
    replicas: tuple[int, ...]
    slowest_s: float


def split_with_replicas(tasks: int, devices: int, stage_s: StageSeconds) -> list[ReplicatedSplit]:
    """The best split for every number of stages that has one, on exactly so many devices.

    `stage_s(d, r)[j, i]` are the seconds of tasks j..i-1 on r devices behind the first d; infinite where they cannot be.

    >>> task_s = np.array([0.0, 1.0, 5.0, 6.0])  # sums of 1, 4 and 1 seconds
    >>> seconds = lambda d, r: np.where(np.triu(np.ones((4, 4)), 1) > 0, (task_s[None, :] - task_s[:, None]) / r, np.inf)
    >>> [(split.sizes, split.replicas, split.slowest_s) for split in split_with_replicas(3, 4, seconds)]
    [((3,), (4,), 1.5), ((1, 2), (1, 3), 1.6666666666666667), ((1, 1, 1), (1, 2, 1), 2.0)]
    """
    costs = {(d, r): stage_s(d, r) for d in range(devices) for r in range(1, devices - d + 1)}
    slowest, total = np.full((devices + 1, tasks + 1), np.inf), np.full((devices + 1, tasks + 1), np.inf)
    slowest[0, 0] = total[0, 0] = 0.0
    origins: list[Origin] = []
    found = []
    for _ in range(min(tasks, devices)):
        slowest, total, origin = _one_stage_more(slowest, total, costs)
        origins.append(origin)
        if slowest[devices, tasks] < np.inf:
            found.append(_walk_back(origins, devices, tasks, float(slowest[devices, tasks])))
    return found


def _one_stage_more(slowest: Floats, total: Floats, costs: dict[tuple[int, int], Floats]) -> tuple[Floats, Floats, Origin]:
    """Slowest stage and sum of all by devices and tasks, and how they came about."""
    new_slowest, new_total = np.full_like(slowest, np.inf), np.full_like(total, np.inf)
    cuts, widths = np.zeros(slowest.shape, dtype=np.int64), np.zeros(slowest.shape, dtype=np.int64)
    columns = np.arange(slowest.shape[1])
    for (before, replicas), cost in sorted(costs.items()):
        if not np.isfinite(slowest[before]).any():
            continue
        worst, sums = np.maximum(slowest[before][:, None], cost), total[before][:, None] + cost
        least = worst.min(axis=0)
        cut = np.where(worst <= least, sums, np.inf).argmin(axis=0)
        summed, d = sums[cut, columns], before + replicas
        better = (least < new_slowest[d]) | ((least == new_slowest[d]) & (summed < new_total[d]))
        new_slowest[d, better], new_total[d, better] = least[better], summed[better]
        cuts[d, better], widths[d, better] = cut[better], replicas
    return new_slowest, new_total, (cuts, widths)


def _walk_back(origins: Sequence[Origin], devices: int, tasks: int, slowest_s: float) -> ReplicatedSplit:
    sizes, replicas = [], []
    for cuts, widths in reversed(origins):
        cut, width = int(cuts[devices, tasks]), int(widths[devices, tasks])
        sizes.append(tasks - cut)
        replicas.append(width)
        devices, tasks = devices - width, cut
    return ReplicatedSplit(tuple(sizes[::-1]), tuple(replicas[::-1]), slowest_s)


@dataclass(frozen=True, slots=True)
class Stream:
    """What is decided before stages are cut: `microbatch_count` microbatches of the whole batch, which they must divide.

    `schedule` is 1f1b, gpipe or forward; the sharding has one device per rank and no ZeRO 3. Only `replica_counts` are tried (None: all).
    """

    microbatch_count: int
    schedule: str
    activation_codec: str = "none"
    gradient_codec: str = "none"
    sharding: Sharding = field(default_factory=Sharding)
    replica_counts: tuple[int, ...] | None = None


def plans_with_replicas(pricer: Pricer, slots: Sequence[int], stream: Stream) -> Iterator[Plan]:
    """The best plan for every number of stages on all these device slots, in their order; nothing where none fits into memory.

    Where all stages get equally many replicas it is the ordinary plan of so many replicas.
    """
    costs = _Costs(pricer, tuple(slots), stream)
    names = [task.name for task in pricer.graph.compute_tasks]
    for split in split_with_replicas(len(names), len(slots), costs.stage_s):
        yield _plan_of(split, names, costs)


def _plan_of(split: ReplicatedSplit, names: Sequence[str], costs: _Costs) -> Plan:
    task, rank = iter(names), iter(range(len(costs.slots)))
    stages = len(split.sizes)
    stream, replicas = costs.stream, split.replicas[0]
    count = stream.microbatch_count
    equal: tuple[int, ...] = ()
    if len(set(split.replicas)) == 1:
        equal = tuple(len(range(place, count, replicas)) for place in range(replicas))
        count = equal[0]
    return Plan(
        stages=tuple(tuple(next(task) for _ in range(size)) for size in split.sizes),
        placement=tuple(tuple(next(rank) for _ in range(width)) for width in split.replicas),
        slots=costs.slots,
        global_batch_size=costs.pricer.job.global_batch_size,
        microbatch_count=count,
        schedule=stream.schedule,
        gradient_codecs=tuple(stream.gradient_codec if width > 1 else "none" for width in split.replicas),
        activation_codecs=(stream.activation_codec,) * (stages - 1),
        replica_microbatch_counts=equal if len(set(equal)) > 1 else (),
        **stream.sharding.plan_fields(stages),
    )


@dataclass(frozen=True)
class _Costs:
    """Seconds of every stage that is possible."""

    pricer: Pricer
    slots: tuple[int, ...]
    stream: Stream

    @property
    def _training(self) -> bool:
        return self.stream.schedule != "forward"

    @property
    def _microbatch_size(self) -> int:
        return self.pricer.job.global_batch_size // self.stream.microbatch_count

    def _share(self, replicas: int) -> int:
        """Most microbatches of a rank."""
        return -(-self.stream.microbatch_count // replicas)

    def stage_s(self, before: int, replicas: int) -> Floats:
        """Seconds of tasks j..i-1 at [j, i] on the devices behind the first `before`."""
        counts = self.stream.replica_counts
        if replicas > self.stream.microbatch_count or (counts is not None and replicas not in counts):
            return np.full(self._allowed.shape, np.inf)
        plan, count = self._stage(before, replicas), self._share(replicas)
        used = self.slots[before : before + replicas]
        kinds = sorted({self._kinds.index(self.pricer.device_of(plan, rank)) for rank in plan.placement[0]})
        computed = np.maximum.reduce([self._computed[kind] for kind in kinds])
        stage_s = count * computed + self.pricer.exchange_s_per_byte(plan, 0) * self._parameter_bytes
        if before:
            stage_s = np.maximum(stage_s, count * self._link_s(self.slots[before - 1], used[0])[:, None])
        if before + replicas < len(self.slots):
            stage_s = np.maximum(stage_s, count * self._link_s(used[-1], self.slots[before + replicas])[None, :])
        costs: Floats = np.where(self._fits(before, replicas), stage_s, np.inf)
        return costs

    def _fits(self, before: int, replicas: int) -> NDArray[np.bool_]:
        """Whether tasks j..i-1 may be a stage there, and fit into memory (with recompute the exact price says so, later)."""
        if self.stream.sharding.recompute != "none":
            return self._allowed
        limit = min(self.pricer.cluster.device(slot).usable_memory_bytes for slot in self.slots[before : before + replicas])
        base, growth = self._bytes_with(replicas)
        count = self._share(replicas)
        under_way = {"forward": 1, "gpipe": count}.get(self.stream.schedule, min(count, -(-(len(self.slots) - before) // replicas)))
        fits: NDArray[np.bool_] = self._allowed & (base + under_way * growth <= limit)
        return fits

    def _stage(self, before: int, replicas: int) -> Plan:
        """All tasks as one stage on these devices, of which every other figure of a stage is read off."""
        count = self._share(replicas)
        return Plan(
            stages=(tuple(task.name for task in self.pricer.graph.compute_tasks),),
            placement=(tuple(range(before, before + replicas)),),
            slots=self.slots,
            global_batch_size=self._microbatch_size * count * replicas,
            microbatch_count=count,
            schedule=self.stream.schedule,
            gradient_codecs=(self.stream.gradient_codec if replicas > 1 else "none",),
            activation_codecs=(),
            **self.stream.sharding.plan_fields(1),
        )

    @cached_property
    def _kinds(self) -> list[Device]:
        """Devices that differ, in the order of the slots."""
        return list(dict.fromkeys(self.pricer.cluster.device(slot, len(self.slots)) for slot in self.slots))

    @cached_property
    def _computed(self) -> list[Floats]:
        """Seconds of a microbatch at [j, i], by kind of device."""
        size, training = self._microbatch_size, self._training
        found = []
        for device in self._kinds:
            seconds = [self.pricer.task_s(task, size, device, len(self.slots)) for task in self.pricer.graph.compute_tasks]
            fixed_s = device.forward_fixed_s + training * device.backward_fixed_s
            found.append(fixed_s + _spans([forward_s + training * backward_s for forward_s, backward_s, _ in seconds]))
        return found

    @cached_property
    def _parameter_bytes(self) -> Floats:
        """Bytes of the gradients of tasks j..i-1 at [j, i]."""
        graph = self.pricer.graph
        return _spans([graph.trained_bytes_of([task]) for task in graph.compute_tasks])

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        """Whether tasks j..i-1 may be a stage at [j, i]."""
        ends = np.array([True, *allowed_cuts(self.pricer.graph, self._training)])
        allowed: NDArray[np.bool_] = np.triu(ends[:, None] & ends[None, :], 1)
        return allowed

    @cached_property
    def _crossing_bytes(self) -> Floats:
        """Bytes per batch of the graph that cross each cut, 0 before the first task and behind the last."""
        graph = self.pricer.graph
        live = [graph.live_after(graph.position[task.name]) for task in graph.compute_tasks[:-1]]
        return np.array([0.0, *(sum(producer.output_bytes for producer in row) for row in live), 0.0], dtype=np.float64)

    def _link_s(self, source: int, target: int) -> Floats:
        """Seconds that a microbatch keeps the link between two slots busy, one way, for each cut."""
        scale = self.pricer.scale(self._microbatch_size)
        bandwidth = self.pricer.cluster.bandwidth_bytes_per_s(source, target)
        packed = [
            payload_bytes(self.stream.activation_codec, scale * size, self.pricer.value_bytes) for size in self._crossing_bytes.tolist()
        ]
        link_s: Floats = np.array(packed) / bandwidth
        return link_s

    @cached_property
    def _bytes(self) -> dict[int, tuple[Floats, Floats]]:
        return {}

    def _bytes_with(self, replicas: int) -> tuple[Floats, Floats]:
        """Bytes of tasks j..i-1 at [j, i] without any microbatch under way, and of each that is."""
        if replicas not in self._bytes:
            plan, count = self._stage(0, replicas), len(self.pricer.graph.compute_tasks)
            base, growth = np.zeros((count + 1, count + 1)), np.zeros((count + 1, count + 1))
            for first, end in zip(*np.nonzero(self._allowed), strict=True):
                crossing = float(self._crossing_bytes[first] + self._crossing_bytes[end])
                held, more = (self.pricer.stage_bytes(plan, 0, int(first), int(end), under_way, crossing) for under_way in (0, 1))
                base[first, end], growth[first, end] = held, more - held
            self._bytes[replicas] = base, growth
        return self._bytes[replicas]


def _spans(amounts: Sequence[float]) -> Floats:
    """Sums of amounts j..i-1 at [j, i]; of no meaning below the diagonal.

    >>> _spans([1.0, 2.0])[0].tolist()
    [0.0, 1.0, 3.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(amounts, dtype=np.float64))])
    spans: Floats = sums[None, :] - sums[:, None]
    return spans
