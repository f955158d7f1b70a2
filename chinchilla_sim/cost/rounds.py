"""Who sends how much to whom in a collective, round by round.

A round is a list of transfers (from member, to member, bytes). A member sends in a round when it is through with the
round before; of messages (pairwise, posted) only when it has sent those of the round before. p members with n payload bytes each:

    ring               all-reduce 2 (p-1) rounds of n/p, reduce-scatter p - 1 of n/p, all-gather p - 1 of n
    halving-doubling   all-reduce 2 log2 p rounds of n/2, n/4 .. and back (p a power of two; Thakur et al. 2005)
    tree               all-reduce 2 log2 p rounds of n, up and down a binomial tree: few hops, for small messages
    direct             all-to-all p - 1 rounds of n/p
    pairwise           p - 1 messages of each member, one behind the other: all-gather of n, reduce-scatter of n/p (the owner adds up)
    posted             the same, with receives that were posted when the step began

A hop takes the latency, under rendezvous the receiver's "ready" back as well (not where it was posted long ago), and the backend's
fixed time of a hop of its own collectives, or of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

from chinchilla_sim.cluster.topology import Backend, Cluster
from chinchilla_sim.cost.collective import hop_latencies, is_power_of_two, window_excess_s

MESSAGES = ("pairwise", "posted")
"""Algorithms of plain messages between pairs, which the runtime sends itself."""

Transfer = tuple[int, int, float]
Round = list[Transfer]


def rounds_of(kind: str, algorithm: str, members: int, payload_bytes: float) -> list[Round]:
    """Transfers of a collective among members 0..p-1; ValueError where the algorithm cannot do it.

    >>> rounds_of("all_reduce", "ring", 2, 8.0)
    [[(0, 1, 4.0), (1, 0, 4.0)], [(0, 1, 4.0), (1, 0, 4.0)]]
    """
    if not can_do(kind, algorithm, members):
        raise ValueError(f"{algorithm} makes no {kind} of {members} members")
    return _ROUNDS[kind, algorithm](members, payload_bytes)


def can_do(kind: str, algorithm: str, members: int) -> bool:
    """Whether the algorithm makes this collective of so many members.

    >>> can_do("all_reduce", "halving-doubling", 6), can_do("reduce_scatter", "ring", 6)
    (False, True)
    """
    return (kind, algorithm) in _ROUNDS and (algorithm != "halving-doubling" or is_power_of_two(members))


RING_ROUNDS: dict[str, Callable[[int], int]] = {
    "all_reduce": lambda p: 2 * (p - 1),
    "reduce_scatter": lambda p: p - 1,
    "all_gather": lambda p: p - 1,
}


def _ring_rounds(kind: str, members: int, payload: float, count: int) -> list[Round]:
    size = payload if kind == "all_gather" else payload / members
    return [[(member, (member + 1) % members, size) for member in range(members)] for _ in range(count)]


def _ring(kind: str) -> Callable[[int, float], list[Round]]:
    return lambda members, payload: _ring_rounds(kind, members, payload, RING_ROUNDS[kind](members))


def _direct(share: Callable[[int], float]) -> Callable[[int, float], list[Round]]:
    def build(members: int, payload: float) -> list[Round]:
        size = payload * share(members)
        return [[(member, (member + hop) % members, size) for member in range(members)] for hop in range(1, members)]

    return build


def _halving_doubling(members: int, payload: float) -> list[Round]:
    halving = []
    distance, size = members // 2, payload / 2
    while distance:
        halving.append([(member, member ^ distance, size) for member in range(members)])
        distance, size = distance // 2, size / 2
    return [*halving, *reversed(halving)]


def _tree(members: int, payload: float) -> list[Round]:
    up = []
    distance = 1
    while distance < members:
        up.append([(member, member - distance, payload) for member in range(distance, members, 2 * distance)])
        distance *= 2
    return [*up, *([(target, source, size) for source, target, size in step] for step in reversed(up))]


_ROUNDS: dict[tuple[str, str], Callable[[int, float], list[Round]]] = {
    **{(kind, "ring"): _ring(kind) for kind in RING_ROUNDS},
    **{("all_gather", way): _direct(lambda _: 1.0) for way in MESSAGES},
    **{("reduce_scatter", way): _direct(lambda p: 1 / p) for way in MESSAGES},
    ("all_to_all", "direct"): _direct(lambda p: 1 / p),
    ("all_reduce", "halving-doubling"): _halving_doubling,
    ("all_reduce", "tree"): _tree,
}


def hop_s(cluster: Cluster, algorithm: str, source: int, target: int) -> float:
    """Seconds from the end of one round to the first byte of the next between two slots."""
    backend = cluster.backend
    back_s = cluster.latency_s(target, source) if hop_latencies(backend) == 2 and algorithm != "posted" else 0.0
    return cluster.latency_s(source, target) + back_s + (backend.message_s if algorithm in MESSAGES else backend.collective_hop_s)


SEGMENTS_IN_FLIGHT = 2
"""gloo's all-reduce cuts what a hop carries into at least so many messages (allreduce.cc)."""


def messages_of_hop(payload_bytes: float, algorithm: str, backend: Backend) -> int:
    """In how many messages a member sends what it sends in one round of a collective."""
    if algorithm in MESSAGES or not backend.rendezvous:
        return 1
    return max(SEGMENTS_IN_FLIGHT, ceil(payload_bytes / backend.collective_segment_bytes))


def rounds_lower_bound_s(cluster: Cluster, kind: str, algorithm: str, order: Sequence[int], payload_bytes: float) -> float:
    """What the busiest member's own sends take one behind the other on idle links: exact where all links are alike."""
    header = cluster.backend.header_factor
    seconds = [0.0] * len(order)
    # All rounds of a ring are the same.
    alike = RING_ROUNDS[kind](len(order)) if algorithm == "ring" else 1
    rounds = (
        _ring_rounds(kind, len(order), payload_bytes, 1) if algorithm == "ring" else rounds_of(kind, algorithm, len(order), payload_bytes)
    )
    for number, transfers in enumerate(rounds):
        for source, target, size in transfers:
            pair = order[source], order[target]
            # Messages follow each other on the way; in collectives each waits for the one before.
            hop = 0.0 if number and algorithm in MESSAGES else hop_s(cluster, algorithm, *pair)
            seconds[source] += alike * (hop + size * header / cluster.bandwidth_bytes_per_s(*pair))
    return max(seconds) + window_excess_s(kind, payload_bytes, len(order), cluster.slowest_pair(order), cluster.backend)
