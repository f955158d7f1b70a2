"""Fair sharing: the definition of max-min fairness, and stories whose numbers fit in a drawing."""

from collections.abc import Callable
from fractions import Fraction

import networkx as nx
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, FlowSpec
from chinchilla_sim.simulator.engine import play_events
from chinchilla_sim.simulator.network import Edge, FairNetwork
from chinchilla_sim.simulator.sharing import FairSharing, Route

EDGES: list[Edge] = [(str(index), str(index + 1)) for index in range(6)]
capacities = st.lists(st.integers(1, 1000), min_size=len(EDGES), max_size=len(EDGES))
routes = st.lists(st.lists(st.sampled_from(EDGES), min_size=1, max_size=4, unique=True), min_size=1, max_size=8)


def rates_of(routes: list[list[Edge]], capacity: list[int]) -> list[float]:
    """Rate of each flow by the network's own solver."""
    sharing = FairSharing(list(map(float, capacity)))
    groups = [sharing.group(Route(tuple(EDGES.index(edge) for edge in route))) for route in routes]
    for group in groups:
        sharing.start(group, 1.0, 0.0)
    sharing.share(0.0)
    return [group.rate for group in groups]


def water_levels(routes: list[list[Edge]], capacity: list[int]) -> list[Fraction]:
    """An independent, exact solver: raise the level of all growing flows to the next link that is full."""
    limit = dict(zip(EDGES, map(Fraction, capacity), strict=True))
    level: list[Fraction | None] = [None] * len(routes)
    while None in level:
        growing = {edge: sum(edge in route and level[f] is None for f, route in enumerate(routes)) for edge in EDGES}
        settled = {
            edge: sum((rate for f, rate in enumerate(level) if rate is not None and edge in routes[f]), Fraction()) for edge in EDGES
        }
        height = {edge: (limit[edge] - settled[edge]) / growing[edge] for edge in EDGES if growing[edge]}
        lowest = min(height.values())
        full = {edge for edge in height if height[edge] == lowest}
        level = [lowest if rate is None and full & set(routes[f]) else rate for f, rate in enumerate(level)]
    return [rate for rate in level if rate is not None]


@settings(max_examples=300)
@given(routes, capacities)
def test_rates_are_max_min_fair(routes: list[list[Edge]], capacity: list[int]) -> None:
    """No link is over its capacity, and every flow has a full link on which no flow is faster: that is max-min fairness."""
    rates = rates_of(routes, capacity)
    load = {edge: sum(rate for rate, route in zip(rates, routes, strict=True) if edge in route) for edge in EDGES}
    limit = dict(zip(EDGES, capacity, strict=True))
    assert all(load[edge] <= limit[edge] * (1 + 1e-9) for edge in EDGES)
    for rate, route in zip(rates, routes, strict=True):
        assert any(
            load[edge] >= limit[edge] * (1 - 1e-9)
            and all(rate >= other * (1 - 1e-9) for other, its in zip(rates, routes, strict=True) if edge in its)
            for edge in route
        )


@settings(max_examples=200)
@given(routes, capacities)
def test_rates_equal_an_exact_solver(routes: list[list[Edge]], capacity: list[int]) -> None:
    """Rates equal those of water-filling in fractions."""
    assert rates_of(routes, capacity) == pytest.approx([float(rate) for rate in water_levels(routes, capacity)], rel=1e-9)


@given(routes, capacities, st.permutations(range(8)))
def test_order_of_flows_does_not_matter(routes: list[list[Edge]], capacity: list[int], order: list[int]) -> None:
    """The same flows in another order get the same rates."""
    shuffled = [index for index in order if index < len(routes)]
    rates = rates_of(routes, capacity)
    assert rates_of([routes[index] for index in shuffled], capacity) == pytest.approx([rates[index] for index in shuffled], rel=1e-9)


@pytest.fixture
def star() -> Cluster:
    """Four slots at a switch: each cable 10 B/s and 1 s per direction, so 2 s from slot to slot."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    slots = tuple("abcd")
    for slot in slots:
        for edge in ((slot, "switch"), ("switch", slot)):
            graph.add_edge(*edge, link=Link(1.0, 10.0))
    return Cluster(graph, slots, (Device("d", 1.0, 1.0),) * 4, Backend("plain"))


Sent = tuple[float, int, int, float]


def play_on(cluster: Cluster, messages: list[Sent]) -> list[tuple[float, float]]:
    """Send messages (time, source, target, bytes) and tell when the first byte left and the last arrived."""
    graph = ActivityGraph(0)
    for time_s, source, target, size in messages:
        flow = graph.add_flow(cluster, FlowSpec(source, target, size, 0, 0))
        graph.link(NO_ACTIVITY, flow, time_s + cluster.latency_s(source, target))
    return list(zip(*play_events(graph, cluster), strict=True))


Play = Callable[[list[Sent]], list[tuple[float, float]]]


@pytest.fixture
def play(star: Cluster) -> Play:
    """Messages on the star."""
    return lambda messages: play_on(star, messages)


def test_one_message_takes_latency_and_bytes(play: Play) -> None:
    """20 B over two links of 1 s and 10 B/s: bytes move from second 2 to 4."""
    assert play([(0, 0, 1, 20)]) == [(2, 4)]


def test_two_into_one_receiver_share_its_link(play: Play) -> None:
    """20 B and 60 B into c: both at 5 B/s until the short one is done, then the long one at 10 B/s."""
    assert play([(0, 0, 2, 20), (0, 1, 2, 60)]) == [(2, 6), (2, 10)]


def test_late_message_slows_the_one_under_way(play: Play) -> None:
    """40 B start alone, 10 B join after 2 s: 20 B each way at full and 10 B at half speed."""
    assert play([(0, 0, 2, 40), (2, 1, 2, 10)]) == [(2, 7), (4, 6)]


def test_ways_there_and_back_do_not_meet(play: Play) -> None:
    """Full duplex: opposite directions, and pairs without a common link, do not slow each other."""
    assert play([(0, 0, 1, 20), (0, 1, 0, 20), (0, 2, 3, 20)]) == [(2, 4)] * 3


def test_messages_of_one_pair_share_the_links(play: Play) -> None:
    """Side by side: 10 B each at half the rate, then the long one alone (order on a connection is the lowering's business)."""
    assert play([(0, 0, 1, 40), (0, 0, 1, 10)]) == [(2, 7), (2, 4)]


def test_half_duplex_cable_is_shared_by_both_directions() -> None:
    """Two links of one medium: 20 B each way take as long as 40 B one way."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for edge in (("a", "b"), ("b", "a")):
        graph.add_edge(*edge, link=Link(1.0, 10.0, medium="a-b"))
    cluster = Cluster(graph, ("a", "b"), (Device("d", 1.0, 1.0),) * 2, Backend("plain"))
    assert play_on(cluster, [(0, 0, 1, 20), (0, 1, 0, 20)]) == [(1, 5), (1, 5)]


def test_fat_pipe_gives_everyone_its_whole_bandwidth() -> None:
    """Three flows over a FATPIPE link of 10 B/s: each has 10 B/s."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("a", "b", link=Link(0.0, 10.0, fat_pipe=True))
    cluster = Cluster(graph, ("a", "b"), (Device("d", 1.0, 1.0),) * 2, Backend("plain"))
    assert play_on(cluster, [(0, 0, 1, 20)] * 3) == [(0, 2)] * 3


def test_priority_is_a_weight() -> None:
    """A flow of weight 3 gets three quarters of the link: 30 B and 30 B on 10 B/s end after 4 and 6 s."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("a", "b", link=Link(0.0, 10.0))
    cluster = Cluster(graph, ("a", "b"), (Device("d", 1.0, 1.0),) * 2, Backend("plain"))
    env, done = simpy.Environment(), {}
    network = FairNetwork(env, cluster, lambda name: done.setdefault(name, env.now))
    network.start(0, 1, 30.0, "first", weight=3.0)
    network.start(0, 1, 30.0, "second")
    env.run()
    assert done == {"first": 4.0, "second": 6.0}


def test_link_that_slows_and_drops_for_a_while() -> None:
    """100 B at 10 B/s: 20 B in 2 s, nothing for 3 s, 5 B/s from then on: 16 s more."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("a", "b", link=Link(0.0, 10.0))
    cluster = Cluster(graph, ("a", "b"), (Device("d", 1.0, 1.0),) * 2, Backend("plain"))
    env, done = simpy.Environment(), []
    network = FairNetwork(env, cluster, lambda _: done.append(env.now))
    network.start(0, 1, 100.0, None)
    for time_s, bandwidth in ((2.0, 0.0), (5.0, 5.0)):
        simpy.Timeout(env, time_s, bandwidth).callbacks.append(lambda event: network.set_bandwidth(("a", "b"), event.value))
    env.run()
    assert done == [21.0]


def test_empty_message_takes_the_latency(play: Play) -> None:
    """No bytes: it is there after 2 s, and shares nothing."""
    assert play([(0, 0, 1, 0), (0, 2, 1, 10)]) == [(2, 2), (2, 3)]


def test_message_to_oneself_is_there_at_once(play: Play) -> None:
    """The route from a slot to itself is empty."""
    assert play([(1, 0, 0, 1e9)]) == [(1, 1)]


messages = st.lists(
    st.tuples(st.integers(0, 9).map(float), st.integers(0, 3), st.integers(0, 3), st.integers(0, 100).map(float)).filter(
        lambda m: m[1] != m[2]
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(messages)
def test_company_never_makes_a_message_faster(messages: list[Sent]) -> None:
    """Every message arrives; none before its idle time; and no link carries more than its capacity over the whole run."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for slot in "abcd":
        for edge in ((slot, "switch"), ("switch", slot)):
            graph.add_edge(*edge, link=Link(1.0, 10.0))
    cluster = Cluster(graph, tuple("abcd"), (Device("d", 1.0, 1.0),) * 4, Backend("plain"))
    done = [finish_s for _, finish_s in play_on(cluster, messages)]
    for index, (time, _, _, size) in enumerate(messages):
        assert done[index] >= (time + 2 + size / 10) * (1 - 1e-9)
    for end in range(4):
        for place in (1, 2):
            through = [(m[0], m[3], done[index]) for index, m in enumerate(messages) if m[place] == end]
            if through:
                window_s = max(finish for _, _, finish in through) - min(start for start, _, _ in through) - 2
                assert sum(size for _, size, _ in through) <= 10 * window_s * (1 + 1e-9) + 1e-9
