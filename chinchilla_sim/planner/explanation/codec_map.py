"""When does compression of gradients pay? The fastest codec of the best data-parallel plan, by network bandwidth and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite

import networkx as nx

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.selection.judge import Simulate
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec

NOTHING_GAINED = 0.01
"""A codec that shortens a step by less than this share does not pay."""


@dataclass(frozen=True, slots=True)
class CodecCell:
    """The step of the best data-parallel plan with each codec, by name; empty where no plan fits."""

    bandwidth_bytes_per_s: float
    global_batch_size: int
    step_s: Mapping[str, float]

    @property
    def winner(self) -> str | None:
        """The fastest codec; `none` where no other is faster by NOTHING_GAINED."""
        if not self.step_s:
            return None
        order = list(CODECS)
        best = min(self.step_s, key=lambda codec: (self.step_s[codec], order.index(codec)))
        return best if self.step_s.get("none", inf) > self.step_s[best] * (1 + NOTHING_GAINED) else "none"

    @property
    def speedup(self) -> float | None:
        """Step with `none` over the winner's, at least 1; None where no plan fits, infinite where none fits without a codec."""
        winner = self.winner
        return None if winner is None else self.step_s.get("none", inf) / self.step_s[winner]


@dataclass(frozen=True)
class CodecMap:
    """Cells by rows of batches, each from the lowest bandwidth to the highest."""

    name: str
    bandwidths: tuple[float, ...]
    batches: tuple[int, ...]
    cells: tuple[tuple[CodecCell, ...], ...]


def codec_cell(
    graph: TaskGraph, cluster: Cluster, job: JobSpec, search: SearchSpec, simulate: Simulate, profile: Profile | None = None
) -> dict[str, float]:
    """Seconds of the best data-parallel step with every codec of gradients, by name; those that fit."""
    found, pricer = {}, Pricer(graph, cluster, job, profile)
    for codec in CODECS:
        try:
            best = find_plans(graph, cluster, job, data_parallel(search, cluster.rank_count, codec), simulate, pricer=pricer).best
        except NoFeasiblePlanError:
            continue
        found[codec] = best.step_s
    return found


def data_parallel(search: SearchSpec, rank_count: int, codec: str) -> SearchSpec:
    """The search with one codec, over plans of at least two replicas and nothing but replicas."""
    allowed = search.data_parallel_degrees or tuple(range(2, rank_count + 1))
    degrees = tuple(degree for degree in allowed if degree > 1)
    if not degrees:
        cure = "leave search.data_parallel_degrees out" if search.data_parallel_degrees else "describe a cluster of several devices"
        raise ScenarioError([Mistake("search.data_parallel_degrees", "leaves no two replicas, which alone exchange gradients", cure)])
    return search.model_copy(
        update={
            "objective": "step_time",
            "executable": False,
            "data_parallel_degrees": degrees,
            "pipeline_parallel_degrees": (1,),
            "tensor_parallel_degrees": (1,),
            "sequence_parallel": False,
            "context_parallel_degrees": (1,),
            "expert_parallel_degrees": (1,),
            "gradient_codecs": (codec,),
            "activation_codecs": ("none",),
        }
    )


def with_bandwidth(cluster: Cluster, bandwidth_bytes_per_s: float) -> Cluster:
    """The cluster with this bandwidth on the narrowest link between nodes, and others between nodes in proportion.

    In a single node its own links are meant, and measured collectives make way for formulas.
    """
    owner = {slot: cluster.node_of(rank) for rank, slot in enumerate(cluster.slots)}
    edges = [(a, b, link, owner.get(a, a) == owner.get(b, b)) for a, b, link in cluster.graph.edges(data="link")]
    alone = all(inside for *_, inside in edges)
    chosen = [link.bandwidth_bytes_per_s for _, _, link, inside in edges if inside == alone]
    finite = [bandwidth for bandwidth in chosen if isfinite(bandwidth)]
    factor = bandwidth_bytes_per_s / min(finite) if finite else 1.0
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(cluster.graph)
    for a, b, link, inside in edges:
        changed = replace(link, bandwidth_bytes_per_s=factor * link.bandwidth_bytes_per_s) if inside == alone else link
        graph.add_edge(a, b, link=changed)
    return replace(cluster, graph=graph, node_collectives={} if alone else cluster.node_collectives)
