"""Fair sharing: the definition of max-min fairness, and stories whose numbers fit in a drawing."""

from collections.abc import Callable
from fractions import Fraction

import networkx as nx
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.simulator.network import Edge, FairNetwork, Flow, call_after, fair_rates

EDGES: list[Edge] = [(str(index), str(index + 1)) for index in range(6)]
capacities = st.lists(st.integers(1, 1000), min_size=len(EDGES), max_size=len(EDGES))
routes = st.lists(st.lists(st.sampled_from(EDGES), min_size=1, max_size=4, unique=True), min_size=1, max_size=8)


def rates_of(routes: list[list[Edge]], capacity: list[int]) -> list[float]:
    """Rate of each flow by the engine's own solver."""
    flows = [Flow(tuple(route), 1.0, 1.0, lambda _: None, (0, 0)) for route in routes]
    fair_rates(flows, dict(zip(EDGES, map(float, capacity), strict=True)))
    return [flow.rate for flow in flows]


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


@pytest.fixture
def play(star: Cluster) -> Callable[[list[Sent]], list[tuple[float, float]]]:
    """Send messages (time, source, target, bytes) and tell when the first byte left and the last arrived."""

    def run(messages: list[Sent]) -> list[tuple[float, float]]:
        env = simpy.Environment()
        network = FairNetwork(env, star)
        arrived: dict[int, tuple[float, float]] = {}

        def start(index: int, source: int, target: int, size: float) -> None:
            def note(first_byte_s: float) -> None:
                arrived[index] = (first_byte_s, env.now)

            network.send(source, target, size, note)

        for index, (time, source, target, size) in enumerate(messages):
            call_after(env, time, lambda args=(index, source, target, size): start(*args))  # type: ignore[misc]
        env.run()
        return [arrived[index] for index in range(len(messages))]

    return run


Play = Callable[[list[Sent]], list[tuple[float, float]]]


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


def test_messages_of_one_pair_keep_their_order(play: Play) -> None:
    """One connection: a short message waits for the long one that was sent before it to the same rank."""
    assert play([(0, 0, 1, 40), (0, 0, 1, 10)]) == [(2, 6), (6, 7)]


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
    env = simpy.Environment()
    network = FairNetwork(env, cluster)
    done: dict[int, float] = {}
    for index, (time, source, target, size) in enumerate(messages):
        arrival = lambda _, index=index: done.setdefault(index, env.now)  # noqa: E731
        call_after(env, time, lambda args=(source, target, size, arrival): network.send(*args))  # type: ignore[misc]
    env.run()
    assert len(done) == len(messages)
    for index, (time, _, _, size) in enumerate(messages):
        assert done[index] >= (time + 2 + size / 10) * (1 - 1e-9)
    for end in range(4):
        for place in (1, 2):
            through = [(m[0], m[3], done[index]) for index, m in enumerate(messages) if m[place] == end]
            if through:
                window_s = max(finish for _, _, finish in through) - min(start for start, _, _ in through) - 2
                assert sum(size for _, size, _ in through) <= 10 * window_s * (1 + 1e-9) + 1e-9
