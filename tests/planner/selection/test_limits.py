"""Deadline, budget, step time and cost per sample: kept by every answer, exact in small spaces, and honest when nothing holds."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.rent import rent
from chinchilla_sim.errors import NoFeasiblePlanError, ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import chain
from chinchilla_sim.planner.explanation.explain import explain_choice, gap_words
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import Program
from chinchilla_sim.planner.selection import judge as judge_module
from chinchilla_sim.planner.selection import search as search_module
from chinchilla_sim.planner.selection.candidate import SearchResult
from chinchilla_sim.planner.selection.limits import limits_of, within_limits
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline

STEPS = 1000
HOUR = 1 / 3600
"""USD per second of a node for 1 USD/h."""
GRAPH = chain(4, 10**5, 1e9, 1e4, 8)
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cluster_of(*prices: str, bandwidth: str = "10 Gbit/s") -> Cluster:
    """Nodes of 100 Gflop/s at a switch, with these prices ("" for none)."""
    usual = {"peak": "100 Gflop/s", "memory": "64 GiB"}
    tables = [{"name": f"n{index}", **usual, **({"price": price} if price else {})} for index, price in enumerate(prices)]
    network = {"bandwidth": bandwidth, "latency": "100 us"}
    return build_cluster(ClusterSpec.model_validate({"nodes": tables, "network": network}), "fp32")


def plan(graph: TaskGraph, cluster: Cluster, simulate: Any = simulate, **search: Any) -> SearchResult:
    """The search of a job of 1000 steps, without the local search behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "IMPROVED", 0)
        return improved(graph, cluster, simulate, **search)


def improved(graph: TaskGraph, cluster: Cluster, simulate: Any = simulate, **search: Any) -> SearchResult:
    """The whole search of a job of 1000 steps."""
    return find_plans(graph, cluster, JobSpec(global_batch_size=graph.batch_size, steps=STEPS), SearchSpec(**search), simulate)


def every_point(graph: TaskGraph, cluster: Cluster) -> list[tuple[float, float]]:
    """Seconds and USD of 1000 steps of every plan of the space, cheap devices among them."""
    points: list[tuple[float, float]] = []

    def note(program: Program, pricing: Pricing, cluster: Cluster) -> Timeline:
        timeline = simulate(program, pricing, cluster)
        usd_per_s = sum(cluster.device(slot).usd_per_s for slot in program.plan.slots)
        points.append((STEPS * timeline.step_s, STEPS * timeline.step_s * usd_per_s))
        return timeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "step_lower_bound_s", lambda *_: 0.0)
        plan(graph, cluster, note, budget="1e9 USD")
    return points


graphs = st.builds(chain, st.integers(2, 5), st.sampled_from([0, 10**5]), st.sampled_from([1e8, 1e10]), st.just(1e4), st.just(8))
clusters = st.builds(
    lambda prices, bandwidth: cluster_of(*prices, bandwidth=bandwidth),
    st.lists(st.sampled_from(["1 USD/h", "4 USD/h"]), min_size=2, max_size=3),
    st.sampled_from(["100 Mbit/s", "100 Gbit/s"]),
)


@quick
@given(graphs, clusters, st.sampled_from(["step_time", "cost"]), st.floats(0, 1), st.floats(0, 1))
def test_answer_is_the_best_within_the_limits(graph: TaskGraph, cluster: Cluster, objective: str, share: float, part: float) -> None:
    """The best plan of all that hold deadline and budget, by simulating every plan; no plan where none holds."""
    points = every_point(graph, cluster)
    deadline_s, budget_usd = (
        min(axis) + one * (max(axis) - min(axis)) for axis, one in zip(zip(*points, strict=True), (share, part), strict=True)
    )
    holding = [point for point in points if point[0] <= deadline_s * (1 + 1e-9) and point[1] <= budget_usd * (1 + 1e-9)]
    limits = {"deadline": f"{deadline_s!r} s", "budget": f"{budget_usd!r} USD"}
    try:
        found = plan(graph, cluster, objective=objective, **limits)
    except NoFeasiblePlanError as error:
        assert not holding and error.constraint.startswith("search.")
        return
    axis = 0 if objective == "step_time" else 1
    assert found.best.objective * STEPS == pytest.approx(min(point[axis] for point in holding), rel=1e-9)
    assert found.limits and all(found.limits.hold(one.plan.slots, one.step_s) for one in (found.best, *found.runner_ups))
    assert found.lower_bound <= found.best.objective
    better = improved(graph, cluster, objective=objective, **limits)
    assert better.limits and better.limits.hold(better.best.plan.slots, better.best.step_s)
    assert better.best.objective <= found.best.objective * (1 + 1e-12)


@quick
@given(graphs, clusters, st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_a_tighter_budget_never_helps(graph: TaskGraph, cluster: Cluster, shares: list[float]) -> None:
    """As the budget falls the fastest plan gets no faster, and once no plan holds, none holds any more."""
    costs = [cost for _, cost in every_point(graph, cluster)]
    steps: list[float] = []
    for share in sorted(shares, reverse=True):
        try:
            steps.append(plan(graph, cluster, budget=f"{min(costs) * (0.9 + share)!r} USD").best.step_s)
        except NoFeasiblePlanError:
            steps.append(float("inf"))
    assert steps == sorted(steps)


@quick
@given(graphs, clusters, st.floats(0.3, 0.99), st.floats(0.3, 0.99))
def test_the_cure_cures(graph: TaskGraph, cluster: Cluster, share: float, part: float) -> None:
    """Each way that a refusal offers, written into the scenario, gives a plan."""
    points = every_point(graph, cluster)
    limits = {"deadline": f"{share * min(time for time, _ in points)!r} s", "budget": f"{part * max(cost for _, cost in points)!r} USD"}
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan(graph, cluster, **limits)
    ways = caught.value.cure.split(";")[0].removeprefix("write ").split(", or ")
    assert ways
    for way in ways:
        changes = dict(re.findall(r'(\w+) = "([^"]+)"', way))
        assert changes and plan(graph, cluster, **(limits | changes)).best


@quick
@given(graphs, clusters, st.sampled_from(["step_time", "cost"]))
def test_what_is_found_without_limits_is_found_with_them(graph: TaskGraph, cluster: Cluster, objective: str) -> None:
    """Limits of exactly what the best plan takes, also after a local search, leave a plan that is as good."""
    free = improved(graph, cluster, objective=objective)
    cost = free.best.step_s * sum(cluster.device(slot).usd_per_s for slot in free.best.plan.slots)
    limits = {"deadline": f"{STEPS * free.best.step_s!r} s", "budget": f"{STEPS * cost!r} USD"}
    assert improved(graph, cluster, objective=objective, **limits).best.objective <= free.best.objective * (1 + 1e-9)


def test_limits_by_hand() -> None:
    """1000 steps of 8 samples for 1 USD/h: an hour allows 3.6 s a step, 0.5 USD 1.8 s, 1e-4 USD a sample 2.88 s on one node."""
    job, cluster = JobSpec(global_batch_size=8, steps=STEPS), cluster_of("1 USD/h", "1 USD/h")
    longest = {
        "deadline": ("1 h", 3.6, 3.6),
        "budget": ("0.5 USD", 1.8, 0.9),
        "maximum_step_time": ("2 s", 2.0, 2.0),
        "maximum_cost_per_sample": ("0.0001 USD", 2.88, 1.44),
    }
    for key, (text, on_one, on_two) in longest.items():
        limits = limits_of(job, SearchSpec.model_validate({key: text}), cluster)
        assert limits.longest_step_s(HOUR) == pytest.approx(on_one)
        assert limits.longest_step_s(2 * HOUR) == pytest.approx(on_two)
    every = limits_of(job, SearchSpec.model_validate({key: text for key, (text, *_) in longest.items()}), cluster)
    assert every.longest_step_s(HOUR) == pytest.approx(1.8) and every.longest_step_s(2 * HOUR) == pytest.approx(0.9)
    assert every.hold((0,), 1.8) and not every.hold((0, 1), 1.0)
    assert limits_of(job, SearchSpec(), cluster).longest_step_s(HOUR) == float("inf")


def test_deadline_and_budget_choose_between_cheap_and_fast() -> None:
    """One rank takes 10 ms a step and is cheapest, two take a little more than 5: a deadline between forces two, a budget one."""
    cluster = cluster_of("1 USD/h", "1 USD/h")
    assert len(plan(GRAPH, cluster, objective="cost").best.plan.slots) == 1
    hurried = plan(GRAPH, cluster, objective="cost", deadline="8 s")
    assert len(hurried.best.plan.slots) == 2 and hurried.one_rank is not None
    assert len(plan(GRAPH, cluster).best.plan.slots) == 2
    assert len(plan(GRAPH, cluster, budget="0.00279 USD").best.plan.slots) == 1


def test_interruptions_count_in_deadline_and_budget() -> None:
    """Of a node at a spot price the hours that interruptions lose count in deadline and budget, not in the time of a step."""
    spot = {"spot_price": "0.5 USD/h", "time_between_interruptions": "1 h"}
    node = {"name": "n", "peak": "100 Gflop/s", "memory": "64 GiB", "price": "1 USD/h", **spot}
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": [node]}), "fp32")
    job = JobSpec.model_validate({"global_batch_size": 8, "steps": STEPS, "restart": "10 min"})
    search = SearchSpec.model_validate({"spot": "always", "deadline": "1 h", "budget": "1 USD", "maximum_step_time": "4 s"})
    rented = rent(cluster, (0,), job, search)
    deadline, budget, step = limits_of(job, search, cluster).uses((0,), 3.0)
    assert rented.wall_s_per_work_s > 1.1
    assert deadline.value == pytest.approx(3000 * rented.wall_s_per_work_s) and step.value == 3.0
    assert budget.value == pytest.approx(3000 * rented.wall_s_per_work_s * 0.5 * HOUR)


def test_target_samples_count_as_steps() -> None:
    """8000 samples in batches of 8 are 1000 steps; a last batch that is not full is a step."""
    cluster = cluster_of("", "")
    for samples, deadline in ((8000, "9.9 s"), (7993, "9.9 s")):
        job = JobSpec(global_batch_size=8, target_samples=samples)
        assert job.total_steps == STEPS
        assert len(find_plans(GRAPH, cluster, job, SearchSpec(deadline=deadline), simulate).best.plan.slots) == 2


def test_refusal_says_what_and_by_how_much() -> None:
    """One node takes 10 s and 0.00278 USD, two are faster: 1 s and 0.001 USD are out of reach of both."""
    cluster = cluster_of("1 USD/h", "1 USD/h")
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan(GRAPH, cluster, budget="0.001 USD")
    assert caught.value.constraint == "search.budget"
    assert "the nearest plan (one rank) costs 0.00278 USD: 0.00178 USD (177.8 %) above the budget" in caught.value.shortfall
    assert caught.value.cure.startswith('write budget = "0.00281 USD"')
    with pytest.raises(NoFeasiblePlanError, match=r"search\.maximum_step_time: .* ms a step: .* above the maximum step time of 100 us"):
        plan(GRAPH, cluster, maximum_step_time="100 us")


def test_memory_comes_before_limits() -> None:
    """Where nothing fits into memory, that is said, not the budget."""
    tiny = {"name": "n", "peak": "100 Gflop/s", "memory": "1 MB", "price": "1 USD/h"}
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": [tiny]}), "fp32")
    with pytest.raises(NoFeasiblePlanError) as caught:
        plan(chain(4, 10**7, 1e9, 1e4, 8), cluster, budget="0.001 USD")
    assert caught.value.constraint == "device memory"


def test_limits_that_mean_nothing_are_refused() -> None:
    """A budget where no node has a price, and a deadline of a job of unknown length."""
    with pytest.raises(ScenarioError, match=r"search\.budget: money is limited, but no node states its price"):
        plan(GRAPH, cluster_of("", ""), budget="1 USD")
    with pytest.raises(ScenarioError, match=r"search\.deadline: is for the whole job, whose steps are not stated"):
        find_plans(GRAPH, cluster_of("", ""), JobSpec(global_batch_size=8), SearchSpec(deadline="1 h"), simulate)


def test_large_spaces_hold_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched by rising estimate: the plans that probably hold come first, and the cheapest within the deadline is found."""
    cluster = cluster_of(*["1 USD/h"] * 8, bandwidth="100 Gbit/s")
    graph = chain(8, 10**5, 1e10, 1e4, 64)
    whole = plan(graph, cluster, objective="cost", deadline="30 s")
    monkeypatch.setattr(search_module, "EXHAUSTIVE", 0)
    likely = plan(graph, cluster, objective="cost", deadline="30 s")
    assert likely.limits and likely.limits.hold(likely.best.plan.slots, likely.best.step_s)
    assert likely.best.objective <= 1.05 * whole.best.objective
    with pytest.raises(NoFeasiblePlanError, match=r"search\.deadline: the nearest plan"):
        plan(graph, cluster, deadline="1 s")


def test_the_bound_is_said_to_be_over_all_plans() -> None:
    """With limits the sentence on the bound says that it holds within them and beyond; a sentence tells what is left of each."""
    found = plan(GRAPH, cluster_of("1 USD/h", "1 USD/h"), deadline="8 s", objective="cost")
    assert "within the limits or beyond" in gap_words(found) and found.gap is not None and found.gap >= 0
    assert any(line.startswith("Limits: deadline 8.00 s: takes ") for line in explain_choice(found))
    assert "limits" not in gap_words(plan(GRAPH, cluster_of("", ""))).lower()


def test_plans_retold_in_own_tasks_are_checked_again() -> None:
    """A plan that takes longer in the model's own tasks than on the coarse graph is dropped; the refusal is the same as the search's."""
    found = plan(GRAPH, cluster_of("1 USD/h", "1 USD/h"), deadline="8 s")
    assert within_limits(found.limits, [found.best]) == [found.best]
    late = replace(found.best, timeline=replace(found.best.timeline, spans=(replace(found.best.timeline.spans[0], end_s=1.0),)))
    with pytest.raises(NoFeasiblePlanError, match=r"search\.deadline"):
        within_limits(found.limits, [late])
    assert within_limits(found.limits, [late, found.best]) == [found.best]
