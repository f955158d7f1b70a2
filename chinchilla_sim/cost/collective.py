"""Seconds of collectives under the alpha-beta model (Thakur, Rabenseifner & Gropp 2005), with a backend's own terms.

For p ranks with n payload bytes each, latency alpha and seconds per byte beta of the slowest link of the ring,
header factor h and fixed time per hop f of the backend:

    ring all-reduce       2 (p-1) (a + f) + 2 (p-1)/p h n beta     ring_all_reduce_s
    ring reduce-scatter     (p-1) (a + f) +   (p-1)/p h n beta     ring_reduce_scatter_s
    ring all-gather         (p-1) (a + f) +     (p-1) h n beta     ring_all_gather_s     n bytes from each rank
    direct all-to-all       (p-1) (a + f) +   (p-1)/p h n beta     all_to_all_s          n bytes of each rank, 1/p to each
    halving-doubling    2 log p (a + f) + 2 (p-1)/p h n beta     halving_doubling_all_reduce_s     p a power of two
    binomial tree       2 log p (a + f + h n beta)               tree_all_reduce_s

a is alpha, or 2 alpha where every hop is a rendezvous (gloo: a segment leaves only after the receiver's
"ready"). gloo keeps two segments of at most 1 MiB in flight, so on long fat links an all-reduce also takes at
least `iterations * (2 alpha + k segment_s) / 2` with iterations = 2 (p-1)/p * segments, k = 2 (p = 2) or 1.5,
fitted on torch 2.13.

Where collectives of so many ranks of one node were measured, the table takes the place of all this: linear between its
rows (a line between two sizes is alpha-beta of their own), constant below the first, the line of the last two beyond. For p
ranks between measured numbers a < p < b, at equal bytes w that one rank sends,

    t(p, w) = t(a, w) + (p - a) / (b - a) (t(b, w) - t(a, w))          measured_table

which is exact where time is hops and bytes. A table tells seconds of the whole collective: it replaces the rounds in
the simulation too, so within a node exchanges do not share links with messages.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from math import ceil, log2

from chinchilla_sim.cluster.curves import Table
from chinchilla_sim.cluster.topology import Backend, Cluster, Link


def ring_all_reduce_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds until every rank holds the sum of `payload_bytes` from each."""
    if rank_count < 2:
        return 0.0
    hops = 2 * (rank_count - 1)
    byte_s = backend.header_factor / link.bandwidth_bytes_per_s
    simple_s = hops * _hop_s(link, backend) + hops / rank_count * payload_bytes * byte_s
    return max(simple_s, _window_s(payload_bytes, rank_count, link, backend)) if backend.rendezvous else simple_s


def ring_reduce_scatter_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds until every rank holds its share of the sum of `payload_bytes` from each.

    gloo's own runs a whole all-reduce (torch 2.13 sends 2 (p-1)/p of the payload).
    """
    hops = rank_count - 1
    moved = sent_bytes("reduce_scatter", payload_bytes, rank_count)
    return hops * _hop_s(link, backend) + moved * backend.header_factor / link.bandwidth_bytes_per_s


def ring_all_gather_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds until every rank holds the `payload_bytes` of each other."""
    hops = rank_count - 1
    return hops * _hop_s(link, backend) + hops * payload_bytes * backend.header_factor / link.bandwidth_bytes_per_s


def halving_doubling_all_reduce_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds of an all-reduce by recursive halving and doubling."""
    rounds = 2 * ceil(log2(rank_count))
    moved = 2 * (rank_count - 1) / rank_count * payload_bytes
    return rounds * _hop_s(link, backend) + moved * backend.header_factor / link.bandwidth_bytes_per_s


def tree_all_reduce_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds of an all-reduce up and down a binomial tree, without pipelining."""
    rounds = 2 * ceil(log2(rank_count))
    return rounds * (_hop_s(link, backend) + payload_bytes * backend.header_factor / link.bandwidth_bytes_per_s)


MOST_IN_PAIRS = 64
"""Among more, messages between all pairs are taken for a ring, which moves the same bytes in p - 1 rounds instead of p (p - 1) flows."""


def choose_algorithm(kind: str, payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> str:
    """What would run for this size: gloo's rings, and messages of the runtime's own for what gloo gathers and scatters slowly; others
    what is estimated fastest (as NCCL's tuner does).
    """
    if kind == "all_to_all":
        return "direct"
    if kind != "all_reduce" and backend.rendezvous and rank_count <= MOST_IN_PAIRS:
        return "pairwise"
    if kind != "all_reduce" or backend.rendezvous or rank_count < 3:
        return "ring"
    estimates = [(ring_all_reduce_s(payload_bytes, rank_count, link, backend), "ring")]
    if is_power_of_two(rank_count):
        estimates.append((halving_doubling_all_reduce_s(payload_bytes, rank_count, link, backend), "halving-doubling"))
    estimates.append((tree_all_reduce_s(payload_bytes, rank_count, link, backend), "tree"))
    # Rings keep to neighbours and share links best: others must be clearly faster.
    best_s, best = min(estimates)
    return best if best_s < 0.9 * estimates[0][0] else "ring"


def is_power_of_two(number: int) -> bool:
    """Whether a number is 1, 2, 4 and so on."""
    return number & (number - 1) == 0


def hop_latencies(backend: Backend) -> int:
    """Latencies of one hop of a collective: there, and under rendezvous the receiver's "ready" back."""
    return 2 if backend.rendezvous else 1


def window_excess_s(kind: str, payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds by which gloo's all-reduce takes longer than the hops and bytes of its rounds: its window."""
    if not backend.rendezvous or kind != "all_reduce":
        return 0.0
    hops = 2 * (rank_count - 1)
    moved = sent_bytes(kind, payload_bytes, rank_count) * backend.header_factor
    rounds_s = hops * _hop_s(link, backend) + moved / link.bandwidth_bytes_per_s
    return max(0.0, collective_s(kind, payload_bytes, rank_count, link, backend) - rounds_s)


def _hop_s(link: Link, backend: Backend) -> float:
    return hop_latencies(backend) * link.latency_s + backend.collective_hop_s


def _window_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    segments = max(1, ceil(payload_bytes / backend.collective_segment_bytes))
    segment_s = backend.header_factor * payload_bytes / segments / link.bandwidth_bytes_per_s
    iterations = 2 * (rank_count - 1) / rank_count * segments
    overlap = 2.0 if rank_count == 2 else 1.5
    return iterations * (2 * link.latency_s + overlap * segment_s) / 2 if segments > 1 else 0.0


def collective_s(
    kind: str, payload_bytes: float, rank_count: int, link: Link, backend: Backend, table: Sequence[tuple[float, float]] | None = None
) -> float:
    """Seconds of a ring collective over links like `link`: from a measured table where there is one, else the formula."""
    return interpolate_s(table, payload_bytes) if table else _FORMULAS[kind](payload_bytes, rank_count, link, backend)


def all_to_all_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds until every rank has its share of the `payload_bytes` of each other."""
    moved = sent_bytes("all_to_all", payload_bytes, rank_count) * backend.header_factor
    return (rank_count - 1) * _hop_s(link, backend) + moved / link.bandwidth_bytes_per_s


_FORMULAS = {
    "all_reduce": ring_all_reduce_s,
    "reduce_scatter": ring_reduce_scatter_s,
    "all_gather": ring_all_gather_s,
    "all_to_all": all_to_all_s,
}


def interpolate_s(table: Sequence[tuple[float, float]], payload_bytes: float) -> float:
    """Seconds from a measured table of (bytes, seconds), linear between rows and beyond the last two.

    >>> interpolate_s([(0, 1.0), (10, 2.0)], 20)
    3.0
    """
    if len(table) == 1:
        return table[0][1]
    upper = min(max(1, bisect_left(table, payload_bytes, key=lambda row: row[0])), len(table) - 1)
    (size0, s0), (size1, s1) = table[upper - 1], table[upper]
    return max(0.0, s0 + (s1 - s0) * (payload_bytes - size0) / (size1 - size0)) if payload_bytes >= size0 else s0


def measured_table(cluster: Cluster, kind: str, slots: Sequence[int]) -> Table:
    """Measured (bytes, seconds) of a collective among these slots; empty where they are not in one node, or nothing was measured."""
    node, count = cluster.node_of(slots[0]), len(slots)
    tables = cluster.node_collectives.get(node)
    if not tables or any(cluster.node_of(slot) != node for slot in slots):
        return ()
    if (kind, count) in tables:
        return tables[kind, count]
    fewer = max((ranks for name, ranks in tables if name == kind and ranks < count), default=None)
    more = min((ranks for name, ranks in tables if name == kind and ranks > count), default=None)
    if fewer is None or more is None:
        return ()
    return _between(kind, count, (fewer, tables[kind, fewer]), (more, tables[kind, more]))


@lru_cache(maxsize=1024)
def _between(kind: str, count: int, fewer: tuple[int, Table], more: tuple[int, Table]) -> Table:
    """The table of so many ranks from those of fewer and of more: broken lines again, with the rows of both."""
    (a, below), (b, above) = fewer, more
    shares = {ranks: sent_bytes(kind, 1.0, ranks) for ranks in (a, count, b)}
    rows = []
    for wire_bytes in sorted({size * shares[a] for size, _ in below} | {size * shares[b] for size, _ in above}):
        a_s, b_s = interpolate_s(below, wire_bytes / shares[a]), interpolate_s(above, wire_bytes / shares[b])
        rows.append((wire_bytes / shares[count], a_s + (count - a) / (b - a) * (b_s - a_s)))
    return tuple(rows)


def sent_bytes(kind: str, payload_bytes: float, rank_count: int) -> float:
    """Bytes that one rank puts on the wire in a ring collective, without headers."""
    if kind == "all_gather":
        return (rank_count - 1) * payload_bytes
    return (2 if kind == "all_reduce" else 1) * (rank_count - 1) / rank_count * payload_bytes
