"""Simulated steps that stand for real ones: rendered as the recorder would have seen them."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator.activities import ActivityGraph, Times, makespan_s
from chinchilla_sim.simulator.engine import devices_of, play_events
from chinchilla_sim.simulator.lowering import activities_of
from chinchilla_sim.timeline import Span, Timeline, Wait
from chinchilla_sim.validation.recalibrate import Simulated

ZERO_S = 500.0
"""A measured clock does not start at 0."""


@dataclass(frozen=True)
class World:
    """Everything that decides how long a step takes."""

    graph: TaskGraph
    cluster: Cluster
    job: JobSpec
    profile: Profile = field(default_factory=Profile)

    def simulate(self, plan: Plan) -> Simulated:
        """One step of a plan, in full."""
        pricing = Pricer(self.graph, self.cluster, self.job, self.profile).price(plan)
        program = lower(plan)
        graph = activities_of(program, pricing, self.cluster)
        return Simulated(program, pricing, self.cluster, graph, play_events(graph, self.cluster, devices_of(plan, self.cluster)))


def step_s(simulated: Simulated) -> float:
    """Seconds of the step."""
    return makespan_s(simulated.times)


def plan_of(graph: TaskGraph, edges: list[int], replicas: int = 1, microbatches: int = 1, **changes: Any) -> Plan:
    """A pipeline cut behind the compute tasks at `edges`, in some replicas."""
    names = [task.name for task in graph.compute_tasks]
    cuts = [0, *edges, len(names)]
    stages = tuple(tuple(names[start:end]) for start, end in pairwise(cuts))
    count = len(stages)
    placement = tuple(tuple(range(stage * replicas, (stage + 1) * replicas)) for stage in range(count))
    codecs = {"gradient_codecs": ("none",) * count, "activation_codecs": ("none",) * (count - 1)} | changes
    return Plan(stages, placement, tuple(range(replicas * count)), graph.batch_size, microbatches, "1f1b", **codecs)


def as_measured(graph: ActivityGraph, times: Times) -> Timeline:
    """The timeline that the recorder makes of such a step: transfers from the last end's readiness to the receiver's look."""
    before: dict[int, list[int]] = {}
    for source, target, _ in graph.arcs():
        before.setdefault(target, []).append(source)
    own = {number: max((times.finish_s[s] for s in row if s >= 0 and graph.ranks[s] == graph.ranks[number]), default=0.0)
           for number, row in before.items() if graph.ranks[number] >= 0}  # fmt: skip
    spans, waits = [], []
    for record in graph.records:
        inside = range(record.first, record.last + 1)
        start_s, end_s = times.start_s[record.first], times.finish_s[record.last]
        if record.stream != "compute":
            outside = [source for number in inside for source in before.get(number, ()) if source >= 0 and source not in inside]
            mates = [r for r in graph.records if (r.first, r.last) == (record.first, record.last)]
            ends = {r.rank: _look_s(graph, before, own, r.rank, record.last, end_s) for r in mates}
            start_s = max((times.finish_s[source] for source in outside if not _is_transfer(graph, source)), default=0.0)
            receiver = record.rank if record.stream != "send" else next(r.rank for r in mates if r.stream == "receive")
            look_s = ends[receiver]
            end_s = max(end_s, look_s)
            start_s = min(start_s, end_s)
            if record.stream != "send":
                waits.append(Wait(record.rank, ZERO_S + look_s, ZERO_S + end_s, record.label))
        spans.append(Span(record.rank, record.stream, record.category, record.label, ZERO_S + start_s, ZERO_S + end_s, record.moved_bytes))
    return Timeline(graph.rank_count, tuple(spans), waits=tuple(waits))


def _is_transfer(graph: ActivityGraph, number: int) -> bool:
    return graph.ranks[number] < 0


def _look_s(graph: ActivityGraph, before: dict[int, list[int]], own: dict[int, float], rank: int, last: int, end_s: float) -> float:
    """When a rank starts to wait for what ends with activity `last`: after its own action before the one that needs it."""
    looks = [own[number] for number, row in before.items() if last in row and graph.ranks[number] == rank]
    return min(looks, default=end_s)
