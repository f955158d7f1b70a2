"""Plans under load: the least latency, limits that hold, and how far off the nearest plan is where none does."""

from dataclasses import replace
from typing import Any

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.errors import NoFeasiblePlanError
from chinchilla_sim.graph.zoo import chain
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.selection import search as search_module
from chinchilla_sim.planner.selection.candidate import SearchResult
from chinchilla_sim.planner.selection.served_search import find_served_plans
from chinchilla_sim.planner.serving import Load, Serve, Serving, Station, Tandem, priced_sizes, tandems_of
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.simulator.requests import simulate_requests

GRAPH = chain(6, 10**5, 18e9, 1e5, 16)
"""60 ms of forward work for a batch of 16 on one node, 3.75 ms a request: 267 requests a second."""


def find(rate: str, count: int = 4, serve: Serve = simulate_requests, **allowed: Any) -> SearchResult:
    """The best plan for so many requests on so many equal nodes."""
    usual = {"name": "n", "count": count, "peak": "100 Gflop/s", "memory": "64 GiB", "price": "1 USD/h"}
    network = {"bandwidth": "10 Gbit/s", "latency": "10 us"}
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": [usual], "network": network}), "fp32")
    job = JobSpec.model_validate({"global_batch_size": 16, "kind": "inference", "arrival_rate": rate})
    search = SearchSpec.model_validate({"objective": "latency", **allowed})
    return find_served_plans(GRAPH, cluster, job, search, simulate, serve)


def p95_of(result: SearchResult) -> float:
    """The 95th percentile of the chosen plan."""
    assert result.best.serving
    return result.best.serving.p95_s


def test_replicas_that_share_a_core_answer_no_more_than_one_of_their_own() -> None:
    """Two replicas on one core take twice as long for a batch each; on a core of their own as long as one alone."""
    node = {"name": "n", "count": 2, "peak": "100 Gflop/s", "memory": "64 GiB"}
    network = {"bandwidth": "10 Gbit/s", "latency": "10 us"}
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": [node], "network": network}), "fp32")
    plan = Plan((tuple(task.name for task in GRAPH.compute_tasks),), ((0, 1),), (0, 1), 32, 1, "forward", ("none",), ())
    traversals = []
    for cores in (0, 1):
        pricer = Pricer(GRAPH, replace(cluster, cores=cores), JobSpec(global_batch_size=32, kind="inference"))
        traversals.append([tandem.traversal_s(16) for tandem in tandems_of(plan, pricer)])
    assert traversals[1] == pytest.approx([2 * seconds for seconds in traversals[0]])


@pytest.mark.parametrize("rate", ["20 requests/s", "400 requests/s", "800 requests/s"])
def test_the_chosen_plan_answers_first_of_all(rate: str) -> None:
    """Its 95th percentile is what the search minimises, no split's best is below it, nor is it below the bound of the space."""
    seen: list[Serving] = []

    def note(tandems: Any, load: Load) -> Serving:
        seen.append(simulate_requests(tandems, load))
        return seen[-1]

    found = find(rate, serve=note)
    assert found.best.objective == p95_of(found) == min(serving.p95_s for serving in seen)
    assert 0 < found.lower_bound <= p95_of(found) and found.gap is not None
    assert all(other.objective == other.serving.p95_s >= found.best.objective for other in found.runner_ups if other.serving)


def test_a_space_too_large_to_search_whole_gives_as_good_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations by rising estimate: within 2 % of the whole search, with the same bound."""
    whole = [find(rate) for rate in ("100 requests/s", "800 requests/s")]
    monkeypatch.setattr(search_module, "EXHAUSTIVE", 0)
    likely = [find(rate) for rate in ("100 requests/s", "800 requests/s")]
    for exact, quick in zip(whole, likely, strict=True):
        assert quick.lower_bound == exact.lower_bound and quick.considered <= exact.considered
        assert p95_of(quick) <= 1.02 * p95_of(exact)


def test_more_machines_answer_no_later() -> None:
    """A larger cluster has all plans of a smaller one."""
    latencies = [p95_of(find("200 requests/s", count)) for count in (1, 2, 4)]
    assert latencies == sorted(latencies, reverse=True)


def test_throughput_within_a_latency() -> None:
    """The fastest plan of all answers too late; with a limit another one is chosen, which holds it."""
    free = find("800 requests/s", objective="step_time")
    limit_s = 0.9 * p95_of(free)
    held = find("800 requests/s", objective="step_time", maximum_latency=f"{limit_s!r} s")
    assert p95_of(held) <= limit_s and held.best.step_s >= free.best.step_s and held.overloaded > 0


def test_under_load_money_is_that_of_the_devices_in_use() -> None:
    """Rented by the hour: 300 requests a second need two of the four nodes, and 16 of them cost what two nodes cost meanwhile."""
    found = find("300 requests/s", objective="cost")
    assert len(found.best.plan.slots) == 2 and found.one_rank is None
    assert found.best.objective == pytest.approx(2 * (1 / 3600) * 16 / 300)
    assert found.lower_bound <= found.best.objective


def test_more_arrivals_than_any_plan_can_answer_are_told() -> None:
    """Four nodes answer at most 1,067 requests a second: said with the shortfall and what would help."""
    with pytest.raises(
        NoFeasiblePlanError, match=r"job\.arrival_rate: 3000 requests/s arrive, 2\.8\d times the 10\d0 requests/s .*larger batches"
    ):
        find("3000 requests/s")


def test_a_latency_that_no_plan_reaches_is_told() -> None:
    """One request alone takes longer than the limit: the nearest plan, its percentile, and by how much it is too late."""
    with pytest.raises(
        NoFeasiblePlanError, match=r"search\.maximum_latency: the nearest plan .* within 3\.\d+ ms, .* too late; allow more"
    ):
        find("10 requests/s", maximum_latency="1 ms")


def test_batches_are_priced_at_powers_of_two_and_interpolated() -> None:
    """Sizes rise to the full batch, and a line knows every size up to it."""
    assert priced_sizes(24) == [1, 2, 4, 8, 16, 24] and priced_sizes(2) == [1, 2]
    line = Tandem((Station((1.0, 3.0), 0.5), Station((2.0, 2.0))))
    assert (line.most, line.traversal_s(2), line.interval_s(2), line.window) == (2, 5.5, 3.0, 2)


@pytest.mark.parametrize("rate", ["2 requests/s", "160 requests/s"])
def test_cost_under_load_is_bounded_by_the_time_of_the_arrivals(rate: str) -> None:
    """Devices are rented while a batch of 16 arrives, 8 s or 0.1 s: the bound is one device for so long, which carries both."""
    found = find(rate, objective="cost")
    assert found.lower_bound == pytest.approx(16 / float(rate.split()[0]) / 3600) == found.best.objective
