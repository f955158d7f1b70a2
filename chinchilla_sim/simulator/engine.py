"""The SimPy reference: every rank plays its list of actions, messages share the links, collectives wait for all.

Each rank is an in-order machine driven by event callbacks: it issues actions until it meets a compute action
whose message has not arrived, and goes on when that has. Computation occupies the compute stream; messages and
collectives run beside it, as torch.distributed's asynchronous calls do. With a backend of rendezvous (gloo) a
message leaves only after the receiver's "ready" has arrived:

    arrival = max(t_send, t_receive_posted + latency) + queue + header_factor * bytes / bandwidth + latency
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import simpy

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.pricing import Pricing
from chinchilla_sim.planner.program import CATEGORY, RECEIVES, SENDS, Action, Op, Program, message_of, needs
from chinchilla_sim.simulator.network import FairNetwork, call_after
from chinchilla_sim.timeline import MemorySample, Span, Stream, Timeline

Token = tuple[Op, int, int | None]
"""What a rank waits for: a receive or collective of one stage and microbatch."""


def simulate(program: Program, pricing: Pricing, cluster: Cluster) -> Timeline:
    """Play one step of a program; raises RunError that names the waiting ranks when it deadlocks."""
    return _Simulation(program, pricing, cluster).run()


@dataclass(slots=True)
class _Rank:
    """Where a rank stands in its list."""

    actions: tuple[Action, ...]
    stage: int
    replica: int
    slot: int
    next_action: int = 0
    computing: bool = False
    arrived: set[Token] = field(default_factory=set)
    expected: frozenset[Token] = frozenset()
    held_bytes: float = 0.0


@dataclass(slots=True)
class _Message:
    """A message between two ranks; it leaves when it was sent and, under rendezvous, its receive was posted."""

    sent: bool = False
    ready_s: float | None = None


class _Simulation:
    def __init__(self, program: Program, pricing: Pricing, cluster: Cluster) -> None:
        self.plan, self.pricing, self.cluster = program.plan, pricing, cluster
        self.env = simpy.Environment()
        self.network = FairNetwork(self.env, cluster)
        self.spans: list[Span] = []
        self.memory: list[MemorySample] = []
        self.messages: dict[tuple[str, int, int, int], _Message] = {}
        self.joined: dict[int, int] = {}
        self.departures: dict[tuple[int, int, float], list[Callable[[], None]]] = {}
        self.ranks = [self._rank(program.actions[rank], rank) for rank in range(self.plan.rank_count)]

    def _rank(self, actions: tuple[Action, ...], rank: int) -> _Rank:
        stage, replica = self.plan.position[rank]
        waited = (Op.RECV_F, Op.RECV_B, Op.REDUCE_GRAD)
        expected = frozenset((a.op, a.stage, a.microbatch) for a in actions if a.op in waited)
        return _Rank(actions, stage, replica, self.plan.slots[rank], expected=expected)

    def run(self) -> Timeline:
        for rank, price in enumerate(self.pricing.ranks):
            self._hold(rank, price.held_bytes)
        for rank in range(len(self.ranks)):
            self._advance(rank)
        self.env.run()
        waiting = [
            f"rank {rank} waits at {state.actions[state.next_action]}"
            for rank, state in enumerate(self.ranks)
            if state.next_action < len(state.actions)
        ]
        if waiting:
            raise RunError(f"the program deadlocks: {'; '.join(waiting)}")
        self._check_messages()
        return Timeline(len(self.ranks), tuple(self.spans), tuple(self.memory))

    def _check_messages(self) -> None:
        """Every message must have been sent and received."""
        lost = [
            self._name_end(*key, sent=message.sent) for key, message in self.messages.items() if not message.sent or message.ready_s is None
        ]
        if lost:
            raise RunError(f"the program loses messages: {'; '.join(lost)}")

    def _name_end(self, direction: str, boundary: int, microbatch: int, replica: int, sent: bool) -> str:
        """The end of a message that has no other, such as `0SEND_F0 of rank 0 has no receive`."""
        op = Op(f"{'SEND' if sent else 'RECV'}_{direction}")
        stage = boundary if (direction == "F") == sent else boundary + 1
        return f"{Action(stage, op, microbatch)} of rank {self.plan.rank_of(stage, replica)} has no {'receive' if sent else 'send'}"

    def _advance(self, rank: int) -> None:
        """Issue actions until the rank computes, waits or is done."""
        state = self.ranks[rank]
        while not state.computing and state.next_action < len(state.actions):
            action = state.actions[state.next_action]
            if action.op in SENDS or action.op in RECEIVES:
                self._issue_message(rank, action)
            elif action.op is Op.REDUCE_GRAD:
                self._join_collective(rank, action)
            elif not self._can_start(state, action):
                return
            else:
                self._compute(rank, action)
            state.next_action += 1

    @staticmethod
    def _can_start(state: _Rank, action: Action) -> bool:
        for op in needs(action):
            token = (op, action.stage, action.microbatch)
            if token in state.expected and token not in state.arrived:
                return False
        return True

    def _compute(self, rank: int, action: Action) -> None:
        state, start_s = self.ranks[rank], self.env.now
        state.computing = True
        saved = self.pricing.ranks[rank].saved_bytes
        if action.op is Op.F and self.plan.training:
            self._hold(rank, saved)

        def finish() -> None:
            state.computing = False
            self._span(rank, "compute", action, start_s)
            if action.op is Op.B:
                self._hold(rank, -saved)
            self._advance(rank)

        call_after(self.env, self.pricing.compute_s(rank, action.op, action.microbatch), finish)

    def _issue_message(self, rank: int, action: Action) -> None:
        direction, boundary, microbatch = message_of(action)
        replica = self.ranks[rank].replica
        message = self.messages.setdefault((direction, boundary, microbatch, replica), _Message())
        if action.op in SENDS:
            message.sent = True
        else:
            message.ready_s = self.env.now
        rendezvous = self.cluster.backend.rendezvous
        if message.sent and (message.ready_s is not None or not rendezvous) and (rendezvous or action.op in SENDS):
            self._depart(direction, boundary, microbatch, replica, message)

    def _depart(self, direction: str, boundary: int, microbatch: int, replica: int, message: _Message) -> None:
        lower, upper = self.plan.rank_of(boundary, replica), self.plan.rank_of(boundary + 1, replica)
        source, target = (lower, upper) if direction == "F" else (upper, lower)
        send_op, receive_op = (Op.SEND_F, Op.RECV_F) if direction == "F" else (Op.SEND_B, Op.RECV_B)
        source_slot, target_slot = self.plan.slots[source], self.plan.slots[target]
        payload = self.pricing.message_bytes(direction, boundary)
        wire_bytes = payload * self.cluster.backend.header_factor

        def arrive(first_byte_s: float) -> None:
            receive = Action(self.ranks[target].stage, receive_op, microbatch)
            self._span(source, "send", Action(self.ranks[source].stage, send_op, microbatch), first_byte_s, payload)
            self._span(target, "receive", receive, first_byte_s, payload)
            self._arrive(target, receive)

        def leave() -> None:
            self.network.send(source_slot, target_slot, wire_bytes, arrive)

        ready_s = 0.0
        if self.cluster.backend.rendezvous and message.ready_s is not None:
            ready_s = message.ready_s + self.cluster.latency_s(target_slot, source_slot)
        if ready_s <= self.env.now:
            leave()
        else:
            self._leave_at(ready_s, (source, target), leave)

    def _leave_at(self, ready_s: float, pair: tuple[int, int], leave: Callable[[], None]) -> None:
        """Let a message leave when "ready" arrives; those of one pair that get it together leave in the order of sending."""
        together = self.departures.setdefault((*pair, ready_s), [])
        together.append(leave)
        if len(together) == 1:
            call_after(self.env, ready_s - self.env.now, lambda: _call_all(together))

    def _join_collective(self, rank: int, action: Action) -> None:
        """The exchange of a stage's gradients starts when its last replica has joined."""
        self.joined[action.stage] = self.joined.get(action.stage, 0) + 1
        if self.joined[action.stage] < self.plan.data_parallel_degree:
            return
        start_s = self.env.now

        def finish() -> None:
            for member in self.plan.placement[action.stage]:
                self._span(member, "collective", action, start_s, self.pricing.collective_sent_bytes[action.stage])
                self._arrive(member, action)

        call_after(self.env, self.pricing.collective_s[action.stage], finish)

    def _arrive(self, rank: int, action: Action) -> None:
        self.ranks[rank].arrived.add((action.op, action.stage, action.microbatch))
        self._advance(rank)

    def _span(self, rank: int, stream: Stream, action: Action, start_s: float, moved_bytes: float = 0.0) -> None:
        self.spans.append(Span(rank, stream, CATEGORY[action.op], str(action), start_s, self.env.now, moved_bytes))

    def _hold(self, rank: int, change_bytes: float) -> None:
        state = self.ranks[rank]
        state.held_bytes += change_bytes
        self.memory.append(MemorySample(rank, self.env.now, state.held_bytes))


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()
