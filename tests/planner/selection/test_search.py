"""The search: exact against simulating everything, within what the scenario allows, and honest when nothing fits."""

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import NoFeasiblePlanError, ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.drafting.placement import placements
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import Program, lower, passes_of
from chinchilla_sim.planner.selection import judge as judge_module
from chinchilla_sim.planner.selection import search as search_module
from chinchilla_sim.planner.selection.candidate import SearchResult
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.slots import usable_by_speed
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline

CODECS = ("none", "int8")
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cluster_of(*nodes: dict[str, Any], bandwidth: str = "1 Gbit/s", latency: str = "100 us", backend: str = "plain") -> Cluster:
    """Nodes of 100 Gflop/s and 64 GiB at a switch, unless they say otherwise."""
    usual = {"peak": "100 Gflop/s", "memory": "64 GiB", "price": "1 USD/h", "power": "100 W"}
    tables = [{"name": f"n{index}", **usual, **node} for index, node in enumerate(nodes)]
    network = {"bandwidth": bandwidth, "latency": latency, "backend": backend}
    return build_cluster(ClusterSpec.model_validate({"nodes": tables, "network": network}), "fp32")


def search(graph: TaskGraph, cluster: Cluster, batch_size: int | None = None, kind: Any = "training", **allowed: Any) -> SearchResult:
    """The search with some keys of [search]."""
    job = JobSpec(global_batch_size=batch_size or graph.batch_size, kind=kind)
    return find_plans(graph, cluster, job, SearchSpec(**allowed), simulate)


def unimproved(graph: TaskGraph, cluster: Cluster, **allowed: Any) -> SearchResult:
    """The search without the local search behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "IMPROVED", 0)
        return search(graph, cluster, **allowed)


def every_plan(graph: TaskGraph, cluster: Cluster, **allowed: Any) -> tuple[SearchResult, list[Plan]]:
    """The search without bounds, and all plans that it simulates."""
    seen: list[Plan] = []

    def note(program: Program, pricing: Pricing, cluster: Cluster) -> Timeline:
        seen.append(program.plan)
        return simulate(program, pricing, cluster)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "step_lower_bound_s", lambda *_: 0.0)
        patch.setattr(search_module, "IMPROVED", 0)
        job = JobSpec(global_batch_size=graph.batch_size)
        return find_plans(graph, cluster, job, SearchSpec(**allowed), note), seen


graphs = st.one_of(
    st.builds(mlp, st.lists(st.sampled_from([8, 64, 512, 2048]), min_size=3, max_size=5), st.sampled_from([4, 6, 12])),
    st.builds(chain, st.integers(1, 5), st.sampled_from([0, 10**5]), st.sampled_from([1e8, 1e10]), st.sampled_from([0.0, 1e5]), st.just(8)),
)
clusters = st.builds(
    lambda peaks, bandwidth, backend: cluster_of(*({"peak": peak} for peak in peaks), bandwidth=bandwidth, backend=backend),
    st.lists(st.sampled_from(["10 Gflop/s", "100 Gflop/s"]), min_size=1, max_size=3),
    st.sampled_from(["10 Mbit/s", "1 Gbit/s", "100 Gbit/s"]),
    st.sampled_from(["plain", "gloo"]),
)


def peaks_of(plan: Plan, pricing: Pricing) -> list[float]:
    """Peak bytes of every rank."""
    lines = [plan.pipeline(replica) for replica in range(plan.data_parallel_degree)]
    rows = {rank: row for replica, line in enumerate(lines) for rank, row in zip(line, passes_of(plan, replica), strict=True)}
    return [pricing.peak_bytes(plan, rank, rows[rank]) for rank in sorted(rows)]


@quick
@given(graphs, clusters, st.sampled_from(["step_time", "cost", "energy"]))
def test_bounds_never_lose_the_winner(graph: TaskGraph, cluster: Cluster, objective: str) -> None:
    """Branch and bound finds what simulating every plan of the space finds, for the best and for every other split."""
    allowed = {"objective": objective, "gradient_codecs": CODECS, "activation_codecs": CODECS, "runner_ups": 9}
    bounded = unimproved(graph, cluster, **allowed)
    full, seen = every_plan(graph, cluster, **allowed)
    assert len(seen) == full.considered - full.infeasible >= bounded.simulated
    assert bounded.considered == full.considered
    ours, theirs = ([c.objective for c in (result.best, *result.runner_ups)] for result in (bounded, full))
    assert ours == pytest.approx(theirs, rel=1e-12)


@quick
@given(graphs, clusters)
def test_every_plan_is_whole_and_fits(graph: TaskGraph, cluster: Cluster) -> None:
    """Each plan holds all tasks in order, divides the batch exactly, contradicts itself nowhere and fits into memory; none comes twice."""
    _, seen = every_plan(graph, cluster, activation_codecs=CODECS)
    names = [task.name for task in graph.compute_tasks]
    for plan in seen:
        assert mistakes_of(plan) == []
        assert [name for stage in plan.stages for name in stage] == names
        assert plan.microbatch_size * plan.microbatch_count * plan.data_parallel_degree == graph.batch_size
        pricing = Pricer(graph, cluster, JobSpec(global_batch_size=graph.batch_size)).price(plan)
        assert all(peak <= cluster.device(slot).memory_bytes for peak, slot in zip(peaks_of(plan, pricing), plan.slots, strict=True))
    assert len(set(seen)) == len(seen)


@quick
@given(graphs, clusters)
def test_same_question_gives_the_same_answer(graph: TaskGraph, cluster: Cluster) -> None:
    """Two searches agree in every plan and number."""
    one, other = search(graph, cluster), search(graph, cluster)
    assert [c.plan for c in (one.best, *one.runner_ups)] == [c.plan for c in (other.best, *other.runner_ups)]
    assert (one.best.objective, one.considered, one.simulated) == (other.best.objective, other.considered, other.simulated)


@quick
@given(
    graphs,
    clusters,
    st.integers(1, 3),
    st.sampled_from([None, (1,), (2, 3)]),
    st.sampled_from([None, (1, 2)]),
    st.sampled_from([None, (2,)]),
)
def test_answer_is_within_what_is_allowed(graph: TaskGraph, cluster: Cluster, fewest: int, data: Any, pipeline: Any, counts: Any) -> None:
    """Ranks, degrees and microbatch counts of every answer are those the scenario allows, or there is no plan at all."""
    allowed = {"minimum_ranks": fewest, "data_parallel_degrees": data, "pipeline_parallel_degrees": pipeline, "microbatch_counts": counts}
    try:
        result = search(graph, cluster, **allowed)
    except NoFeasiblePlanError as error:
        assert error.constraint in ("search", "search.minimum_ranks")
        return
    assert result.simulated <= result.considered
    for plan in (candidate.plan for candidate in (result.best, *result.runner_ups)):
        assert fewest <= plan.rank_count <= cluster.rank_count
        assert data is None or plan.data_parallel_degree in data
        assert pipeline is None or plan.pipeline_parallel_degree in pipeline
        assert counts is None or plan.microbatch_count in counts


def test_answers_are_ranked_and_of_different_splits() -> None:
    """Runners-up follow the best in order, each of another split, no more than asked for."""
    result = search(chain(6, 10**5, 1e10, 1e5, 12), cluster_of({}, {}, {}, {}), runner_ups=3)
    answers = [result.best, *result.runner_ups]
    splits = [(c.plan.data_parallel_degree, c.plan.pipeline_parallel_degree) for c in answers]
    assert len(answers) == len(set(splits)) == 4
    assert [c.objective for c in answers] == sorted(c.objective for c in answers)


def test_slow_link_keeps_the_job_on_one_rank() -> None:
    """At 10 Mbit/s sharing the work of 10 ms costs more than it saves; at 100 Gbit/s two replicas halve it."""
    graph = chain(4, 10**5, 1e9, 1e4, 8)
    assert search(graph, cluster_of({}, {}, bandwidth="10 Mbit/s")).best.plan.describe() == "one rank"
    fast = search(graph, cluster_of({}, {}, bandwidth="100 Gbit/s", latency="1 us"))
    assert fast.best.plan.rank_count == 2 and fast.best.step_s == pytest.approx(0.005, rel=0.05)


def test_one_rank_is_told_although_more_are_asked_for() -> None:
    """With minimum_ranks = 2 the answer has two ranks, and beside it stands what one alone would take, uncounted."""
    result = search(chain(4, 10**5, 1e9, 1e4, 8), cluster_of({}, {}, bandwidth="10 Mbit/s"), minimum_ranks=2)
    assert result.best.plan.rank_count == 2 and result.one_rank is not None
    assert result.one_rank.plan.rank_count == 1 and result.one_rank.step_s < result.best.step_s
    assert result.simulated <= result.considered


def test_cost_takes_fewer_ranks_than_time() -> None:
    """Two replicas are faster and dearer: each objective finds its own plan, and energy prefers the frugal node."""
    graph, cluster = chain(4, 10**5, 1e9, 1e4, 8), cluster_of({}, {}, bandwidth="10 Gbit/s")
    time, cost = search(graph, cluster), search(graph, cluster, objective="cost")
    assert (time.best.plan.rank_count, cost.best.plan.rank_count) == (2, 1)
    assert cost.best.objective == pytest.approx(cost.best.step_s / 3600)


def test_objective_needs_a_price() -> None:
    """Nothing can be cheapest where nothing has a price."""
    with pytest.raises(ScenarioError, match="no node states its price"):
        search(chain(2, 8, 1e9, 0.0, 8), cluster_of({"price": "0 USD/h"}), objective="cost")


def test_codec_is_chosen_where_the_link_is_slow() -> None:
    """Two replicas over 10 Mbit/s with fast memory: int8 gradients; none are allowed unless the scenario names them."""
    graph, cluster = chain(2, 10**6, 1e9, 0.0, 8), cluster_of({}, {}, bandwidth="10 Mbit/s")
    allowed = {"minimum_ranks": 2, "pipeline_parallel_degrees": (1,)}
    assert search(graph, cluster, gradient_codecs=CODECS, **allowed).best.plan.gradient_codecs == ("int8",)
    assert search(graph, cluster, **allowed).best.plan.gradient_codecs == ("none",)


def test_inference_goes_forward_only() -> None:
    """Plans of inference have no backward pass and no codec for gradients."""
    result = search(mlp([64, 64, 64, 64], 8, training=False), cluster_of({}, {}), kind="inference", gradient_codecs=CODECS)
    for candidate in (result.best, *result.runner_ups):
        assert candidate.plan.schedule == "forward" and set(candidate.plan.gradient_codecs) == {"none"}


def test_progress_is_told_split_by_split() -> None:
    """The caller hears after each split how many of all are done, and how far the best is from the bound: never farther than before."""
    heard: list[tuple[int, int, float]] = []

    def hear(done: int, total: int, gap: float | None) -> None:
        heard.append((done, total, -1.0 if gap is None else gap))

    job = JobSpec(global_batch_size=4)
    find_plans(chain(3, 8, 1e9, 0.0, 4), cluster_of({}, {}), job, SearchSpec(), simulate, hear)
    assert [row[:2] for row in heard] == [(1, 3), (2, 3), (3, 3)]
    gaps = [row[2] for row in heard]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] >= 0


def test_memory_that_is_short_asks_for_stages() -> None:
    """160 MB of state do not fit into 100 MB, but half of it does: two stages, and no plan of one rank."""
    result = search(chain(4, 10**7, 1e9, 0.0, 8), cluster_of({"memory": "100 MB"}, {"memory": "100 MB"}))
    assert result.best.plan.pipeline_parallel_degree == 2 and result.one_rank is None and result.infeasible > 0


def test_memory_that_is_short_asks_for_microbatches() -> None:
    """Activations of a whole batch do not fit; one rank that goes forward and back at once by parts does."""
    graph = mlp([1000, 1000, 1000, 10], 4096)
    whole = search(graph, cluster_of({})).best.timeline.peak_memory_bytes(0)
    result = search(graph, cluster_of({"memory": f"{0.8 * whole} B"}))
    assert result.best.plan.microbatch_count > 1 and result.best.timeline.peak_memory_bytes(0) <= 0.8 * whole


def test_nothing_fits() -> None:
    """Far too little memory everywhere is an answer: what is needed, what there is, what would help."""
    with pytest.raises(NoFeasiblePlanError) as caught:
        search(chain(1, 10**7, 1e9, 0.0, 8), cluster_of({"memory": "100 MB"}))
    assert caught.value.constraint == "device memory"
    assert (
        caught.value.shortfall
        == "the closest plan (one rank, 8 microbatches of 1, 1f1b) needs 160 MB on n0/0, which has 100 MB: 60.0 MB too little"
        or ("needs 160 MB on n0/0, which has 100 MB: 60.0 MB too little" in caught.value.shortfall)
    )
    assert "use more nodes or more memory" in caught.value.cure


def test_nothing_is_allowed() -> None:
    """Two ranks at least of a cluster of one: the search says so instead of blaming memory."""
    with pytest.raises(NoFeasiblePlanError, match="asks for 2 ranks of 1; write at most 1") as caught:
        search(chain(4, 8, 1e9, 0.0, 8), cluster_of({}), minimum_ranks=2)
    assert caught.value.constraint == "search.minimum_ranks"


@pytest.mark.parametrize("split", [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_placements_use_every_rank_once(split: tuple[int, int]) -> None:
    """Each placement is a grid of all ranks, and no two are equal."""
    found = list(placements(*split))
    assert len(set(found)) == len(found) == (2 if min(split) > 1 else 1)
    for placement in found:
        assert sorted(rank for row in placement for rank in row) == list(range(split[0] * split[1]))
        assert [len(row) for row in placement] == [split[0]] * split[1]


def test_devices_are_ranked_by_speed() -> None:
    """The faster first; equal ones by number."""
    cluster = cluster_of({"peak": "10 Gflop/s"}, {"peak": "1 Tflop/s"}, {"peak": "1 Tflop/s"}, {"peak": "1 Gflop/s"})
    assert usable_by_speed(cluster) == [1, 2, 0, 3]


def test_shortfall_is_of_the_closest_plan() -> None:
    """Ten tasks of 16 MB over two devices of 60 MB: at best 80 MB on one of them, 20 MB too much."""
    cluster = cluster_of({"memory": "60 MB"}, {"memory": "60 MB"})
    with pytest.raises(NoFeasiblePlanError, match=r"20\.0 MB too little"):
        search(chain(10, 10**7, 1e9, 0.0, 8), cluster)


def test_shortfall_names_the_plan_it_is_of() -> None:
    """Where only pipelines are allowed, the closest plan is a pipeline."""
    cluster = cluster_of({"memory": "60 MB"}, {"memory": "60 MB"})
    with pytest.raises(NoFeasiblePlanError, match=r"closest plan \(2 stages"):
        search(chain(10, 10**7, 1e9, 0.0, 8), cluster, pipeline_parallel_degrees=(2,))


def test_cut_that_fits_is_found() -> None:
    """A partition that keeps the large tensor inside a stage fits; the balanced one, which receives it, does not."""
    graph = mlp([64, 64, 16384, 64, 64, 64], 512)
    cluster = cluster_of({"memory": "1 GB"}, {"memory": "1 GB"}, bandwidth="1 Tbit/s", latency="0 s")
    job, allowed = JobSpec(global_batch_size=512), {"pipeline_parallel_degrees": (2,), "microbatch_counts": (1,)}
    best = search(graph, cluster, **allowed).best.plan
    pricer = Pricer(graph, cluster, job)
    names = [task.name for task in graph.compute_tasks]
    plans = [replace(best, stages=(tuple(names[:cut]), tuple(names[cut:]))) for cut in range(1, len(names))]
    peaks = {plan: max(peaks_of(plan, pricer.price(plan))) for plan in plans}
    least = min(peaks.values())
    small = cluster_of({"memory": f"{least * 1.001} B"}, {"memory": f"{least * 1.001} B"}, bandwidth="1 Tbit/s", latency="0 s")
    search(graph, small, **allowed)


def test_device_that_fits_is_found() -> None:
    """One rank needs 160 MB: the fast device has 100 MB, the slow one 1 GB, so there is a plan."""
    cluster = cluster_of({"peak": "1 Tflop/s", "memory": "100 MB"}, {"peak": "100 Gflop/s", "memory": "1 GB"})
    assert search(chain(1, 10**7, 1e9, 0.0, 8), cluster, maximum_ranks=1).best.plan.slots == (1,)


REGRETS = [
    ([256, 4096, 16, 1024, 4096], ["10 Gflop/s", "100 Gflop/s", "100 Gflop/s"], "100 Mbit/s"),
    ([4096, 1024, 16, 4096, 256], ["100 Gflop/s", "10 Gflop/s", "50 Gflop/s"], "1 Gbit/s"),
    ([16, 4096, 4096, 16], ["100 Gflop/s", "10 Gflop/s"], "1 Gbit/s"),
    ([1024, 256, 4096, 16, 16], ["50 Gflop/s", "10 Gflop/s", "100 Gflop/s"], "10 Mbit/s"),
    ([4096, 4096, 256, 16], ["50 Gflop/s", "50 Gflop/s", "100 Gflop/s"], "100 Mbit/s"),
    ([16, 16, 4096, 1024], ["10 Gflop/s", "50 Gflop/s"], "10 Mbit/s"),
]


def regret_of(widths: list[int], peaks: list[str], bandwidth: str) -> float:
    """How much slower the chosen pipeline is than the best over every cut, microbatch count and schedule, all simulated."""
    graph, cluster = mlp(widths, 16), cluster_of(*({"peak": peak} for peak in peaks), bandwidth=bandwidth)
    best = search(graph, cluster, pipeline_parallel_degrees=(len(peaks),)).best
    pricer = Pricer(graph, cluster, JobSpec(global_batch_size=16))
    names, cuts = [task.name for task in graph.compute_tasks], allowed_cuts(graph, training=True)
    steps = []
    for inner in combinations([end for end in range(1, len(names)) if cuts[end - 1]], len(peaks) - 1):
        stages = tuple(tuple(names[first:end]) for first, end in pairwise((0, *inner, len(names))))
        for count in (1, 2, 4, 8, 16):
            for schedule in ("gpipe", "1f1b"):
                plan = replace(best.plan, stages=stages, microbatch_count=count, schedule=schedule)
                steps.append(simulate(lower(plan), pricer.price(plan), cluster).step_s)
    return best.step_s / min(steps) - 1


def test_chosen_cut_is_nearly_the_best_cut() -> None:
    """Over unequal devices and slow links the chosen pipeline is within 10 % of the best of all cuts."""
    assert max(regret_of(*problem) for problem in REGRETS) < 0.10
