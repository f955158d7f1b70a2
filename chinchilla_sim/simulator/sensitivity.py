"""Which assumption matters: one plan priced and simulated again with one input changed at a time, and what its step consists of.

A what-if changes the cluster or the plan, never both, and nothing is planned again: the same split meets other machines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import networkx as nx

from chinchilla_sim.cluster.curves import CollectiveTables
from chinchilla_sim.cluster.topology import Cluster, Device, Link
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import folds, lower
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline

NO_EFFECT = 5e-4
"""Changes below this share of the step do not count."""

RATES = ("flop_per_s", "peak_flop_per_s", "quantized_flop_per_s")
MEMORY_RATES = ("memory_bandwidth_bytes_per_s", "peak_bytes_per_s", "elementwise_bandwidth_bytes_per_s", "optimizer_bandwidth_bytes_per_s")
LAUNCHES = ("forward_launch_s", "backward_launch_s", "optimizer_launch_s", "elementwise_launch_s")
HOST = ("host_launch_s", "host_microbatch_s")
MICROBATCH = ("forward_fixed_s", "backward_fixed_s")


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The step with one input changed; `change` is relative to the step as it is, below 0 where it gets shorter."""

    what: str
    step_s: float
    change: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What decides the length of a step.

    `path_shares` are shares of the step by what its critical path does, the largest first; the first of them binds.
    `headroom_bytes` is what the fullest rank has left (below 0: it does not fit).
    """

    step_s: float
    path_shares: dict[str, float]
    binding_rank: int
    busiest_rank: int
    utilization: float
    fullest_rank: int
    headroom_bytes: float
    sensitivities: tuple[Sensitivity, ...]

    @property
    def binding(self) -> str:
        """What the critical path does most."""
        return next(iter(self.path_shares), "nothing")


@dataclass(frozen=True, slots=True)
class _Job:
    graph: TaskGraph
    cluster: Cluster
    job: JobSpec
    profile: Profile

    def play(self, plan: Plan, cluster: Cluster | None = None, causes: bool = False) -> Timeline:
        cluster = cluster or self.cluster
        pricing = Pricer(self.graph, cluster, self.job, self.profile).price(plan)
        return simulate(lower(plan, folds(plan, pricing)), pricing, cluster, causes=causes)


def explain_step(
    graph: TaskGraph,
    cluster: Cluster,
    job: JobSpec,
    plan: Plan,
    profile: Profile | None = None,
    progress: Callable[[str], None] | None = None,
) -> Explanation:
    """Simulate a plan as it is, then once for every input that is changed; inputs that a `profile` measured do not move."""
    setting = _Job(graph, cluster, job, profile or Profile())
    timeline = setting.play(plan, causes=True)
    found = []
    for what, change in WHAT_IFS.items():
        changed = change(cluster)
        if changed is not None:
            if progress:
                progress(what)
            found.append(_sensitivity(what, setting.play(plan, changed).step_s, timeline.step_s))
    for what, other in _other_plans(plan):
        found.append(_sensitivity(what, setting.play(other).step_s, timeline.step_s))
    shares, binding_rank = path_shares(timeline)
    busiest = max(range(timeline.rank_count), key=lambda rank: (timeline.utilization(rank), -rank))
    left = {
        rank: cluster.device(plan.slots_of(rank)[0], len(plan.slots)).usable_memory_bytes
        - max(s.held_bytes for s in timeline.memory if s.rank == rank)
        for rank in {sample.rank for sample in timeline.memory}
    }
    fullest = min(left, key=lambda rank: (left[rank], rank))
    found.sort(key=lambda one: (one.change, one.what))
    return Explanation(
        timeline.step_s, shares, binding_rank, busiest, timeline.utilization(busiest), fullest, left[fullest], tuple(found)
    )  # fmt: skip


def _sensitivity(what: str, step_s: float, before_s: float) -> Sensitivity:
    change = step_s / before_s - 1.0 if before_s else 0.0
    return Sensitivity(what, step_s, change if abs(change) > NO_EFFECT else 0.0)


def path_shares(timeline: Timeline) -> tuple[dict[str, float], int]:
    """Shares of the step by what the critical path does, the largest first, and the rank that has most of the largest.

    A span counts from where the one before it on the path ended; what is left between them is latency and other waiting.
    """
    seconds: dict[str, float] = {}
    by_rank: dict[tuple[str, int], float] = {}
    reached_s = timeline.start_s
    for index in timeline.critical_path:
        span = timeline.spans[index]
        begin_s = max(span.start_s, reached_s)
        if begin_s > reached_s:
            seconds["waiting"] = seconds.get("waiting", 0.0) + begin_s - reached_s
        spent_s = max(0.0, span.end_s - begin_s)
        kind = "computation" if span.category in ("forward", "backward") else span.category
        seconds[kind] = seconds.get(kind, 0.0) + spent_s
        by_rank[kind, span.rank] = by_rank.get((kind, span.rank), 0.0) + spent_s
        reached_s = max(reached_s, span.end_s)
    total = timeline.makespan_s or 1.0
    ordered = sorted(((kind, spent / total) for kind, spent in seconds.items() if spent > 0), key=lambda pair: (-pair[1], pair[0]))
    first = ordered[0][0] if ordered else ""
    ranks = [(-spent, rank) for (kind, rank), spent in by_rank.items() if kind == first]
    return dict(ordered), min(ranks)[1] if ranks else 0


def _other_plans(plan: Plan) -> list[tuple[str, Plan]]:
    """The same split with twice as many microbatches of half the size, where that can be played."""
    if plan.order or plan.stage_count == 1 or plan.replica_microbatch_counts:
        return []
    other = replace(plan, microbatch_count=2 * plan.microbatch_count)
    return [] if mistakes_of(other) else [("microbatches x 2", other)]


# What is changed


def _devices(change: Callable[[Device], Device]) -> Callable[[Cluster], Cluster | None]:
    def changed(cluster: Cluster) -> Cluster | None:
        devices = tuple(map(change, cluster.devices))
        crowded = {count: change(device) for count, device in cluster.crowded.items()}
        same = devices == cluster.devices and crowded == dict(cluster.crowded)
        return None if same else replace(cluster, devices=devices, crowded=crowded)

    return changed


def _scaled(names: tuple[str, ...], factor: float) -> Callable[[Device], Device]:
    return lambda device: replace(device, **{name: factor * getattr(device, name) for name in names})


def _fewer_launches(device: Device) -> Device:
    curve = replace(device.products, launch_s=device.products.launch_s / 2) if device.products else None
    return replace(_scaled(LAUNCHES, 0.5)(device), products=curve, linear=tuple(one.scaled(launch=0.5) for one in device.linear))


def _faster_products(device: Device) -> Device:
    return replace(_scaled(RATES, 1.1)(device), linear=tuple(one.scaled(flop=1 / 1.1) for one in device.linear))


def _wider_memory(device: Device) -> Device:
    reread = tuple((size, seconds / 1.1) for size, seconds in device.reread)
    return replace(_scaled(MEMORY_RATES, 1.1)(device), linear=tuple(one.scaled(byte=1 / 1.1) for one in device.linear), reread=reread)


def _links(inside: bool, latency: float = 1.0, bandwidth: float = 1.0) -> Callable[[Cluster], Cluster | None]:
    def changed(cluster: Cluster) -> Cluster | None:
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(cluster.graph)
        found = False
        for a, b, link in cluster.graph.edges(data="link"):
            chosen = _is_inside(cluster, a, b) == inside
            found |= chosen
            graph.add_edge(a, b, link=Link(link.latency_s * latency, link.bandwidth_bytes_per_s * bandwidth) if chosen else link)
        if not found:
            return None
        tables = {node: _tables(each, latency, bandwidth) for node, each in cluster.node_collectives.items()} if inside else None
        return replace(cluster, graph=graph, node_collectives=tables or cluster.node_collectives)

    return changed


def _is_inside(cluster: Cluster, a: str, b: str) -> bool:
    """Whether a cable is within a node: one end is a slot, the other its node or another slot of it."""
    slots = set(cluster.slots)
    nodes = {vertex.rpartition("/")[0] if vertex in slots else vertex for vertex in (a, b)}
    several = sum(slot.rpartition("/")[0] in nodes for slot in cluster.slots) > 1
    return len(nodes) == 1 and several


def _tables(tables: CollectiveTables, latency: float, bandwidth: float) -> CollectiveTables:
    """Measured collectives as they would be: what the smallest message takes is latency, the rest bandwidth."""
    return {
        key: tuple((size, min(s for _, s in rows) * latency + (seconds - min(s for _, s in rows)) / bandwidth) for size, seconds in rows)
        for key, rows in tables.items()
    }


WHAT_IFS: dict[str, Callable[[Cluster], Cluster | None]] = {
    "flop/s + 10 %": _devices(_faster_products),
    "memory bandwidth + 10 %": _devices(_wider_memory),
    "kernel launch / 2": _devices(_fewer_launches),
    "host program / 2": _devices(_scaled(HOST, 0.5)),
    "fixed time per step gone": _devices(_scaled(("step_fixed_s",), 0.0)),
    "fixed time per microbatch gone": _devices(_scaled(MICROBATCH, 0.0)),
    "communication no longer slows computation": _devices(_scaled(("overlap_slowdown",), 0.0)),
    "communication takes no processor time": _devices(_scaled(("communication_s_per_byte", "communication_s_per_message"), 0.0)),
    "network bandwidth x 2": _links(inside=False, bandwidth=2.0),
    "network bandwidth / 2": _links(inside=False, bandwidth=0.5),
    "network latency / 2": _links(inside=False, latency=0.5),
    "bandwidth within nodes x 2": _links(inside=True, bandwidth=2.0),
    "bandwidth within nodes / 2": _links(inside=True, bandwidth=0.5),
    "latency within nodes / 2": _links(inside=True, latency=0.5),
}
"""Inputs by what is done to them; None where the cluster has no such input."""
