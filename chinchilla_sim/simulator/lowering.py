"""From a priced program to the graph of its activities.

Computation follows the rank's list. A message is a flow that waits for its send, under rendezvous (gloo) for the
receiver's "ready", and for the message before it on its connection (same two ranks, same direction):

    leaves = max(t_send, t_receive_posted + latency back)        its bytes start `latency` later

A collective waits until every member has issued it and has finished its collective before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.action import CATEGORY, COLLECTIVES, PASSES, RECEIVES, SENDS, Action, Op, message_of
from chinchilla_sim.planner.prices import Exchange, Pricing, StagePrice, memory_change
from chinchilla_sim.planner.program import Program, needs
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, FlowSpec, Holding, Record
from chinchilla_sim.simulator.collectives import add_exchange
from chinchilla_sim.simulator.pause import no_collection

MessageKey = tuple[str, int, int, int]
"""Direction, boundary, microbatch and lane (the replica, unless stages have replica counts of their own)."""
CollectiveKey = tuple[int, str, int, int]
"""Stage, what is exchanged, microbatch (-1: once per step) and bucket; of shared weights their number and the replica."""

INPUT = "INPUT"
"""Label of getting the batch, which is no action of the program."""

SHARED = "shared weights"
PREFETCHED_BUCKETS = 2
"""ZeRO 3 gathers the weights of so many buckets ahead of their use (FSDP's default: the next one, beside the present)."""


def activities_of(program: Program, pricing: Pricing, cluster: Cluster) -> ActivityGraph:
    """The activities of one step; RunError names messages and collectives that miss an end.

    In a folded program the first replica stands for all, and the first device of a rank for its group: right where they are alike
    and share no links but in exchanges, which take the seconds of their table, or idle ones.
    """
    with no_collection():
        return _Lowering(program, pricing, cluster, program.folded).run()


@dataclass(slots=True)
class _Message:
    """Behind which activity each end was issued; None where it was not."""

    sent_after: int | None = None
    posted_after: int | None = None


@dataclass(slots=True)
class _Collective:
    """Exchange of one bucket among `members`: behind which activity, and with which action, each rank joined."""

    members: tuple[int, ...]
    exchange: Exchange
    share: float
    joined_after: dict[int, int] = field(default_factory=dict)
    actions: dict[int, Action] = field(default_factory=dict)


class _Lowering:
    def __init__(self, program: Program, pricing: Pricing, cluster: Cluster, folded: bool) -> None:
        self.program, self.plan, self.pricing, self.cluster, self.folded = program, program.plan, pricing, cluster, folded
        ranks = self.plan.rank_count
        self.graph = ActivityGraph(ranks, holdings=[[] for _ in range(ranks)], slots=[self.plan.slots_of(rank) for rank in range(ranks)])
        self.graph.held_bytes = [pricing.held_bytes(self.plan, rank) for rank in range(ranks)]
        self.tail = [NO_ACTIVITY] * ranks
        self.rank_of_slot = {slot: rank for rank in range(ranks) for slot in self.plan.slots_of(rank)}
        self.messages: dict[MessageKey, _Message] = {}
        self.channels: dict[tuple[int, int, str], list[MessageKey]] = {}
        self.collectives: dict[CollectiveKey, _Collective] = {}
        # In which order every rank issues its collectives.
        self.issued: list[list[CollectiveKey]] = [[] for _ in range(ranks)]
        # What an activity waits for and has no number yet: a message, a collective or a pass of another stage.
        self.awaited_messages: list[tuple[int, MessageKey]] = []
        self.awaited_collectives: list[tuple[int, CollectiveKey]] = []
        self.awaited_passes: list[tuple[int, tuple[int, bool, int, int]]] = []
        self.passes: dict[tuple[int, bool, int, int], int] = {}

    def run(self) -> ActivityGraph:
        for rank, row in enumerate(self.program.actions):
            _Row(self, rank, row).lower()
        arrival = self._add_messages()
        ended = self._add_collectives()
        for activity, key in self.awaited_messages:
            if key in arrival:
                self.graph.link(arrival[key], activity)
        for activity, collective in self.awaited_collectives:
            self.graph.link(ended[collective], activity)
        for activity, done in self.awaited_passes:
            if done in self.passes:
                self.graph.link(self.passes[done], activity)
        return self.graph

    # Messages

    def _add_messages(self) -> dict[MessageKey, int]:
        """A flow for each message; returns the activity with which it has arrived."""
        lost = [
            self._name_end(key, message) for key, message in self.messages.items() if None in (message.sent_after, message.posted_after)
        ]
        if lost:
            raise RunError(f"the program loses messages: {'; '.join(lost)}")
        arrival: dict[MessageKey, int] = {}
        for (source, target, _), keys in self.channels.items():
            before = NO_ACTIVITY
            for key in keys:
                before = arrival[key] = self._add_message(source, target, key, before)
        return arrival

    def _add_message(self, source: int, target: int, key: MessageKey, before: int) -> int:
        direction, boundary, microbatch, _ = key
        graph, cluster, message = self.graph, self.cluster, self.messages[key]
        priority = self.plan.activation_priority or cluster.activation_priority
        assert message.sent_after is not None and message.posted_after is not None
        payload = self.pricing.message_bytes(direction, boundary)
        pairs = list(zip(self.plan.slots_of(source), self.plan.slots_of(target), strict=True))
        flows = []
        for source_slot, target_slot in pairs[: 1 if self.folded else None]:
            wire_bytes = payload * cluster.backend.header_factor / len(pairs)
            latency_s = cluster.latency_s(source_slot, target_slot)
            flow = graph.add_flow(cluster, FlowSpec(source_slot, target_slot, wire_bytes, source, target, priority))
            graph.link(message.sent_after, flow, latency_s)
            if cluster.backend.rendezvous:
                graph.link(message.posted_after, flow, cluster.latency_s(target_slot, source_slot) + latency_s)
            if before >= 0:
                graph.link(before, flow)
            flows.append(flow)
        end = graph.join(flows)
        lower, upper = boundary, boundary + 1
        sender, receiver = (lower, upper) if direction == "F" else (upper, lower)
        send_op, receive_op = (Op.SEND_F, Op.RECV_F) if direction == "F" else (Op.SEND_B, Op.RECV_B)
        graph.records.append(Record(source, "send", "transfer", str(Action(sender, send_op, microbatch)), flows[0], end, payload))
        graph.records.append(Record(target, "receive", "transfer", str(Action(receiver, receive_op, microbatch)), flows[0], end, payload))
        return end

    def _name_end(self, key: MessageKey, message: _Message) -> str:
        """The end of a message that has no other, such as `0SEND_F0 of rank 0 has no receive`."""
        direction, boundary, microbatch, lane = key
        sent = message.sent_after is not None
        op = Op(f"{'SEND' if sent else 'RECV'}_{direction}")
        stage = boundary if (direction == "F") == sent else boundary + 1
        return f"{Action(stage, op, microbatch)} of rank {self.plan.rank_of(stage, lane)} has no {'receive' if sent else 'send'}"

    # Collectives

    def _add_collectives(self) -> dict[CollectiveKey, int]:
        """Every collective behind the ones that its members issued before; returns the activity with which it has ended."""
        entries: dict[CollectiveKey, int] = {}
        exits: dict[CollectiveKey, int] = {}
        for key, collective in self.collectives.items():
            members = collective.members
            absent = [rank for rank in members if rank not in collective.joined_after]
            if absent:
                waiting = next(iter(collective.joined_after))
                raise RunError(
                    f"the program deadlocks: {collective.actions[waiting]} of rank {waiting} waits for rank {absent[0]}, which never joins"
                )
            entries[key] = self.graph.join(collective.joined_after.values(), always=True)
            if self.folded and not collective.exchange.table:
                exits[key] = self.graph.add(collective.exchange.idle_s * collective.share, after=entries[key])
            else:
                exits[key] = self._add_rounds(collective, entries[key])
            sent = collective.exchange.sent_bytes * collective.share * self.plan.group_width
            for rank in members:
                label = str(collective.actions[rank])
                self.graph.records.append(Record(rank, "collective", "collective", label, entries[key], exits[key], sent))
        for order in self.issued:
            for before, behind in pairwise(order):
                self.graph.link(exits[before], entries[behind])
        return exits

    def _add_rounds(self, collective: _Collective, entry: int) -> int:
        """The rounds of an exchange, one behind the other; returns the end of the last."""
        exchange = collective.exchange
        for _ in range(exchange.rounds):
            entry = add_exchange(self.graph, self.cluster, exchange, collective.share / exchange.rounds, self.rank_of_slot, entry)
        return entry


@dataclass(slots=True)
class _Row:
    """One rank's list of actions on its way into the graph."""

    lowering: _Lowering
    rank: int
    actions: tuple[Action, ...]
    stages: tuple[int, ...] = ()
    replica: int = 0
    expected: frozenset[tuple[Op, int, int | None]] = frozenset()
    started: set[int] = field(default_factory=set)
    last_backward: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stages, self.replica = self.lowering.plan.position[self.rank]
        self.expected = frozenset((a.op, a.stage, a.microbatch) for a in self.actions if a.op in RECEIVES or a.op in COLLECTIVES)
        self.last_backward = {a.stage: index for index, a in enumerate(self.actions) if a.op in (Op.B, Op.W)}

    def lower(self) -> None:
        if self.lowering.pricing.input_s and self.actions:
            self._input(self.lowering.pricing.input_s[self.rank])
        for index, action in enumerate(self.actions):
            if action.op in SENDS or action.op in RECEIVES:
                self._message(action)
            elif action.op in COLLECTIVES:
                self._issue(action)
            elif action.op in PASSES:
                self._pass(action, self.last_backward.get(action.stage) == index)
            else:
                self._compute(action)

    def _input(self, seconds: float) -> None:
        """The batch comes first."""
        lowering = self.lowering
        number = lowering.tail[self.rank] = lowering.graph.add(seconds, self.rank)
        lowering.graph.records.append(Record(self.rank, "compute", "input", INPUT, number, number))

    def _price(self, stage: int) -> StagePrice:
        return self.lowering.pricing.stages[stage][self.replica]

    @property
    def _split(self) -> bool:
        return self.lowering.plan.gradient_buckets > 1

    def _message(self, action: Action) -> None:
        lowering = self.lowering
        direction, boundary, microbatch = message_of(action)
        lane = lowering.plan.lane_of(self.replica, microbatch)
        key = (direction, boundary, microbatch, lane)
        message = lowering.messages.setdefault(key, _Message())
        if action.op in RECEIVES:
            message.posted_after = lowering.tail[self.rank]
            return
        message.sent_after = lowering.tail[self.rank]
        peer = lowering.plan.rank_of(boundary + (direction == "F"), lane)
        lowering.channels.setdefault((self.rank, peer, direction), []).append(key)

    # Computation

    def _append(self, label: str, action: Action, seconds: float) -> int:
        """Computation behind what the rank did before."""
        lowering = self.lowering
        number = lowering.graph.add(seconds, self.rank, lowering.tail[self.rank])
        lowering.graph.records.append(Record(self.rank, "compute", CATEGORY[action.op], label, number, number))
        lowering.tail[self.rank] = number
        return number

    def _compute(self, action: Action) -> None:
        """Codecs and updates."""
        stage, op, _ = action
        if op is Op.ENCODE_GRAD and self._split:
            return  # packed bucket by bucket, between the parts of the last backward pass
        number = self._append(str(action), action, self._price(stage).action_s[op])
        for needed in needs(action):
            if needed in (Op.REDUCE_GRAD, Op.REDUCE_SHARED):
                self._await_gradients(number, stage, needed)
            else:
                self._await(number, action, needed)

    def _await(self, number: int, action: Action, needed: Op) -> None:
        if (needed, action.stage, action.microbatch) in self.expected:
            direction, boundary, microbatch = message_of(Action(action.stage, needed, action.microbatch))
            lane = self.lowering.plan.lane_of(self.replica, microbatch)
            self.lowering.awaited_messages.append((number, (direction, boundary, microbatch, lane)))

    def _await_gradients(self, number: int, stage: int, needed: Op) -> None:
        sets = self.lowering.plan.shared_stages
        for key in self.lowering.issued[self.rank]:
            own = key[1] == "gradients" and key[0] == stage
            shared = key[1] == SHARED and stage in sets[key[0]]
            if shared if needed is Op.REDUCE_SHARED else own:
                self.lowering.awaited_collectives.append((number, key))

    def _pass(self, action: Action, last: bool) -> None:
        lowering, price = self.lowering, self._price(action.stage)
        stage, op, microbatch = action
        assert microbatch is not None
        first = stage not in self.started
        seconds = price.compute_s(op, first)
        if op in (Op.B, Op.W):
            self.started.add(stage)
        begin, end = self._parts(action, seconds, last)
        for needed in needs(action):
            self._await(begin, action, needed)
        self._hand_over(action, begin, end)
        if lowering.plan.training:
            running, left = memory_change(price, op)
            holdings = lowering.graph.holdings[self.rank]
            if running:
                holdings.append(Holding(begin, False, running))
            if left != running:
                holdings.append(Holding(end, True, left - running))

    def _hand_over(self, action: Action, begin: int, end: int) -> None:
        """Stages on one rank hand over without a message."""
        lowering, plan = self.lowering, self.lowering.plan
        stage, op, microbatch = action
        if op is Op.W or len(self.stages) == 1:
            return
        assert microbatch is not None
        forward = op is Op.F
        lowering.passes[stage, forward, microbatch, self.replica] = end
        before = stage - 1 if forward else stage + 1
        if 0 <= before < plan.stage_count and not plan.crosses(min(before, stage), self.replica):
            lowering.awaited_passes.append((begin, (before, forward, microbatch, self.replica)))

    def _parts(self, action: Action, seconds: float, last: bool) -> tuple[int, int]:
        """The activities of a pass: one, or one per bucket where buckets are gathered before or exchanged behind it."""
        lowering, plan, price = self.lowering, self.lowering.plan, self._price(action.stage)
        op, label = action.op, str(action)
        exchanging = plan.exchange_degree_of(action.stage) > 1
        sharded = plan.zero_stage == 3 and exchanging and op is not Op.W
        leaves = exchanging and op in (Op.B, Op.W) and (plan.zero_stage == 3 or (last and self._split))
        if not (sharded or leaves):
            begin = end = self._append(label, action, seconds)
        else:
            begin, end = self._bucket_parts(action, seconds, sharded, leaves)
        blocking_s = price.blocking_s.get(op, 0.0)
        if blocking_s:
            end = lowering.graph.add(blocking_s, after=end)
            lowering.graph.records.append(Record(self.rank, "collective", "collective", label, end, end))
            lowering.tail[self.rank] = end
        return begin, end

    def _bucket_parts(self, action: Action, seconds: float, gathers: bool, leaves: bool) -> tuple[int, int]:
        """Gather a bucket's weights ahead, run its part of the pass, send its gradients away; backwards in reverse order."""
        plan, price = self.lowering.plan, self._price(action.stage)
        forward = action.op is Op.F
        order = list(range(len(price.buckets))) if forward else list(reversed(range(len(price.buckets))))
        total = sum(bucket.parameter_bytes for bucket in price.buckets) or 1.0
        microbatch = action.microbatch if plan.zero_stage == 3 else None
        before = self.lowering.tail[self.rank]
        parts: list[int] = []
        encode_s = price.action_s.get(Op.ENCODE_GRAD, 0.0)
        for turn, index in enumerate(order):
            bucket = price.buckets[index]
            share = bucket.parameter_bytes / total
            gathered = None
            if gathers and bucket.parameter_bytes:
                ahead = turn - PREFETCHED_BUCKETS
                gathered = self._join("weights", action, microbatch, index, share, parts[ahead] if ahead >= 0 else before)
            part = self._append(str(action), action, seconds * (bucket.forward_share if forward else bucket.backward_share))
            parts.append(part)
            if gathered:
                self.lowering.awaited_collectives.append((part, gathered))
            if leaves and bucket.parameter_bytes:
                if plan.zero_stage < 3:
                    packing = Action(action.stage, Op.ENCODE_GRAD)
                    self._append(str(packing), packing, encode_s * share)
                self._join("gradients", action, microbatch, index, share, self.lowering.tail[self.rank])
        return parts[0], self.lowering.tail[self.rank]

    # Collectives

    def _issue(self, action: Action) -> None:
        """An exchange of the whole stage, unless its buckets have left already; or of weights shared with other stages."""
        if action.op is Op.REDUCE_SHARED:
            self._join_shared(action)
            return
        gradients = action.op is Op.REDUCE_GRAD
        if not (gradients and self._split):
            self._join("gradients" if gradients else "weights", action, None, 0, 1.0, self.lowering.tail[self.rank])

    def _join(self, what: str, action: Action, microbatch: int | None, bucket: int, share: float, behind: int) -> CollectiveKey:
        lowering = self.lowering
        gradients = what == "gradients"
        exchange = (lowering.pricing.gradients if gradients else lowering.pricing.weights)[action.stage]
        # A microbatch gathers weights for its forward and again for its backward pass.
        name = what if gradients or microbatch is None else f"{what} {action.op}"
        key = (action.stage, name, -1 if microbatch is None else microbatch, bucket)
        named = Action(action.stage, Op.REDUCE_GRAD if gradients else Op.UNSHARD)
        members = lowering.plan.placement[action.stage][: 1 if lowering.folded else None]
        self._enter(key, _Collective(members, exchange, share), named, behind)
        return key

    def _join_shared(self, action: Action) -> None:
        """Of a folded program the slowest replica's exchange."""
        lowering, number = self.lowering, action.microbatch
        assert number is not None
        by_replica, replica = lowering.pricing.shared[number], 0 if lowering.plan.free_replicas else self.replica
        exchange = max(by_replica, key=lambda one: one.idle_s) if lowering.folded else by_replica[replica]
        collective = _Collective(lowering.plan.sharing_ranks(number, replica), exchange, 1.0)
        self._enter((number, SHARED, -1, replica), collective, action, lowering.tail[self.rank])

    def _enter(self, key: CollectiveKey, collective: _Collective, action: Action, behind: int) -> None:
        joined = self.lowering.collectives.setdefault(key, collective)
        joined.joined_after[self.rank], joined.actions[self.rank] = behind, action
        self.lowering.issued[self.rank].append(key)
