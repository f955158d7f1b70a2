"""Disturbed steps: seeded, centred where they should be, and network stories by hand."""

import networkx as nx
import numpy as np
import pytest

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.cost.failure import daly_interval_s, wall_s_per_work_s, young_interval_s
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, FlowSpec
from chinchilla_sim.simulator.disturbance import Disturbances, draw_steps
from chinchilla_sim.simulator.goodput import simulate_goodput
from chinchilla_sim.simulator.network import LinkChange, Traffic

DEVICES = (Device("d", 1.0, 1.0),) * 2


@pytest.fixture
def cluster() -> Cluster:
    """Two hosts, 10 B/s each way."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for edge in (("a", "b"), ("b", "a")):
        graph.add_edge(*edge, link=Link(0.0, 10.0))
    return Cluster(graph, ("a", "b"), DEVICES, Backend("plain"))


@pytest.fixture
def graph(cluster: Cluster) -> ActivityGraph:
    """100 computations of 1 s in a row on rank 0, then 40 B to rank 1."""
    activities = ActivityGraph(2)
    before = activities.add(1.0, rank=0)
    activities.link(NO_ACTIVITY, before)
    for _ in range(99):
        before = activities.add(1.0, rank=0, after=before)
    activities.link(before, activities.add_flow(cluster, FlowSpec(0, 1, 40.0, 0, 1)))
    return activities


def test_without_disturbance_every_step_is_the_same(graph: ActivityGraph, cluster: Cluster) -> None:
    """104 s, each time."""
    assert set(draw_steps(graph, cluster, DEVICES, Disturbances()).steps_s) == {104.0}


def test_jitter_spreads_around_the_mean(graph: ActivityGraph, cluster: Cluster) -> None:
    """100 draws of 10 % each: the step's standard deviation is 1 s, and its mean stays; the same seed gives the same steps."""
    spread = draw_steps(graph, cluster, DEVICES, Disturbances(jitter=0.1, samples=1000, seed=3))
    assert np.mean(spread.steps_s) == pytest.approx(104, abs=0.15)
    assert np.std(spread.steps_s) == pytest.approx(1.0, rel=0.1)
    low, middle, high = spread.percentiles_s
    assert low < middle < high and (high - low) == pytest.approx(2 * 1.645, rel=0.15)
    assert spread == draw_steps(graph, cluster, DEVICES, Disturbances(jitter=0.1, samples=1000, seed=3))
    assert spread != draw_steps(graph, cluster, DEVICES, Disturbances(jitter=0.1, samples=1000, seed=4))


def test_stragglers_are_slow_for_whole_steps(graph: ActivityGraph, cluster: Cluster) -> None:
    """A quarter of the steps takes 204 s, the others 104 s."""
    spread = draw_steps(graph, cluster, DEVICES, Disturbances(straggler_chance=0.25, straggler_factor=2.0, samples=1000))
    assert set(spread.steps_s) == {104.0, 204.0}
    assert np.mean(np.array(spread.steps_s) == 204.0) == pytest.approx(0.25, abs=0.05)


def test_link_that_drops_holds_the_message_up(graph: ActivityGraph, cluster: Cluster) -> None:
    """Down from second 102 to 110: 20 B before, 20 B after."""
    change = LinkChange(("a", "b"), 102.0, 110.0, 0.0)
    assert set(draw_steps(graph, cluster, DEVICES, Disturbances(link_changes=(change,))).steps_s) == {112.0}


def test_traffic_takes_its_fair_share_at_most(graph: ActivityGraph, cluster: Cluster) -> None:
    """2 B/s of others leave 8 B/s; others that want 100 B/s get half."""
    for wanted, step_s in ((2.0, 105.0), (100.0, 108.0)):
        found = draw_steps(graph, cluster, DEVICES, Disturbances(traffic=(Traffic(0, 1, wanted),))).steps_s
        assert found == pytest.approx([step_s] * len(found))


def test_goodput_is_dalys() -> None:
    """A month-long run of nodes that fail every 10 h in all: simulated goodput within 1 % of the formula, intervals near each other."""
    found = simulate_goodput(1.0, 60.0, 300.0, 36_000.0, seed=1)
    assert found.simulated == pytest.approx(found.expected, rel=0.01)
    assert found.daly_interval_s == pytest.approx(found.best_interval_s, rel=0.02)
    assert found.young_interval_s == pytest.approx(found.daly_interval_s, rel=0.05)
    assert found.best_expected >= found.expected


def test_intervals_are_whole_steps() -> None:
    """A checkpoint is saved between steps."""
    found = simulate_goodput(7.0, 60.0, 300.0, 36_000.0, seed=1, interval_s=100.0)
    assert found.interval_s == 98.0 and found.best_interval_s % 7.0 == pytest.approx(0.0, abs=1e-6)


def test_published_figures() -> None:
    """Young 1974: sqrt(2 x 60 s x 24 h) = 3220 s; without failures nothing is lost but the checkpoints."""
    assert young_interval_s(60.0, 86_400.0) == pytest.approx(3220, abs=1)
    assert daly_interval_s(200.0, 60.0) == 60.0
    assert wall_s_per_work_s(600.0, 60.0, 300.0, 1e12) == pytest.approx(1.1, rel=1e-6)
    assert wall_s_per_work_s(1e9, 60.0, 300.0, 1.0) == float("inf")
