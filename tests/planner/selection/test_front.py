"""The Pareto front: nobody on it is beaten, everybody else is, and what is shown spreads along it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import Program
from chinchilla_sim.planner.selection import search as search_module
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.planner.selection.front import FrontPlan, front_of, headroom, rows_on_fewer_devices, spread, weigh
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.space.configuration import Sharding
from chinchilla_sim.planner.space.screen import Screen
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline

quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cluster_of(*nodes: dict[str, Any], bandwidth: str = "1 Gbit/s") -> Cluster:
    """Nodes of 100 Gflop/s and 64 GiB at a switch, without price or power unless they say otherwise."""
    tables = [{"name": f"n{index}", "peak": "100 Gflop/s", "memory": "64 GiB", **node} for index, node in enumerate(nodes)]
    network = {"bandwidth": bandwidth, "latency": "100 us"}
    return build_cluster(ClusterSpec.model_validate({"nodes": tables, "network": network}), "fp32")


def simulated(
    graph: TaskGraph, cluster: Cluster, front: bool = False, **allowed: Any
) -> tuple[SearchResult, list[tuple[Plan, Pricing, Timeline]]]:
    """A search, and all plans of the space that it simulated (not one rank alone, which stands beside it for reference)."""
    seen: list[tuple[Plan, Pricing, Timeline]] = []

    def note(program: Program, pricing: Pricing, cluster: Cluster) -> Timeline:
        seen.append((program.plan, pricing, simulate(program, pricing, cluster)))
        return seen[-1][2]

    found = find_plans(graph, cluster, JobSpec(global_batch_size=graph.batch_size), SearchSpec(**allowed), note, front=front)
    return found, seen[: found.simulated]


graphs = st.one_of(
    st.builds(mlp, st.lists(st.sampled_from([8, 64, 512, 2048]), min_size=3, max_size=5), st.sampled_from([4, 6, 12])),
    st.builds(chain, st.integers(1, 5), st.sampled_from([0, 10**5]), st.sampled_from([1e8, 1e10]), st.sampled_from([0.0, 1e5]), st.just(8)),
)
clusters = st.builds(
    lambda nodes, bandwidth: cluster_of(*nodes, bandwidth=bandwidth),
    st.lists(
        st.fixed_dictionaries(
            {"peak": st.sampled_from(["10 Gflop/s", "100 Gflop/s"])},
            optional={"price": st.sampled_from(["1 USD/h", "5 USD/h"]), "power": st.sampled_from(["50 W", "300 W"])},
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["10 Mbit/s", "1 Gbit/s", "100 Gbit/s"]),
)


@quick
@given(graphs, clusters, st.booleans(), st.booleans())
def test_front_is_what_nobody_beats(graph: TaskGraph, cluster: Cluster, whole: bool, wide: bool) -> None:
    """No member dominates another, and every simulated plan is dominated by or equal to a member; in large spaces too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "EXHAUSTIVE", 400 if whole else 0)
        found, seen = simulated(graph, cluster, wide, activation_codecs=("none", "int8"))
    assert found.front and len({member.values for member in found.front}) == len(found.front)
    assert not any(one.dominates(other) for one in found.front for other in found.front)
    for plan, pricing, timeline in seen:
        point = weigh(Candidate(plan, pricing, timeline, 0.0), cluster, JobSpec(global_batch_size=graph.batch_size), SearchSpec())
        assert any(member.values == point.values or member.dominates(point) for member in found.front)
    assert [member.step_s for member in found.front] == sorted(member.step_s for member in found.front)


@quick
@given(graphs, clusters)
def test_front_begins_with_the_fastest_plan(graph: TaskGraph, cluster: Cluster) -> None:
    """The fastest plan found is as fast as the first member; the same question gives the same front."""
    found, _ = simulated(graph, cluster)
    assert found.front[0].values[0] == pytest.approx(found.best.step_s, rel=1e-8)
    again, _ = simulated(graph, cluster)
    assert [member.candidate.plan for member in again.front] == [member.candidate.plan for member in found.front]


def points(*rows: tuple[float, ...]) -> list[FrontPlan]:
    """Points on the axes time, USD and headroom, without plans."""
    candidate: Any = None
    return [FrontPlan(candidate, step_s, usd, None, room) for step_s, usd, room in rows]


def test_dominance_by_hand() -> None:
    """Better on one axis and equal on the others dominates; better here and worse there does not, nor does an equal point."""
    one, dearer, slower_cheaper, same = points((1.0, 2.0, 0.5), (1.0, 3.0, 0.5), (2.0, 1.0, 0.5), (1.0 + 1e-12, 2.0, 0.5))
    assert one.dominates(dearer) and not dearer.dominates(one)
    assert not one.dominates(slower_cheaper) and not slower_cheaper.dominates(one)
    assert not one.dominates(same) and not same.dominates(one)


def test_axes_without_a_price_or_power_are_left_out() -> None:
    """Without price and power only time and headroom count; with a price, USD = seconds x price of the devices in use."""
    graph = chain(4, 10**5, 1e9, 1e4, 8)
    bare, _ = simulated(graph, cluster_of({}, {}))
    assert all(member.step_usd is None and member.step_joule is None and len(member.values) == 2 for member in bare.front)
    priced, _ = simulated(graph, cluster_of({"price": "3.6 USD/h"}, {"price": "7.2 USD/h"}))
    for member in priced.front:
        rate = sum((0.001, 0.002)[slot] for slot in member.candidate.plan.slots)
        assert member.step_usd == pytest.approx(rate * member.step_s) and member.step_joule is None


def test_headroom_is_that_of_the_fullest_rank() -> None:
    """A rank whose device has half the memory leaves less free, and it is the one that counts."""
    graph = chain(2, 2 * 10**6, 1e9, 0.0, 2)
    cluster = cluster_of({}, {"memory": "1 GiB"})
    found, _ = simulated(graph, cluster, pipeline_parallel_degrees=(2,), data_parallel_degrees=(1,))
    candidate, plan = found.best, found.best.plan
    free = [
        1 - candidate.timeline.peak_memory_bytes(rank) / cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes for rank in range(2)
    ]
    assert headroom(candidate, cluster) == min(free) < max(free)


def test_chosen_plan_stays_where_another_is_equal() -> None:
    """Of two plans with equal values the chosen one is the member, else the one on fewer devices."""
    found, _ = simulated(chain(4, 10**5, 1e9, 1e4, 8), cluster_of({}))
    one = found.best
    twin = replace(one, objective=one.objective)
    cluster = cluster_of({})
    asked = cluster, JobSpec(global_batch_size=8), SearchSpec()
    assert front_of([one, twin], *asked, chosen=twin)[0].candidate is twin
    assert len(front_of([one, twin], *asked)) == 1


def test_spread_keeps_the_ends_and_leaves_no_crowd() -> None:
    """Of a hundred points on a line twelve are shown: both ends, and no gap of more than twice an even one."""
    rows = [(10.0 ** (index / 99), 10.0 ** (1 - index / 99), 0.5) for index in range(100)]
    shown = spread(points(*rows))
    places = np.log10([member.step_s for member in shown])
    assert len(shown) == 12 and places[0] == 0 and places[-1] == pytest.approx(1)
    assert max(np.diff(places)) <= 2 / 11
    assert spread(points(*rows[:12])) == tuple(points(*rows[:12]))


def test_large_spaces_are_looked_at_on_fewer_devices() -> None:
    """Where only likely configurations are priced, halves of the cluster get a plan each; the answer stays the same."""
    graph, cluster = chain(8, 10**5, 1e10, 1e4, 64), cluster_of(*({"price": "1 USD/h"} for _ in range(16)), bandwidth="100 Gbit/s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "EXHAUSTIVE", 0)
        found, _ = simulated(graph, cluster, front=True)
        narrow, _ = simulated(graph, cluster)
    assert found.best.plan == narrow.best.plan and found.simulated == narrow.simulated
    assert {len(member.candidate.plan.slots) for member in found.front} >= {16, 8, 4, 2, 1}


def test_rows_on_fewer_devices_are_counted() -> None:
    """At most six device counts, two rows each by rising estimate: halves of the largest and the least; known counts are left out."""
    counts = np.arange(1, 101)
    ones = np.ones(100, dtype=np.int64)
    zeros = np.zeros(100, dtype=np.int64)
    estimate_s = 1.0 / counts
    screened = Screen((Sharding(),), (("1f1b", 1),), zeros, np.repeat(counts, 1), ones, ones, zeros, estimate_s, estimate_s, 100)
    tried = list(rows_on_fewer_devices(screened, frozenset({100})))
    assert [int(screened.device_counts()[rows[0]]) for rows in tried] == [50, 25, 12, 6, 1]
    assert all(len(rows) <= 2 for rows in tried)
