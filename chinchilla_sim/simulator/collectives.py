"""Collectives as flows on the network: the rounds of `cost/rounds.py` between device slots.

Every hop costs the route's latency, under rendezvous the "ready" back as well, and the backend's fixed time. A
hierarchical all-reduce is a ring reduce-scatter within each node, rings across nodes (one for each place in a node),
and a ring all-gather within each node. A ring with more than MOST_FLOWS transfers is folded: each member sends all its
rounds as one flow, which takes as long where links are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.collective import interpolate_s, window_excess_s
from chinchilla_sim.cost.rounds import MESSAGES, Round, hop_s, messages_of_hop, rounds_of
from chinchilla_sim.planner.pricing.prices import Exchange
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, FlowSpec

MOST_FLOWS = 4096


def add_exchange(
    graph: ActivityGraph, cluster: Cluster, exchange: Exchange, share: float, rank_of_slot: Mapping[int, int], entry: int
) -> int:
    """A share of an exchange behind `entry`; returns the activity with which it has ended.

    With a measured table it takes that long. Otherwise its flows share the network: one ring (or tree) for each device of a rank.
    """
    payload = exchange.payload_bytes * share
    if not payload or not exchange.orders:
        return graph.add(0.0, after=entry)
    if exchange.table:
        return graph.add(interpolate_s(exchange.table, payload), after=entry)
    return graph.join(
        [add_rounds(graph, cluster, exchange.kind, exchange.algorithm, order, rank_of_slot, payload, entry) for order in exchange.orders]
    )


def add_rounds(
    graph: ActivityGraph,
    cluster: Cluster,
    kind: str,
    algorithm: str,
    order: Sequence[int],
    rank_of_slot: Mapping[int, int],
    payload: float,
    entry: int,
) -> int:
    """Flows of one collective among slots in ring order behind `entry`; returns its end."""
    if algorithm == "hierarchical":
        return _add_hierarchical(graph, cluster, kind, order, rank_of_slot, payload, entry)
    rounds = rounds_of(kind, algorithm, len(order), payload)
    in_messages = partial(messages_of_hop, algorithm=algorithm, backend=cluster.backend)
    add_flow = partial(_add_flow, graph, cluster, order, rank_of_slot, in_messages)
    if algorithm in MESSAGES:
        return _add_messages(graph, cluster, algorithm, order, rounds, add_flow, entry)
    hops = 1
    if algorithm == "ring" and sum(map(len, rounds)) > MOST_FLOWS:
        hops = len(rounds)
        rounds = [[(source, target, size * hops) for source, target, size in rounds[0]]]
    last: list[list[int]] = [[entry] for _ in order]
    for transfers in rounds:
        now: dict[int, list[int]] = {}
        for source, target, size in transfers:
            flow = add_flow(source, target, size)
            # The receiver takes part when it is through with its round before, too.
            for before in dict.fromkeys((*last[source], *last[target])):
                graph.link(before, flow, hops * hop_s(cluster, algorithm, order[source], order[target]))
            now.setdefault(source, []).append(flow)
            now.setdefault(target, []).append(flow)
        for member, flows in now.items():
            last[member] = flows
    end = graph.join(dict.fromkeys(flow for flows in last for flow in flows), always=True)
    excess_s = window_excess_s(kind, payload, len(order), cluster.slowest_pair(order), cluster.backend)
    return graph.add(excess_s, after=end) if excess_s else end


def _add_flow(
    graph: ActivityGraph,
    cluster: Cluster,
    order: Sequence[int],
    rank_of_slot: Mapping[int, int],
    messages: Callable[[float], int],
    source: int,
    target: int,
    size: float,
) -> int:
    """A flow of `size` payload bytes between two members."""
    a, b = order[source], order[target]
    ranks, wire_bytes = (rank_of_slot[a], rank_of_slot[b]), size * cluster.backend.header_factor
    return graph.add_flow(cluster, FlowSpec(a, b, wire_bytes, *ranks, cluster.gradient_priority, messages(size)))


def _add_messages(
    graph: ActivityGraph,
    cluster: Cluster,
    algorithm: str,
    order: Sequence[int],
    rounds: Sequence[Round],
    add_flow: Callable[[int, int, float], int],
    entry: int,
) -> int:
    """Every member's messages to the others, one behind the other; receives that are posted were so when the step began."""
    posted = algorithm == "posted" and cluster.backend.rendezvous
    sent: dict[int, int] = {}
    flows: list[int] = []
    for source, target, size in chain.from_iterable(rounds):
        flow, slots = add_flow(source, target, size), (order[source], order[target])
        graph.link(entry, flow, hop_s(cluster, algorithm, *slots))
        if posted:
            graph.link(NO_ACTIVITY, flow, cluster.latency_s(*reversed(slots)) + cluster.latency_s(*slots))
        if source in sent:
            graph.link(sent[source], flow)
        sent[source] = flow
        flows.append(flow)
    return graph.join(flows, always=True)


def _add_hierarchical(
    graph: ActivityGraph, cluster: Cluster, kind: str, order: Sequence[int], rank_of_slot: Mapping[int, int], payload: float, entry: int
) -> int:
    """All-reduce in three steps: within nodes, across nodes (one ring for each place in a node), within nodes."""
    nodes: dict[str, list[int]] = {}
    for slot in order:
        nodes.setdefault(cluster.node_of(slot), []).append(slot)
    sizes = {len(members) for members in nodes.values()}
    if kind != "all_reduce" or len(sizes) != 1:
        raise ValueError(f"hierarchical makes no {kind} over nodes with {sorted(sizes)} members")
    (width,) = sizes
    local = list(nodes.values())
    after = entry
    if width > 1:
        after = graph.join([add_rounds(graph, cluster, "reduce_scatter", "ring", row, rank_of_slot, payload, after) for row in local], True)
    if len(local) > 1:
        across = [[row[place] for row in local] for place in range(width)]
        after = graph.join([add_rounds(graph, cluster, kind, "ring", row, rank_of_slot, payload / width, after) for row in across], True)
    if width > 1:
        gathers = [add_rounds(graph, cluster, "all_gather", "ring", row, rank_of_slot, payload / width, after) for row in local]
        after = graph.join(gathers, True)
    return after
