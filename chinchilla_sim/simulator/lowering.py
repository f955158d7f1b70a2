"""From a priced program to the graph of its activities.

Computation follows the rank's list. A message is a flow that waits for its send, under rendezvous (gloo) for the
receiver's "ready", and for the message before it on its connection (same two ranks, same direction):

    leaves = max(t_send, t_receive_posted + latency back)        its bytes start `latency` later

A collective waits until every member has issued it and has finished its collective before; so many buckets of one exchange as the
backend has threads for run side by side. The second round of a codec that
has two is a collective of its own, which a rank issues when it comes to DECODE_GRAD and has unpacked the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.rounds import MESSAGES
from chinchilla_sim.errors import DeadlockError, RunError
from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import Program
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, FlowSpec, Record
from chinchilla_sim.simulator.collectives import add_exchange
from chinchilla_sim.simulator.meetings import SHARED, Collective, CollectiveKey, Message, MessageKey
from chinchilla_sim.simulator.pause import no_collection
from chinchilla_sim.simulator.row import Row


def activities_of(program: Program, pricing: Pricing, cluster: Cluster) -> ActivityGraph:
    """The activities of one step; RunError names messages and collectives that miss an end.

    In a folded program the first replica stands for all, and the first device of a rank for its group: right where they are alike
    and share no links but in exchanges, which take the seconds of their table, or idle ones.
    """
    with no_collection():
        return Lowering(program, pricing, cluster, program.folded).run()


class Lowering:
    """Takes one program apart; its rows fill in what they issue and await."""

    def __init__(self, program: Program, pricing: Pricing, cluster: Cluster, folded: bool) -> None:
        self.program, self.plan, self.pricing, self.cluster, self.folded = program, program.plan, pricing, cluster, folded
        ranks = self.plan.rank_count
        self.graph = ActivityGraph(ranks, holdings=[[] for _ in range(ranks)], slots=[self.plan.slots_of(rank) for rank in range(ranks)])
        self.graph.held_bytes = [pricing.held_bytes(self.plan, rank) for rank in range(ranks)]
        self.tail = [NO_ACTIVITY] * ranks
        self.rank_of_slot = {slot: rank for rank in range(ranks) for slot in self.plan.slots_of(rank)}
        self.messages: dict[MessageKey, Message] = {}
        self.channels: dict[tuple[int, int, str], list[MessageKey]] = {}
        self.collectives: dict[CollectiveKey, Collective] = {}
        # In which order every rank issues its collectives.
        self.issued: list[list[CollectiveKey]] = [[] for _ in range(ranks)]
        # What an activity waits for and has no number yet: a message, a collective or a pass of another stage.
        self.awaited_messages: list[tuple[int, MessageKey]] = []
        self.awaited_collectives: list[tuple[int, CollectiveKey]] = []
        self.awaited_passes: list[tuple[int, tuple[int, bool, int, int]]] = []
        self.passes: dict[tuple[int, bool, int, int], int] = {}

    def run(self) -> ActivityGraph:
        """The activities of the whole program."""
        for rank, row in enumerate(self.program.actions):
            Row(self, rank, row).lower()
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
            graph.link(message.sent_after, flow, latency_s + cluster.backend.message_s)
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

    def _name_end(self, key: MessageKey, message: Message) -> str:
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
                what = f"{collective.actions[waiting]} of rank {waiting} waits for rank {absent[0]}, which never joins"
                raise DeadlockError(what, (waiting, absent[0]))
            entries[key] = self.graph.join(collective.joined_after.values(), always=True)
            if self.folded and not collective.exchange.table:
                exits[key] = self.graph.add(collective.exchange.idle_s * collective.part, after=entries[key])
            else:
                exits[key] = self._add_rounds(collective, entries[key])
            sent = collective.exchange.sent_bytes * collective.part * self.plan.group_width
            for rank in members:
                label = str(collective.actions[rank])
                self.graph.records.append(Record(rank, "collective", "collective", label, entries[key], exits[key], sent))
        for order in self.issued:
            for before, behind in self._turns(order):
                self.graph.link(exits[before], entries[behind])
        return exits

    def _turns(self, order: Sequence[CollectiveKey]) -> Iterator[tuple[CollectiveKey, CollectiveKey]]:
        """Which collectives of a rank must have ended before which begin: the one before, but buckets of one exchange run side by side."""
        before: list[CollectiveKey] = []
        running: list[CollectiveKey] = []
        for key in order:
            if running and self._beside(running[-1], key):
                yield from ((one, key) for one in before)
                if len(running) >= self._width(key):
                    yield running[-self._width(key)], key
                running.append(key)
            else:
                yield from ((one, key) for one in running)
                before, running = running, [key]

    def _beside(self, one: CollectiveKey, other: CollectiveKey) -> bool:
        """Whether two are buckets of the same exchange, which share its links while both run."""
        return one[:3] == other[:3] and one[1] != SHARED and not (self.folded or self.collectives[other].exchange.table)

    def _width(self, key: CollectiveKey) -> int:
        """How many buckets of an exchange run at once: messages of the runtime's own all."""
        algorithm = self.collectives[key].exchange.algorithm
        return len(self.collectives) if algorithm in MESSAGES else self.cluster.backend.concurrent_collectives

    def _add_rounds(self, collective: Collective, entry: int) -> int:
        """The rounds of an exchange, one behind the other; returns the end of the last."""
        exchange = collective.exchange
        for _ in range(collective.rounds):
            entry = add_exchange(self.graph, self.cluster, exchange, collective.share / exchange.rounds, self.rank_of_slot, entry)
        return entry
