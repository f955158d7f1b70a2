"""Seconds of collectives under the alpha-beta model (Thakur, Rabenseifner & Gropp 2005), with a backend's own terms.

For p ranks with n payload bytes each, latency alpha and seconds per byte beta of the slowest link of the ring,
header factor h and fixed time per hop f of the backend:

    ring all-reduce   2 (p-1) (a + f) + 2 (p-1)/p h n beta     ring_all_reduce_s
    ring all-gather     (p-1) (a + f) +     (p-1) h n beta     ring_all_gather_s     n bytes from each rank

a is alpha, or 2 alpha where every hop is a rendezvous (gloo: a segment leaves only after the receiver's
"ready"). gloo keeps two segments of at most 1 MiB in flight, so on long fat links an all-reduce also takes at
least `iterations * (2 alpha + k segment_s) / 2` with iterations = 2 (p-1)/p * segments, k = 2 (p = 2) or 1.5,
fitted on torch 2.13. Where a device has a measured table, seconds are interpolated in it instead.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil

from chinchilla_sim.cluster.topology import Backend, Link


def ring_all_reduce_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds until every rank holds the sum of `payload_bytes` from each."""
    if rank_count < 2:
        return 0.0
    hops = 2 * (rank_count - 1)
    byte_s = backend.header_factor / link.bandwidth_bytes_per_s
    simple_s = hops * _hop_s(link, backend) + hops / rank_count * payload_bytes * byte_s
    return max(simple_s, _window_s(payload_bytes, rank_count, link, backend)) if backend.rendezvous else simple_s


def ring_all_gather_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    """Seconds until every rank holds the `payload_bytes` of each other."""
    hops = rank_count - 1
    return hops * _hop_s(link, backend) + hops * payload_bytes * backend.header_factor / link.bandwidth_bytes_per_s


def _hop_s(link: Link, backend: Backend) -> float:
    return (2 if backend.rendezvous else 1) * link.latency_s + backend.collective_hop_s


def _window_s(payload_bytes: float, rank_count: int, link: Link, backend: Backend) -> float:
    segments = max(1, ceil(payload_bytes / backend.collective_segment_bytes))
    segment_s = backend.header_factor * payload_bytes / segments / link.bandwidth_bytes_per_s
    iterations = 2 * (rank_count - 1) / rank_count * segments
    overlap = 2.0 if rank_count == 2 else 1.5
    return iterations * (2 * link.latency_s + overlap * segment_s) / 2 if segments > 1 else 0.0


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


def sent_bytes(kind: str, payload_bytes: float, rank_count: int) -> float:
    """Bytes that one rank puts on the wire in a ring collective, without headers."""
    if kind == "all_gather":
        return (rank_count - 1) * payload_bytes
    return 2 * (rank_count - 1) / rank_count * payload_bytes
