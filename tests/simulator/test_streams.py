"""Computation beside communication, with numbers that fit in a drawing."""

from dataclasses import replace

import networkx as nx
import pytest

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, FlowSpec, Times
from chinchilla_sim.simulator.engine import play_events

DEVICE = Device("d", 1.0, 1.0)


def play(device: Device, flow_bytes: float, starts_s: float) -> Times:
    """10 s of computation on rank 0, and bytes from rank 0 to rank 1 at 10 B/s that start at some time."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("a", "b", link=Link(0.0, 10.0))
    cluster = Cluster(graph, ("a", "b"), (device,) * 2, Backend("plain"))
    activities = ActivityGraph(2)
    activities.link(NO_ACTIVITY, activities.add(10.0, rank=0))
    activities.link(NO_ACTIVITY, activities.add_flow(cluster, FlowSpec(0, 1, flow_bytes, 0, 1)), starts_s)
    return play_events(activities, cluster, (device,) * 2)


def test_without_figures_nothing_is_slowed() -> None:
    """The default device computes as if alone."""
    assert play(DEVICE, 40.0, 2.0).finish_s == [10.0, 6.0]


def test_overlap_slows_by_its_factor_while_it_lasts() -> None:
    """A slowdown of 1 halves the speed from second 2 to 6: 2 s of work take 4, so the end is at 12."""
    assert play(replace(DEVICE, overlap_slowdown=1.0), 40.0, 2.0).finish_s == pytest.approx([12.0, 6.0])


def test_bytes_take_time_from_the_cores() -> None:
    """10 B/s at 0.05 s per byte take half of the core for 4 s; 40 B cost 2 s of work on each end."""
    assert play(replace(DEVICE, communication_s_per_byte=0.05), 40.0, 2.0).finish_s == pytest.approx([12.0, 6.0])


def test_computation_never_stops() -> None:
    """Bytes that would take more than the core leave it a twentieth."""
    assert play(replace(DEVICE, communication_s_per_byte=1.0), 40.0, 0.0).finish_s == pytest.approx([4 + 10 - 4 * 0.05, 4.0])


def test_communication_behind_the_computation_costs_nothing() -> None:
    """What starts when the computation is over cannot slow it."""
    assert play(replace(DEVICE, overlap_slowdown=1.0, communication_s_per_byte=0.1), 40.0, 11.0).finish_s == pytest.approx([10.0, 15.0])
