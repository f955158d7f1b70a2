"""Who sends how much to whom in a step: bytes between device slots, and what they are.

Messages and exchanges carry what their spans in the simulated timeline say, each exchange along its ring (or tree, or pairs) as
`cost/rounds.py` has it; one that takes the seconds of a measured table is drawn as a ring. Collectives inside a pass, of which a span
knows only the sum, are counted from the graph: rings of what `cost/collective.sent_bytes` says, all-to-alls in equal shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.cost.rounds import RING_ROUNDS, rounds_of
from chinchilla_sim.graph.shard import Axis
from chinchilla_sim.planner.action import PASSES, SENDS, Action, Op, message_of, parse_action
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.blocking import degrees_of, in_passes, sent_of
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Exchange, Pricing
from chinchilla_sim.timeline import Timeline

ACTIVATIONS, ACTIVATION_GRADIENTS = "activations", "gradients of activations"
GRADIENTS, WEIGHTS, SHARED, NORM = "gradients", "sharded weights", "shared weights", "norm of gradients"
INSIDE: dict[Axis, str] = {"tensor": "tensor parallelism", "context": "context parallelism", "expert": "expert parallelism"}


class Flow(NamedTuple):
    """Bytes that one device slot sends to another in a step; `stage` is the sender's (of messages the receiver's too)."""

    source: int
    target: int
    what: str
    stage: int
    target_stage: int
    bytes: float


@dataclass(frozen=True)
class Traffic:
    """All flows of a step, one for each pair of slots, kind and stage."""

    flows: tuple[Flow, ...]

    def between(self) -> dict[tuple[int, int], float]:
        """Bytes by source and target."""
        totals: dict[tuple[int, int], float] = {}
        for flow in self.flows:
            pair = flow.source, flow.target
            totals[pair] = totals.get(pair, 0.0) + flow.bytes
        return totals

    def over_links(self, cluster: Cluster) -> dict[tuple[str, str], float]:
        """Bytes on every edge of the cluster that any route uses."""
        loads: dict[tuple[str, str], float] = {}
        for (source, target), size in self.between().items():
            for edge in cluster.route(source, target):
                loads[edge] = loads.get(edge, 0.0) + size
        return loads


def traffic_of(plan: Plan, pricing: Pricing, timeline: Timeline, pricer: Pricer) -> Traffic:
    """Flows of one step, without headers; of plans with local steps the mean over the steps from one exchange to the next."""
    totals: dict[tuple[int, int, str, int, int], float] = {}
    local = timeline.local
    parts = [(timeline, 1 / timeline.local_steps), *([(local, 1 - 1 / timeline.local_steps)] if local else [])]
    found = [(flow, share) for one, share in parts for flow in spoken(plan, pricing, one, pricer.cluster)]
    found += [(flow, 1.0) for flow in _inside_passes(plan, pricer)]
    for (*key, size), share in found:
        totals[tuple(key)] = totals.get(tuple(key), 0.0) + share * size  # type: ignore[index, arg-type]
    return Traffic(tuple(Flow(*key, size) for key, size in sorted(totals.items()) if size > 0))


def spoken(plan: Plan, pricing: Pricing, timeline: Timeline, cluster: Cluster) -> Iterator[Flow]:
    """Messages and exchanges of one timeline, one flow for each span or sum of equal spans; collectives inside passes are left out."""
    for rank in range(plan.rank_count):
        for span in timeline.spans_of(rank, "send"):
            yield from _message(plan, rank, parse_action(span.label), span.moved_bytes)
        exchanged: dict[Action, float] = {}
        for span in timeline.spans_of(rank, "collective"):
            action = parse_action(span.label)
            if span.moved_bytes and action.op not in PASSES:
                exchanged[action] = exchanged.get(action, 0.0) + span.moved_bytes
        for action, moved in exchanged.items():
            yield from _exchange(plan, pricing, rank, action, moved, cluster)


def _message(plan: Plan, rank: int, action: Action, moved: float) -> Iterator[Flow]:
    assert action.op in SENDS
    direction, boundary, microbatch = message_of(action)
    target_stage = boundary + 1 if direction == "F" else boundary
    peer = plan.rank_of(target_stage, plan.lane_of(plan.position[rank][1], microbatch))
    what = ACTIVATIONS if direction == "F" else ACTIVATION_GRADIENTS
    for source, target in zip(plan.slots_of(rank), plan.slots_of(peer), strict=True):
        yield Flow(source, target, what, action.stage, target_stage, moved / plan.group_width)


def _exchange(plan: Plan, pricing: Pricing, rank: int, action: Action, moved: float, cluster: Cluster) -> Iterator[Flow]:
    """What the slots of one rank send in an exchange; `moved` is their sum in the counting of rings."""
    exchange, what = _exchange_of(plan, pricing, rank, action)
    if not exchange.sent_bytes:
        return
    payload = exchange.payload_bytes * moved / plan.group_width / exchange.sent_bytes
    own = set(plan.slots_of(rank))
    for order in exchange.orders:
        for source, target, share in pattern(exchange, order, cluster):
            if source in own:
                yield Flow(source, target, what, action.stage, action.stage, share * payload)


def _exchange_of(plan: Plan, pricing: Pricing, rank: int, action: Action) -> tuple[Exchange, str]:
    replica = plan.position[rank][1]
    if action.op is Op.UNSHARD:
        return pricing.weights[action.stage], WEIGHTS
    if action.op is Op.REDUCE_SHARED:
        assert action.microbatch is not None
        return pricing.shared[action.microbatch][0 if plan.free_replicas else replica], SHARED
    if action.op is Op.REDUCE_NORM:
        return pricing.norm_of(replica), NORM
    return pricing.gradients[action.stage], GRADIENTS


def pattern(exchange: Exchange, order: Sequence[int], cluster: Cluster) -> Iterator[tuple[int, int, float]]:
    """(source, target, bytes) of a whole exchange among slots in ring order, for one byte of payload."""
    kind, members = exchange.kind, len(order)
    if exchange.algorithm == "hierarchical" and not exchange.table:
        yield from _hierarchical(order, cluster)
    elif exchange.table or exchange.algorithm == "ring":
        if kind in RING_ROUNDS:
            yield from _ring(order, sent_bytes(kind, 1.0, members))
        else:
            yield from ((a, b, 1 / members) for a, b in permutations(order, 2))
    else:
        for transfers in rounds_of(kind, exchange.algorithm, members, 1.0):
            yield from ((order[source], order[target], size) for source, target, size in transfers)


def _hierarchical(order: Sequence[int], cluster: Cluster) -> Iterator[tuple[int, int, float]]:
    """Rings within nodes, and one ring across nodes for each place in a node (`simulator/collectives.py`)."""
    nodes: dict[str, list[int]] = {}
    for slot in order:
        nodes.setdefault(cluster.node_of(slot), []).append(slot)
    rows = list(nodes.values())
    width = len(rows[0])
    for row in rows:
        yield from _ring(row, sent_bytes("all_reduce", 1.0, width))
    for place in range(width):
        yield from _ring([row[place] for row in rows], sent_bytes("all_reduce", 1.0 / width, len(rows)))


def _ring(order: Sequence[int], size: float) -> Iterator[tuple[int, int, float]]:
    """Every member sends so much to the next one."""
    if len(order) > 1:
        yield from ((source, order[(at + 1) % len(order)], size) for at, source in enumerate(order))


def _inside_passes(plan: Plan, pricer: Pricer) -> Iterator[Flow]:
    """What devices of a rank (of experts: of neighbouring ranks) exchange between the operators of all passes of a step."""
    if max(degrees_of(plan).values()) == 1:
        return
    for stage in range(plan.stage_count):
        for axis, size in _bytes_by_axis(plan, stage, pricer).items():
            for place, rank in enumerate(plan.placement[stage]):
                microbatches = plan.share_of(stage, place)
                for source, target, share in _inner_pairs(plan, stage, place, rank, axis):
                    yield Flow(source, target, INSIDE[axis], stage, stage, microbatches * size * share)


def _bytes_by_axis(plan: Plan, stage: int, pricer: Pricer) -> dict[Axis, float]:
    """What each device sends for one microbatch, forward and backward."""
    device_pricer = pricer.for_devices(plan)
    part, tasks = device_pricer.part, device_pricer.tasks_of(plan, stage)
    assert part
    recompute = plan.recompute_of(stage)
    again = device_pricer.blocks(recompute).recompute(tasks).again if plan.training and recompute != "none" else frozenset()
    forward, backward = in_passes(part, plan, stage, tasks, again)
    totals: dict[Axis, float] = {}
    for one in [*forward, *backward] if plan.training else forward:
        totals[one.axis] = totals.get(one.axis, 0.0) + sent_of(one, plan, device_pricer.scale(plan.microbatch_size))
    return totals


def _inner_pairs(plan: Plan, stage: int, place: int, rank: int, axis: Axis) -> Iterator[tuple[int, int, float]]:
    """Slots that exchange along an axis, and what share of a device's bytes goes that way."""
    slots, width = plan.slots_of(rank), plan.tensor_parallel_degree
    if axis == "tensor":
        for start in range(0, len(slots), width):
            yield from _ring(slots[start : start + width], 1.0)
    elif axis == "context":
        for lane in range(width):
            yield from _ring(slots[lane::width], 1.0)
    else:
        first = place - place % plan.expert_parallel_degree
        others = [peer for peer in plan.placement[stage][first : first + plan.expert_parallel_degree] if peer != rank]
        for peer in others:
            yield from ((source, target, 1 / len(others)) for source, target in zip(slots, plan.slots_of(peer), strict=True))
