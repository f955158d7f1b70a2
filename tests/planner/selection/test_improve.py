"""The local search behind the search: it never makes a plan worse, stays in the space, and finds what one choice for all cannot."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.graph.coarsen import coarsen
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import chain, gpt, mlp
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.selection import search as search_module
from chinchilla_sim.planner.selection.candidate import SearchResult
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate

WIDE: dict[str, Any] = {
    "executable": False,
    "activation_codecs": ("none", "int8"),
    "gradient_codecs": ("none", "int8"),
    "gradient_buckets": (1, 2),
    "recompute": ("none", "full"),
}


def line_of(*bandwidths: str, memory: str = "64 GiB") -> Cluster:
    """Nodes of 100 Gflop/s and 10 GB/s in a line, with a link of its own between every two neighbours."""
    usual = {"peak": "100 Gflop/s", "memory": memory, "memory_bandwidth": "10 GB/s"}
    nodes = [{"name": f"n{index}", **usual} for index in range(len(bandwidths) + 1)]
    links = [{"between": [f"n{i}", f"n{i + 1}"], "bandwidth": bandwidth, "latency": "20 us"} for i, bandwidth in enumerate(bandwidths)]
    return build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": {"topology": "links"}, "links": links}), "fp32")


def find(graph: TaskGraph, cluster: Cluster, improved: int = 3, **allowed: Any) -> SearchResult:
    """The search with so many of its best plans improved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "IMPROVED", improved)
        return find_plans(graph, cluster, JobSpec(global_batch_size=graph.batch_size), SearchSpec(**allowed), simulate)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(mlp, st.lists(st.sampled_from([8, 256, 2048]), min_size=3, max_size=5), st.sampled_from([4, 12])),
    st.lists(st.sampled_from(["10 Mbit/s", "1 Gbit/s", "100 Gbit/s"]), min_size=1, max_size=2),
)
def test_improving_never_harms(graph: TaskGraph, bandwidths: list[str]) -> None:
    """The best after the local search is at least as good, contradicts itself nowhere, and is not below the bound of the space."""
    cluster = line_of(*bandwidths)
    plain, better = find(graph, cluster, improved=0, **WIDE), find(graph, cluster, **WIDE)
    assert better.best.objective <= plain.best.objective
    assert mistakes_of(better.best.plan) == []
    assert better.best.objective >= better.lower_bound * (1 - 1e-9)
    assert better.best.step_s == pytest.approx(simulate_again(better, graph, cluster))


def simulate_again(result: SearchResult, graph: TaskGraph, cluster: Cluster) -> float:
    """The step of the best plan, priced anew without anything kept from the search."""
    from chinchilla_sim.planner.pricing.pricer import Pricer
    from chinchilla_sim.planner.program import lower

    plan = result.best.plan
    pricing = Pricer(graph, cluster, JobSpec(global_batch_size=graph.batch_size)).price(plan)
    return simulate(lower(plan), pricing, cluster).step_s


def test_only_the_slow_boundary_is_packed() -> None:
    """Three nodes in a line, the second link a thousand times slower: int8 there pays for itself, on the fast link it does not."""
    graph = chain(3, 1000, 3e9, 1e7, 8)
    allowed: dict[str, Any] = {"pipeline_parallel_degrees": (3,), "activation_codecs": ("none", "int8"), "schedules": ("1f1b",)}
    best = find(graph, line_of("100 Gbit/s", "100 Mbit/s"), **allowed).best.plan
    assert best.activation_codecs == ("none", "int8")


def test_only_the_fullest_stages_compute_again() -> None:
    """1F1B keeps most microbatches on the first stages: where memory is short, some of them recompute and the last one does not."""
    shape = {"layers": 12, "width": 256, "heads": 4, "vocabulary": 1000, "tokens": 256, "tied_head": False}
    graph = coarsen(gpt(batch_size=16, **shape), 64)
    allowed: dict[str, Any] = {
        "executable": False, "pipeline_parallel_degrees": (4,), "data_parallel_degrees": (1,), "microbatch_counts": (8,),
        "schedules": ("1f1b",), "recompute": ("none", "full"),
    }  # fmt: skip
    fast = ("1 Tbit/s",) * 3
    roomy = find(graph, line_of(*fast), **allowed).best
    peaks = [roomy.timeline.peak_memory_bytes(rank) for rank in range(4)]
    assert roomy.plan.recompute == () and peaks[3] == min(peaks)
    tight = find(graph, line_of(*fast, memory=f"{0.7 * max(peaks)} B"), **allowed).best
    assert "full" in tight.plan.recompute[:3] and tight.plan.recompute[3] == "none"
    assert all(tight.timeline.peak_memory_bytes(rank) <= 0.7 * max(peaks) for rank in range(4))
    everywhere = find(graph, line_of(*fast), **allowed | {"recompute": ("full",)}).best
    assert roomy.step_s < tight.step_s < everywhere.step_s
