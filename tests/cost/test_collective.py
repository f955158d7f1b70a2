"""Ring collectives: textbook formulas by hand, laws of the interpolation, and the gloo terms of RUNTIME.md."""

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.catalogue import find_backend
from chinchilla_sim.cluster.curves import CollectiveTables
from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.cost.collective import collective_s, interpolate_s, measured_table, ring_all_gather_s, ring_all_reduce_s, sent_bytes

PLAIN = Backend("plain")
GLOO = find_backend("gloo")
LINK = Link(latency_s=2.0, bandwidth_bytes_per_s=10.0)

ranks = st.integers(1, 16)
payloads = st.floats(0, 1e9)
links = st.builds(Link, st.floats(0, 0.1), st.floats(1e3, 1e11))
backends = st.sampled_from([PLAIN, GLOO])
increments = st.lists(st.tuples(st.floats(0.5, 1e6), st.floats(0, 10)), min_size=1, max_size=6)


@pytest.mark.parametrize(("count", "seconds"), [(1, 0), (2, 2 * 2 + 60 / 10), (4, 6 * 2 + 1.5 * 60 / 10)])
def test_all_reduce_by_hand(count: int, seconds: float) -> None:
    """60 B at 10 B/s and 2 s: 2(p-1) latencies and 2(p-1)/p of the bytes, for 1, 2 and 4 ranks."""
    assert ring_all_reduce_s(60.0, count, LINK, PLAIN) == pytest.approx(seconds)


@pytest.mark.parametrize(("count", "seconds"), [(1, 0), (2, 2 + 60 / 10), (4, 3 * 2 + 3 * 60 / 10)])
def test_all_gather_by_hand(count: int, seconds: float) -> None:
    """60 B from each at 10 B/s and 2 s: p-1 latencies and p-1 payloads, for 1, 2 and 4 ranks."""
    assert ring_all_gather_s(60.0, count, LINK, PLAIN) == pytest.approx(seconds)


def test_rendezvous_hops_and_headers_by_hand() -> None:
    """With gloo's kind of terms every hop is a round trip plus its fixed time, and headers travel too."""
    backend = Backend("like-gloo", header_factor=1.5, rendezvous=True, collective_hop_s=0.5)
    assert ring_all_reduce_s(60.0, 4, LINK, backend) == pytest.approx(6 * (4 + 0.5) + 1.5 * 1.5 * 60 / 10)
    assert ring_all_gather_s(60.0, 4, LINK, backend) == pytest.approx(3 * (4 + 0.5) + 3 * 1.5 * 60 / 10)


def test_window_by_hand() -> None:
    """Two ranks, 40 segments of 1 B over a long fat link: two in flight, so 40 iterations of half a round trip and one segment."""
    backend = Backend("segments", rendezvous=True, collective_segment_bytes=1.0)
    link = Link(latency_s=1.0, bandwidth_bytes_per_s=100.0)
    assert ring_all_reduce_s(40.0, 2, link, backend) == pytest.approx(40 * (2 * 1.0 + 2 * 0.01) / 2)


@pytest.mark.parametrize("count", [2, 4])
def test_gloo_on_a_slow_link_is_the_published_formula(count: int) -> None:
    """RUNTIME.md: T = 2(n-1)(2d + 0.25 ms) + 2(n-1)/n 1.048 S/B at 100 Mbit/s, where the window does not bind."""
    delay_s, size, bandwidth = 1e-3, 4e6, 12.5e6
    expected_s = 2 * (count - 1) * (2 * delay_s + 0.25e-3) + 2 * (count - 1) / count * 1.048 * size / bandwidth
    assert ring_all_reduce_s(size, count, Link(delay_s, bandwidth), GLOO) == pytest.approx(expected_s)


@given(payloads, payloads, ranks, links, backends)
def test_more_bytes_never_take_less_time(payload: float, more: float, count: int, link: Link, backend: Backend) -> None:
    """Both collectives grow with the payload."""
    for seconds in (ring_all_reduce_s, ring_all_gather_s):
        assert seconds(payload, count, link, backend) <= seconds(payload + more, count, link, backend) * (1 + 1e-12)


@given(payloads, ranks, links, st.floats(1, 10), backends)
def test_better_link_is_never_slower(payload: float, count: int, link: Link, factor: float, backend: Backend) -> None:
    """More bandwidth and less latency never cost time."""
    better = Link(link.latency_s / factor, link.bandwidth_bytes_per_s * factor)
    for seconds in (ring_all_reduce_s, ring_all_gather_s):
        assert seconds(payload, count, better, backend) <= seconds(payload, count, link, backend) * (1 + 1e-12)


@given(payloads, st.integers(2, 16), links)
def test_all_reduce_is_twice_an_all_gather_of_its_shares(payload: float, count: int, link: Link) -> None:
    """A ring all-reduce is a reduce-scatter and an all-gather of n/p bytes each, equally long."""
    assert ring_all_reduce_s(payload, count, link, PLAIN) == pytest.approx(2 * ring_all_gather_s(payload / count, count, link, PLAIN))


@given(payloads, st.integers(2, 16), st.floats(1e3, 1e11))
def test_bytes_on_the_wire_explain_the_time(payload: float, count: int, bandwidth: float) -> None:
    """Without latency seconds are the sent bytes over the bandwidth."""
    link = Link(0.0, bandwidth)
    assert ring_all_reduce_s(payload, count, link, PLAIN) == pytest.approx(sent_bytes("all_reduce", payload, count) / bandwidth)
    assert ring_all_gather_s(payload, count, link, PLAIN) == pytest.approx(sent_bytes("all_gather", payload, count) / bandwidth)


@given(increments, st.floats(0, 2e7), st.floats(0, 2e7))
def test_monotone_table_gives_monotone_seconds(steps: list[tuple[float, float]], one: float, other: float) -> None:
    """Where measured seconds rise with the bytes, so do interpolated and extrapolated ones."""
    size, seconds, table = 0.0, 1.0, []
    for more_bytes, more_s in steps:
        size, seconds = size + more_bytes, seconds + more_s
        table.append((size, seconds))
    low, high = sorted((one, other))
    assert interpolate_s(table, low) <= interpolate_s(table, high) * (1 + 1e-9)


@given(increments)
def test_table_is_met_at_its_rows_and_between_them(steps: list[tuple[float, float]]) -> None:
    """Each row gives its own seconds, the middle of two rows their mean, and less than the first row as much as that."""
    table = [(100.0, 1.0)]
    for more_bytes, more_s in steps:
        table.append((table[-1][0] + more_bytes, table[-1][1] + more_s))
    for size, seconds in table:
        assert interpolate_s(table, size) == pytest.approx(seconds)
    for (size0, s0), (size1, s1) in pairwise(table):
        assert interpolate_s(table, (size0 + size1) / 2) == pytest.approx((s0 + s1) / 2)
    assert interpolate_s(table, 1.0) == 1.0


def test_table_of_one_row_is_constant_and_noise_never_gives_negative_seconds() -> None:
    """One row holds everywhere; a table that falls at its end is not extrapolated below 0."""
    assert interpolate_s([(10.0, 3.0)], 1e9) == 3.0
    assert interpolate_s([(0.0, 3.0), (10.0, 2.0)], 1e9) == 0.0


def measured(tables: CollectiveTables) -> Cluster:
    """Eight slots of node a with tables, two of node b."""
    slots = (*(f"a/{index}" for index in range(8)), "b/0", "b/1")
    return Cluster(nx.DiGraph(), slots, (Device("d", 1.0, 1.0),) * 10, PLAIN, node_collectives={"a": tables})


def test_tables_hold_within_their_node_and_range() -> None:
    """As measured for as many ranks; nothing for other kinds, more or fewer ranks, and groups that leave the node."""
    table = ((10.0, 1.0), (20.0, 2.0))
    cluster = measured({("all_reduce", 2): table, ("all_reduce", 4): ((10.0, 3.0), (20.0, 5.0))})
    assert measured_table(cluster, "all_reduce", [5, 7]) == table
    for kind, slots in (("all_gather", [0, 1]), ("all_reduce", range(5)), ("all_reduce", [7, 8]), ("all_reduce", [8, 9])):
        assert measured_table(cluster, kind, slots) == ()


def test_three_ranks_between_two_and_four_by_hand() -> None:
    """All-reduces of 12 B: each sends 16 B, as 2 ranks do of 16 B (1.6 s) and 4 of 16 * 2/3 B (3 + 0.2/3 s); the mean of both."""
    cluster = measured({("all_reduce", 2): ((10.0, 1.0), (20.0, 2.0)), ("all_reduce", 4): ((10.0, 3.0), (20.0, 4.0))})
    table = measured_table(cluster, "all_reduce", range(3))
    assert interpolate_s(table, 12.0) == pytest.approx((1.6 + 3.0 + 0.2 / 3) / 2)


@given(st.sampled_from(["all_reduce", "reduce_scatter", "all_gather", "all_to_all"]), st.integers(2, 8), st.floats(10.0, 1e9), links)
def test_tables_of_hops_and_bytes_are_met_between_their_counts(kind: str, count: int, payload: float, link: Link) -> None:
    """Where 2, 4 and 8 ranks follow the formula, so do 3, 5, 6 and 7, within the table and beyond it."""
    tables = {(kind, ranks): tuple((size, collective_s(kind, size, ranks, link, PLAIN)) for size in (1.0, 1e3, 1e6)) for ranks in (2, 4, 8)}
    table = measured_table(measured(tables), kind, range(count))
    assert interpolate_s(table, payload) == pytest.approx(collective_s(kind, payload, count, link, PLAIN))
