"""Requests under load: textbook queues, stories by hand, a second implementation, and the engine's own steps."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cost.queueing import queue_wait_s
from chinchilla_sim.graph.zoo import chain
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.serving import ClosedLoop, Load, Station, Tandem, tandems_of
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.simulator.requests import circulate, serve_arrivals, serve_closed_loop, simulate_requests


def tandem(*stations: tuple[float, ...] | float) -> Tandem:
    """Stations from their seconds by batch size, or for single requests."""
    return Tandem(tuple(Station(row if isinstance(row, tuple) else (row,)) for row in stations))


def poisson(rate: float, count: int, seed: int = 0) -> list[float]:
    """So many arrivals."""
    arrivals: list[float] = np.random.default_rng(seed).exponential(1 / rate, count).cumsum().tolist()
    return arrivals


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_station_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: mean wait load s / (2 (1 - load)), within 3 % on 200,000 requests; the station is busy for the load."""
    service_s = 2.0
    arrivals = poisson(load / service_s, 200_000)
    batches = serve_arrivals([tandem(service_s)], arrivals)
    waits = batches.start_s - np.array(arrivals)
    assert waits.mean() == pytest.approx(queue_wait_s(load / service_s, service_s), rel=0.03)
    serving = simulate_requests([tandem(service_s)], Load(load / service_s))
    assert serving.utilization == pytest.approx(load, rel=0.03) and serving.load == pytest.approx(load)
    assert serving.mean_s == pytest.approx(service_s + queue_wait_s(load / service_s, service_s), rel=0.05)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_line_of_equal_stations_waits_only_at_the_first(load: float) -> None:
    """Behind a first station of constant time no later one of that time is ever met busy: M/D/1 plus the other stations."""
    serving = simulate_requests([tandem(1.0, 1.0, 1.0)], Load(load))
    assert serving.mean_s == pytest.approx(3.0 + queue_wait_s(load, 1.0), rel=0.05)


def test_a_tandem_by_hand() -> None:
    """Stages of 2 s and 3 s, a link busy for 1 s and 0.5 s long; requests at 0, 1 and 9 s.

    0 s: stage 0 until 2, link until 3, there at 3.5, answered at 6.5. 1 s: waits until 2, stage 0 until 4, link until 5, there at 5.5,
    stage 1 is busy until 6.5, answered at 9.5. 9 s: finds stage 0 free, there at 12.5, answered at 15.5.
    """
    line = Tandem((Station((2.0,)), Station((1.0,), 0.5), Station((3.0,))))
    batches = serve_arrivals([line], [0.0, 1.0, 9.0])
    assert batches.start_s.tolist() == [0.0, 2.0, 9.0]
    assert batches.end_s.tolist() == [6.5, 9.5, 15.5]
    assert (line.traversal_s(1), line.interval_s(1), line.capacity_per_s, line.window) == (6.5, 3.0, 1 / 3, 3)


def test_a_free_replica_takes_all_that_wait_and_waits_for_no_more() -> None:
    """Batches of up to 3 in 10 s each: the first request goes alone, the next three together, the last two together."""
    batches = serve_arrivals([tandem((10.0, 10.0, 10.0))], [0.0, 1.0, 2.0, 3.0, 4.0, 15.0])
    assert batches.sizes.tolist() == [1, 3, 2]
    assert batches.start_s.tolist() == [0.0, 10.0, 20.0]


def test_the_replica_that_is_free_longest_is_next() -> None:
    """Two replicas of 5 s and 2 s: the second is free again first and takes the third request; the fourth goes to the one free longer."""
    batches = serve_arrivals([tandem(5.0), tandem(2.0)], [0.0, 0.5, 1.0, 9.0])
    assert batches.replicas.tolist() == [0, 1, 1, 1]
    assert batches.start_s.tolist() == [0.0, 0.5, 2.5, 9.0]


def test_a_slow_stage_behind_a_fast_one_still_gets_full_batches() -> None:
    """A fast first stage takes no batch that would only wait inside: ten requests a second need batches at a stage of 1 s, and get them."""
    line = tandem((0.01,) * 20, (1.0,) * 20)
    serving = simulate_requests([line], Load(15.0))
    assert serving.capacity_per_s == 20 and not serving.saturated
    assert serving.batch_size > 10 and serving.p99_s < 4


def test_arrivals_above_capacity_are_told_with_both_figures() -> None:
    """Two replicas of 4 requests in 2 s answer 4 a second; 5 a second saturate them by a quarter."""
    serving = simulate_requests([tandem((1.0, 1.3, 1.6, 2.0))] * 2, Load(5.0))
    assert (serving.saturated, serving.capacity_per_s, serving.load, serving.p95_s) == (True, 4.0, 1.25, float("inf"))


def test_light_load_meets_nobody() -> None:
    """At a hundredth of the capacity the median request is alone."""
    line = tandem((1.0, 1.5), (2.0, 2.5))
    serving = simulate_requests([line], Load(0.01 * line.capacity_per_s))
    assert serving.p50_s == line.traversal_s(1) and serving.batch_size < 1.05


def test_quantiles_rise_and_depend_on_the_seed_alone() -> None:
    """p50 <= p95 <= p99; the same seed gives the same figures, another one others."""
    lines = [tandem((1.0, 1.2, 1.4), (0.5, 0.5, 0.5))] * 3
    one = simulate_requests(lines, Load(4.0, 1))
    assert one.p50_s <= one.p95_s <= one.p99_s and one.throughput_per_s == pytest.approx(4.0, rel=0.05)
    assert simulate_requests(lines, Load(4.0, 1)) == one != simulate_requests(lines, Load(4.0, 2))


times = st.lists(st.floats(0, 20), min_size=1, max_size=40).map(sorted)
lines_of_one = st.lists(st.floats(0.1, 5), min_size=1, max_size=4).map(lambda seconds: tandem(*seconds))


@settings(deadline=None)
@given(times, lines_of_one, st.integers(1, 4))
def test_more_replicas_are_never_slower(arrivals: list[float], line: Tandem, count: int) -> None:
    """With one request per batch no request is answered later where there is one more replica."""
    few = serve_arrivals([line] * count, arrivals).end_s
    more = serve_arrivals([line] * (count + 1), arrivals).end_s
    assert (more <= few + 1e-9).all()


@pytest.mark.parametrize("rate", [1.0, 3.0, 5.0])
def test_more_replicas_lower_the_95th_percentile_of_batches(rate: float) -> None:
    """The same with batches, as a quantile: from 2 to 6 replicas it never rises."""
    line = tandem((1.0, 1.1, 1.2, 1.3), (0.7, 0.8, 0.9, 1.0))
    p95 = [simulate_requests([line] * count, Load(rate)).p95_s for count in range(2, 7)]
    assert all(more <= few * 1.001 for few, more in pairwise(p95))


@settings(deadline=None)
@given(times, st.floats(0.1, 5), st.integers(1, 5))
def test_replicas_of_one_station_are_a_queue_with_several_servers(arrivals: list[float], service_s: float, count: int) -> None:
    """Kiefer and Wolfowitz: each arrival starts when the server that is free first is, and not before it is there."""
    free = [0.0] * count
    expected = []
    for arrival in arrivals:
        start = max(arrival, min(free))
        free[free.index(min(free))] = start + service_s
        expected.append(start)
    assert serve_arrivals([tandem(service_s)] * count, arrivals).start_s.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("latency", ["1 us", "50 ms"])
def test_a_global_batch_that_arrives_at_once_takes_the_engine_s_step(latency: str) -> None:
    """Stages, links and replicas: the last of all requests that arrive at 0 s is answered when the engine's step ends."""
    nodes = [{"name": "n", "count": 4, "peak": "100 Gflop/s", "memory": "64 GiB"}]
    network = {"bandwidth": "1 Gbit/s", "latency": latency}
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": network}), "fp32")
    graph, job = chain(6, 10**5, 6e9, 1e6, 16), JobSpec(global_batch_size=16, kind="inference")
    pricer = Pricer(graph, cluster, job)
    compared = 0
    for count in (1, 2, 4):
        found = find_plans(graph, cluster, job, SearchSpec(microbatch_counts=(count,), minimum_ranks=2, runner_ups=9), simulate)
        for candidate in (found.best, *found.runner_ups):
            batches = serve_arrivals(tandems_of(candidate.plan, pricer), [0.0] * 16)
            assert set(batches.sizes.tolist()) == {candidate.plan.microbatch_size}
            assert batches.end_s.max() == pytest.approx(candidate.step_s, rel=1e-9)
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("concurrency", [1, 3, 8, 40])
def test_a_closed_loop_keeps_little_s_law(concurrency: int) -> None:
    """Requests under way = answers per second x mean latency; one alone takes its way through all stations."""
    lines = [tandem((1.0, 1.2, 1.4), (2.0, 2.1, 2.2))] * 2
    serving = serve_closed_loop(lines, ClosedLoop(concurrency))
    assert serving.throughput_per_s * serving.mean_s == pytest.approx(concurrency, rel=0.01)
    assert serving.throughput_per_s <= serving.capacity_per_s * (1 + 1e-9) and not serving.saturated
    if concurrency == 1:
        assert serving.p50_s == serving.p99_s == 3.0
    else:
        assert serving.throughput_per_s > serve_closed_loop(lines, ClosedLoop(concurrency - 1)).throughput_per_s * (1 - 1e-9)


def test_a_closed_loop_by_hand() -> None:
    """Three requests under way, batches of up to 2 in 2 s: two at 0 s, the third at 2 s with one of them, and so on."""
    arrivals, batches = circulate([tandem((2.0, 2.0))], 3, 6)
    assert arrivals.tolist() == [0.0, 0.0, 0.0, 2.0, 2.0, 4.0]
    assert batches.sizes.tolist() == [2, 2, 2] and batches.end_s.tolist() == [2.0, 4.0, 6.0]
