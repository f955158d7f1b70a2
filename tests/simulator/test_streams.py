"""Computation beside communication, with numbers that fit in a drawing."""

from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.hosts import Host
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


def play_on_host(cores: float, *seconds: float, device: Device = DEVICE, flow_bytes: float = 0.0) -> Times:
    """One computation on each rank of one host from second 0, and bytes from rank 0 to rank 1 at 10 B/s."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    count = max(2, len(seconds))
    names = tuple(f"r{rank}" for rank in range(count))
    graph.add_nodes_from(names)
    graph.add_edge("r0", "r1", link=Link(0.0, 10.0))
    cluster = Cluster(graph, names, (device,) * count, Backend("plain"), hosts=(Host(tuple(range(count)), cores),))
    activities = ActivityGraph(count)
    for rank, work_s in enumerate(seconds):
        activities.link(NO_ACTIVITY, activities.add(work_s, rank=rank))
    if flow_bytes:
        activities.link(NO_ACTIVITY, activities.add_flow(cluster, FlowSpec(0, 1, flow_bytes, 0, 1)))
    return play_events(activities, cluster, (device,) * count)


def test_ranks_share_the_cores_of_their_host() -> None:
    """Two ranks on one core: 4 s of work take 8, and of the other's 10 s six are left then, alone on the core."""
    assert play_on_host(1.0, 10.0, 4.0).finish_s == pytest.approx([14.0, 8.0])


def test_ranks_with_a_core_each_do_not_meet() -> None:
    """Two ranks on two cores run as if alone."""
    assert play_on_host(2.0, 10.0, 4.0).finish_s == [10.0, 4.0]


def test_ranks_beyond_the_cores_share_those_that_the_launcher_gives_them() -> None:
    """Three ranks of 4 s on a machine of two cores: the first two have one together and take 8, the third 4; two ranks do not meet."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from("abc")
    cluster = Cluster(graph, ("a", "b", "c"), (DEVICE,) * 3, Backend("plain"), cores=2)
    for count, finish_s in ((3, [8.0, 8.0, 4.0]), (2, [4.0, 4.0])):
        activities = ActivityGraph(count, slots=[(rank,) for rank in range(count)])
        for rank in range(count):
            activities.link(NO_ACTIVITY, activities.add(4.0, rank=rank))
        assert play_events(activities, cluster, (DEVICE,) * count).finish_s == pytest.approx(finish_s)


def test_communication_takes_an_idle_core_first() -> None:
    """Bytes that keep half a core busy on either side slow one rank on two cores by nothing, and two ranks to half their speed."""
    talking = replace(DEVICE, communication_s_per_byte=0.05)
    assert play_on_host(2.0, 10.0, device=talking, flow_bytes=40.0).finish_s == pytest.approx([10.0, 4.0])
    assert play_on_host(2.0, 10.0, 10.0, device=talking, flow_bytes=40.0).finish_s == pytest.approx([12.0, 12.0, 4.0])


@given(st.lists(st.floats(0.1, 50.0), min_size=1, max_size=6), st.integers(1, 4))
def test_no_core_second_is_lost(seconds: list[float], cores: int) -> None:
    """The last rank ends when the host has done all work, never sooner, and at once where work never waits for a core to be left."""
    end_s = max(play_on_host(float(cores), *seconds).finish_s)
    assert end_s >= max(sum(seconds) / cores, max(seconds)) - 1e-6
    assert end_s <= sum(seconds) / cores + max(seconds) + 1e-6
    if cores == 1:
        assert end_s == pytest.approx(sum(seconds))


def test_share_of_a_core_comes_in_portions() -> None:
    """A quarter of a core does the 10 ms of a period within 2.5; the first of two ranks' ends after 7.5 ms, every other takes 10."""
    quarter = replace(DEVICE, core_share=0.25)
    assert play_on_host(2.0, 0.001, device=quarter).finish_s == pytest.approx([0.00025])
    assert play_on_host(2.0, 0.020, device=quarter).finish_s == pytest.approx([0.010])
    assert play_on_host(2.0, 0.100, device=quarter).finish_s == pytest.approx([0.090])


def test_a_rank_without_quota_neither_sends_nor_takes_in() -> None:
    """Rank 0 has used up its first portion after 2.5 ms: what it wants to send then leaves with its second, at 7.5 ms; what rank 1 gets at
    8.5 ms it takes in at once, as it has computed nothing.
    """
    quarter = replace(DEVICE, core_share=0.25)
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("a", "b", link=Link(0.0, 1000.0))
    cluster = Cluster(graph, ("a", "b"), (quarter,) * 2, Backend("plain"))
    activities = ActivityGraph(2)
    activities.link(NO_ACTIVITY, activities.add(0.020, rank=0))
    flow = activities.add_flow(cluster, FlowSpec(0, 1, 1.0, 0, 1))
    activities.link(NO_ACTIVITY, flow, 0.004)
    times = play_events(activities, cluster, (quarter,) * 2)
    assert (times.start_s[flow], times.finish_s[flow]) == pytest.approx((0.0075, 0.0085))


def play_messages(count: int, cores: float, fabric_s: float, work_s: float = 0.0) -> Times:
    """Messages of one second from rank 0 to rank 1 at once, each of which takes 0.5 s of either end's core and `fabric_s` between."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("a", "b", link=Link(0.0, 10.0, fat_pipe=True))
    graph.add_node("c")
    device = replace(DEVICE, communication_s_per_message=0.5)
    hosts = (Host((0, 2), cores, fabric_s_per_message=fabric_s), Host((1,), cores, fabric_s_per_message=fabric_s))
    cluster = Cluster(graph, ("a", "b", "c"), (device,) * 3, Backend("plain"), hosts=hosts)
    activities = ActivityGraph(3)
    for _ in range(count):
        activities.link(NO_ACTIVITY, activities.add_flow(cluster, FlowSpec(0, 1, 10.0, 0, 1)))
    if work_s:
        activities.link(NO_ACTIVITY, activities.add(work_s, rank=2))
    return play_events(activities, cluster, (device,) * 3)


def test_messages_of_a_host_come_one_behind_the_other() -> None:
    """The first leaves at once, the next when 0.5 s for it and half of the fabric's second are over; the receiver is free by then."""
    times = play_messages(3, 1.0, 1.0)
    assert times.start_s == pytest.approx([0.0, 1.0, 2.0])
    assert times.finish_s == pytest.approx([1.0, 2.0, 3.0])
    assert play_messages(3, 2.0, 1.0).start_s == pytest.approx([0.0, 0.5, 1.0])


def test_what_is_computed_meanwhile_loses_what_messages_take() -> None:
    """Two messages take 2 s of the core on which another rank computes for 10; with a second core it loses nothing."""
    assert play_messages(2, 1.0, 1.0, work_s=10.0).finish_s[2] == pytest.approx(12.0)
    assert play_messages(2, 2.0, 1.0, work_s=10.0).finish_s[2] == pytest.approx(10.0)


def test_a_rank_of_two_devices_computes_on_the_cores_of_both() -> None:
    """One rank whose two devices have a core each runs as if alone; on the same core it takes twice as long."""
    for hosts, end_s in (((Host((0,), 1.0), Host((1,), 1.0)), 10.0), ((Host((0, 1), 1.0),), 20.0)):
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_edge("a", "b", link=Link(0.0, 10.0))
        cluster = Cluster(graph, ("a", "b"), (DEVICE,) * 2, Backend("plain"), hosts=hosts)
        activities = ActivityGraph(1, slots=[(0, 1)])
        activities.link(NO_ACTIVITY, activities.add(10.0, rank=0))
        assert play_events(activities, cluster, (DEVICE,)).finish_s == pytest.approx([end_s])


@given(st.floats(0.0001, 0.2), st.floats(0.1, 0.9))
def test_portions_add_up_to_the_share(work_s: float, share: float) -> None:
    """Work takes its sustained seconds, give or take a period."""
    end_s = play_on_host(2.0, work_s, device=replace(DEVICE, core_share=share)).finish_s[0]
    assert work_s * share - 1e-9 <= end_s <= work_s + 0.01
    assert end_s >= work_s - 0.015
