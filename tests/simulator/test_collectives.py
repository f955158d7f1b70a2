"""Collectives as flows: the closed forms on idle links, and what contention and a bad ring order cost."""

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.ring import ring_order
from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.cost.collective import (
    choose_algorithm,
    halving_doubling_all_reduce_s,
    interpolate_s,
    measured_table,
    ring_all_gather_s,
    ring_all_reduce_s,
    ring_reduce_scatter_s,
    sent_bytes,
    tree_all_reduce_s,
)
from chinchilla_sim.cost.rounds import rounds_lower_bound_s, rounds_of
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Exchange
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator import collectives
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, makespan_s
from chinchilla_sim.simulator.collectives import add_rounds
from chinchilla_sim.simulator.engine import play_events
from chinchilla_sim.simulator.lowering import activities_of
from chinchilla_sim.simulator.replay import replay

PLAIN = Backend("plain")
GLOO = Backend("like-gloo", header_factor=1.048, rendezvous=True, collective_hop_s=0.00025, collective_segment_bytes=2**20)


def star(hosts: int, link: Link, backend: Backend = PLAIN) -> Cluster:
    """Hosts around a switch, half the latency on each side."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    names = tuple(f"n{index}/0" for index in range(hosts))
    half = Link(link.latency_s / 2, link.bandwidth_bytes_per_s)
    for name in names:
        graph.add_edge(name, "switch", link=half)
        graph.add_edge("switch", name, link=half)
    return Cluster(graph, names, (Device("d", 1.0, 1.0),) * hosts, backend)


def racks(count: int, width: int, uplink: float) -> Cluster:
    """Racks of hosts with 10 B/s each; a rack's uplink into the core has `uplink` B/s."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    names = []
    for rack in range(count):
        for host in range(width):
            names.append(f"r{rack}h{host}/0")
            for edge in ((names[-1], f"rack{rack}"), (f"rack{rack}", names[-1])):
                graph.add_edge(*edge, link=Link(0.0, 10.0))
        for edge in ((f"rack{rack}", "core"), ("core", f"rack{rack}")):
            graph.add_edge(*edge, link=Link(0.0, uplink))
    return Cluster(graph, tuple(names), (Device("d", 1.0, 1.0),) * len(names), PLAIN)


def seconds(cluster: Cluster, kind: str, algorithm: str, payload: float, order: list[int] | None = None) -> float:
    """A collective alone on a cluster."""
    graph = ActivityGraph(0)
    order = order or list(range(cluster.rank_count))
    entry = graph.add(0.0)
    graph.link(NO_ACTIVITY, entry)
    add_rounds(graph, cluster, kind, algorithm, order, {slot: slot for slot in order}, payload, entry)
    return makespan_s(play_events(graph, cluster))


links = st.builds(Link, st.sampled_from([0.0, 1e-5, 1e-3]), st.sampled_from([1e6, 1e9]))


@given(st.integers(2, 9), links, st.floats(1, 1e7), st.sampled_from([PLAIN, GLOO]))
def test_rings_on_idle_links_take_the_closed_form(members: int, link: Link, payload: float, backend: Backend) -> None:
    """All-reduce, reduce-scatter and all-gather as flows = Thakur et al. 2005, with gloo's rendezvous and window, too."""
    cluster = star(members, link, backend)
    for kind, formula in (
        ("all_reduce", ring_all_reduce_s),
        ("reduce_scatter", ring_reduce_scatter_s),
        ("all_gather", ring_all_gather_s),
    ):
        expected = formula(payload, members, link, backend)
        assert seconds(cluster, kind, "ring", payload) == pytest.approx(expected, rel=1e-6)
        assert rounds_lower_bound_s(cluster, kind, "ring", range(members), payload) == pytest.approx(expected, rel=1e-6)


@given(st.sampled_from([2, 4, 8, 16]), links, st.floats(1, 1e7))
def test_trees_and_halves_on_idle_links_take_the_closed_form(members: int, link: Link, payload: float) -> None:
    """Recursive halving-doubling and a binomial tree on a power of two."""
    cluster = star(members, link)
    assert seconds(cluster, "all_reduce", "halving-doubling", payload) == pytest.approx(
        halving_doubling_all_reduce_s(payload, members, link, PLAIN), rel=1e-6
    )
    assert seconds(cluster, "all_reduce", "tree", payload) == pytest.approx(tree_all_reduce_s(payload, members, link, PLAIN), rel=1e-6)


@given(st.integers(2, 9), links, st.floats(1, 1e7))
def test_folded_ring_takes_as_long_as_its_rounds(members: int, link: Link, payload: float) -> None:
    """Where links are alike one flow per member stands for all its rounds."""
    cluster = star(members, link)
    whole = seconds(cluster, "all_reduce", "ring", payload)
    before, collectives.MOST_FLOWS = collectives.MOST_FLOWS, 0
    try:
        assert seconds(cluster, "all_reduce", "ring", payload) == pytest.approx(whole, rel=1e-9)
    finally:
        collectives.MOST_FLOWS = before


@given(st.integers(2, 9), st.sampled_from(["all_reduce", "reduce_scatter", "all_gather"]))
def test_rounds_move_what_the_formula_says(members: int, kind: str) -> None:
    """Every member of a ring sends sent_bytes; all-to-all sends each other member its share."""
    sent = [0.0] * members
    for transfers in rounds_of(kind, "ring", members, 8.0):
        for source, _, size in transfers:
            sent[source] += size
    assert sent == pytest.approx([sent_bytes(kind, 8.0, members)] * members)
    pairs = [(source, target) for step in rounds_of("all_to_all", "direct", members, 8.0) for source, target, _ in step]
    assert sorted(pairs) == [(a, b) for a in range(members) for b in range(members) if a != b]


def test_compressed_gradients_that_cannot_be_summed_by_hand() -> None:
    """4 members, 100 B of fp32: an all-reduce moves 150 B per member; int8 gathers 25 B from each of 3 others, 75 B."""
    cluster = star(4, Link(0.0, 10.0))
    assert seconds(cluster, "all_reduce", "ring", 100.0) == pytest.approx(15.0)
    assert seconds(cluster, "all_gather", "ring", 25.0) == pytest.approx(7.5)


def test_bad_ring_order_costs_four_times_on_an_oversubscribed_tree() -> None:
    """Four racks of four, uplinks as fast as one host (4:1): from neighbour to neighbour every uplink carries one flow, else four."""
    cluster = racks(4, 4, 10.0)
    jumping = [rack * 4 + host for host in range(4) for rack in range(4)]
    near = ring_order(cluster, jumping)
    assert sorted(near) == sorted(jumping)
    good, bad = (seconds(cluster, "all_reduce", "ring", 160.0, order) for order in (near, jumping))
    assert good == pytest.approx(2 * 15 / 16 * 160 / 10)
    assert bad == pytest.approx(4 * good)


def test_hierarchy_spares_the_uplinks() -> None:
    """Nodes of four devices at 100 B/s behind one port of 10 B/s: only a quarter of the payload crosses it per device."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    names = tuple(f"n{node}/{device}" for node in range(2) for device in range(4))
    for name in names:
        node = name.split("/")[0]
        for edge in ((name, node), (node, name)):
            graph.add_edge(*edge, link=Link(0.0, 100.0))
    for node in ("n0", "n1"):
        for edge in ((node, "core"), ("core", node)):
            graph.add_edge(*edge, link=Link(0.0, 10.0))
    cluster = Cluster(graph, names, (Device("d", 1.0, 1.0),) * 8, PLAIN)
    within = 2 * 3 / 4 * 80 / 100
    assert seconds(cluster, "all_reduce", "hierarchical", 80.0) == pytest.approx(within + 4 * 20 / 10)


def test_algorithm_follows_the_size() -> None:
    """16 members: small messages take few hops, large ones a ring; gloo always rings; no halving where p is not a power of two."""
    link = Link(1e-5, 1e9)
    chosen = [choose_algorithm("all_reduce", size, 16, link, PLAIN) for size in (8.0, 1e3, 1e9)]
    assert chosen == ["halving-doubling", "halving-doubling", "ring"]
    assert choose_algorithm("all_reduce", 8.0, 12, link, PLAIN) == "tree"
    assert choose_algorithm("all_reduce", 8.0, 16, link, GLOO) == "ring"
    assert choose_algorithm("all_to_all", 8.0, 16, link, PLAIN) == "direct"


def test_unknown_combination_is_refused() -> None:
    """Halving needs a power of two."""
    with pytest.raises(ValueError, match="makes no all_reduce of 6 members"):
        rounds_of("all_reduce", "halving-doubling", 6, 1.0)


def test_two_collectives_at_once_share_the_links() -> None:
    """Two rings over the same hosts take twice as long as one: nobody else's simulator may assume otherwise."""
    cluster, graph = star(4, Link(0.0, 10.0)), ActivityGraph(0)
    for _ in range(2):
        entry = graph.add(0.0)
        graph.link(NO_ACTIVITY, entry)
        add_rounds(graph, cluster, "all_reduce", "ring", range(4), {slot: slot for slot in range(4)}, 40.0, entry)
    assert makespan_s(play_events(graph, cluster)) == pytest.approx(2 * 2 * 3 / 4 * 40 / 10)


def test_exchanges_within_a_node_take_their_measured_time() -> None:
    """Two A100 in one node: 16 MiB in four buckets take four times the seconds of 4 MiB in the table, which bounds the step."""
    nodes = [{"name": "node", "devices": 2, "device": "a100-sxm-80gb"}]
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": {"backend": "nccl"}}), "fp32")
    table = measured_table(cluster, "all_reduce", [0, 1])
    exchange = Exchange("all_reduce", 2.0**24, interpolate_s(table, 2.0**24), 2.0**24, table=table, orders=((0, 1),))
    graph = ActivityGraph(2)
    end = NO_ACTIVITY
    for _ in range(4):
        end = collectives.add_exchange(graph, cluster, exchange, 0.25, {0: 0, 1: 1}, end)
    assert makespan_s(play_events(graph, cluster)) == pytest.approx(4 * interpolate_s(table, 2.0**22))
    assert not graph.flows and 4 * interpolate_s(table, 2.0**22) > exchange.idle_s


@given(st.integers(2, 8), st.integers(10, 30), st.booleans())
def test_no_step_beats_its_bound_where_collectives_are_measured(width: int, exponent: int, tensor: bool) -> None:
    """Tensor-parallel groups or replicas of an H100 node: engine and replay agree, and neither is below the lower bound."""
    nodes = [{"name": "node", "devices": width, "device": "h100-sxm-80gb"}]
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": {"backend": "nccl"}}), "bf16")
    graph = mlp([2 ** (exponent // 2), 840, 840], batch_size=8)
    plan = Plan(
        stages=(tuple(task.name for task in graph.compute_tasks),),
        placement=(tuple(range(1 if tensor else width)),),
        slots=tuple(range(width)),
        global_batch_size=8 * width,
        microbatch_count=width if tensor else 1,
        schedule="1f1b",
        gradient_codecs=("none",),
        activation_codecs=(),
        tensor_parallel_degree=width if tensor else 1,
    )
    pricing = Pricer(graph, cluster, JobSpec(global_batch_size=8 * width)).price(plan)
    activities = activities_of(lower(plan), pricing, cluster)
    step_s = makespan_s(play_events(activities, cluster))
    assert makespan_s(replay(activities)) == pytest.approx(step_s, rel=1e-9)
    assert step_lower_bound_s(plan, pricing, cluster) <= step_s * (1 + 1e-9)
    assert tensor or pricing.gradients[0].table
