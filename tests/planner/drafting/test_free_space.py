"""The search with free replica counts: never worse, honest about its bound, and within what the scenario allows."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.drafting.free_space import FreeSpace
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.space.configuration import Space
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def search_of(stage_replicas: Any, **allowed: Any) -> SearchSpec:
    """A search beyond what the runtime plays."""
    return SearchSpec(executable=False, stage_replicas=stage_replicas, **allowed)


def cluster_of(*peaks: int, bandwidth: str = "1 Gbit/s") -> Cluster:
    """Nodes of one device each at a switch."""
    nodes = [{"name": f"n{index}", "peak": f"{peak} Gflop/s", "memory": "64 GiB", "price": "1 USD/h"} for index, peak in enumerate(peaks)]
    network = {"bandwidth": bandwidth, "latency": "10 us", "backend": "plain"}
    return build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": network}), "fp32")


def space_of(graph: TaskGraph, cluster: Cluster, kind: Any = "training", **allowed: Any) -> FreeSpace:
    """The plans with free replica counts of a job of 12 samples."""
    job, search = JobSpec(global_batch_size=12, kind=kind), search_of("free", **allowed)
    ranks = min(cluster.rank_count, search.maximum_ranks or cluster.rank_count)
    return FreeSpace(Pricer(graph, cluster, job), Space(job, search, ranks, len(graph.compute_tasks)))


clusters = st.builds(
    lambda peaks, bandwidth: cluster_of(*peaks, bandwidth=bandwidth),
    st.lists(st.sampled_from([50, 100]), min_size=3, max_size=4),
    st.sampled_from(["10 Mbit/s", "1 Gbit/s", "100 Gbit/s"]),
)
graphs = st.one_of(
    st.builds(mlp, st.lists(st.sampled_from([8, 512, 2048]), min_size=3, max_size=4), st.just(12)),
    st.builds(
        chain, st.integers(2, 4), st.sampled_from([0, 10**5]), st.sampled_from([1e8, 1e10]), st.sampled_from([0.0, 1e5]), st.just(12)
    ),
)


@quick
@given(graphs, clusters, st.sampled_from(["step_time", "cost"]), st.sampled_from(["training", "inference"]))
def test_free_counts_are_never_worse_and_no_plan_is_below_the_bound(graph: TaskGraph, cluster: Cluster, objective: Any, kind: Any) -> None:
    """Every plan of the equal space is tried too; the bound covers both, so the gap is never negative."""
    job = JobSpec(global_batch_size=12, kind=kind)
    equal, free = (find_plans(graph, cluster, job, search_of(name, objective=objective), simulate) for name in ("equal", "free"))
    assert free.best.objective <= equal.best.objective
    assert free.lower_bound_s <= equal.lower_bound_s and free.lower_bound_s <= free.best.step_s
    assert free.gap is None or free.gap >= 0


@quick
@given(graphs, clusters, st.data())
def test_no_cut_and_no_counts_beat_the_bound_of_the_space(graph: TaskGraph, cluster: Cluster, data: st.DataObject) -> None:
    """Whatever the stages and replicas of a plan, its simulated step is above `least_s` of its devices and microbatches."""
    space = space_of(graph, cluster)
    tasks = [task.name for task in graph.compute_tasks]
    stages = data.draw(st.integers(2, min(len(tasks), cluster.rank_count - 1)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tasks) - 1), min_size=stages - 1, max_size=stages - 1)))
    ends = sorted(data.draw(st.sets(st.integers(1, cluster.rank_count - 1), min_size=stages - 1, max_size=stages - 1)))
    rows = list(zip((0, *ends), (*ends, cluster.rank_count), strict=True))
    count = data.draw(st.sampled_from([4, 6, 12]))
    plan = Plan(
        stages=tuple(tuple(tasks[first:end]) for first, end in zip((0, *cuts), (*cuts, len(tasks)), strict=True)),
        placement=tuple(tuple(range(first, end)) for first, end in rows),
        slots=tuple(range(cluster.rank_count)),
        global_batch_size=12,
        microbatch_count=count,
        schedule=data.draw(st.sampled_from(["1f1b", "gpipe"])),
        gradient_codecs=("none",) * stages,
        activation_codecs=("none",) * (stages - 1),
    )
    assume(plan.free_replicas)
    step_s = simulate(lower(plan), space.pricer.price(plan), cluster).step_s
    assert space.least_s(cluster.rank_count, count) <= step_s * (1 + 1e-9)


def test_lists_of_the_search_hold_for_free_counts_too() -> None:
    """Replica counts, stages, microbatches, schedules, ranks and codecs are taken from the lists."""
    graph, cluster = mlp([512, 2048, 2048, 512, 64], 12), cluster_of(*[100] * 6)
    plans = list(
        space_of(
            graph,
            cluster,
            data_parallel_degrees=[1, 2],
            pipeline_parallel_degrees=[3, 4],
            microbatch_counts=[6, 12],
            schedules=["gpipe"],
            zero_stages=[1],
            gradient_codecs=["int8"],
            activation_codecs=["fp16"],
        ).plans()
    )
    assert plans
    assert {len(row) for plan in plans for row in plan.placement} == {1, 2}
    assert {plan.stage_count for plan in plans} <= {3, 4} and {plan.microbatch_count for plan in plans} == {6, 12}
    assert {(plan.schedule, plan.zero_stage) for plan in plans} == {("gpipe", 1)}
    codecs = {codec for plan in plans for codec, row in zip(plan.gradient_codecs, plan.placement, strict=True) if len(row) > 1}
    assert codecs == {"int8"} and {codec for plan in plans for codec in plan.activation_codecs} == {"fp16"}


def test_devices_are_halved_down_to_three_or_the_minimum() -> None:
    """16 devices are tried as 16, 8 and 4; with at least 8 as 16 and 8; 2 devices allow no counts of their own."""
    graph = mlp([8, 8, 8], 12)
    assert space_of(graph, cluster_of(*[100] * 16)).device_counts() == [16, 8, 4]
    assert space_of(graph, cluster_of(*[100] * 16), minimum_ranks=8).device_counts() == [16, 8]
    assert space_of(graph, cluster_of(100, 100)).device_counts() == []


def test_too_many_devices_are_refused_with_a_cure() -> None:
    """The exact programme ends at 32 ranks, and says so."""
    with pytest.raises(ScenarioError, match=r"up to 32 ranks, not for 33.*maximum_ranks = 32"):
        space_of(mlp([8, 8], 12), cluster_of(*[100] * 33))
    assert space_of(mlp([8, 8], 12), cluster_of(*[100] * 33), maximum_ranks=32).device_counts()[0] == 32


def test_heavy_work_without_weights_is_replicated_by_hand() -> None:
    """Two thirds of the work without weights, one third with all of them: 2/1 replicas keep three devices busy and exchange nothing.

    A microbatch takes 30 ms and 15 ms: 12 x 15 ms, and 30 ms until the first has come and the last is back. Equal counts leave 12 x 30 ms
    to one device, or exchange 40 MB over 1 Gbit/s.
    """
    whole = chain(2, 2 * 10**7, 36e9, 1e3, 12)
    inputs, first, second = whole.tasks
    flop = {name: 2 * getattr(second, name) for name in ("forward_flop", "input_gradient_flop", "weight_gradient_flop")}
    light = replace(first, parameters=(), weight_bytes=0.0, backward_weight_bytes=0.0, **flop)
    graph = replace(whole, tasks=(inputs, light, second), weights={"task1.weight": whole.weights["task1.weight"]})
    job, cluster = JobSpec(global_batch_size=12), cluster_of(100, 100, 100)
    equal, free = (find_plans(graph, cluster, job, search_of(name), simulate).best for name in ("equal", "free"))
    assert free.plan.placement == ((0, 1), (2,)) and free.plan.describe().startswith("2 stages of 2/1 replicas, 12 microbatches of 1")
    assert free.step_s == pytest.approx(0.21, rel=0.01) and equal.step_s > 0.36
