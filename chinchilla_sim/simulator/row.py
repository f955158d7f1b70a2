"""One rank's list of actions on its way into the graph of activities (`lowering.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chinchilla_sim.cost.rounds import MESSAGES
from chinchilla_sim.planner.action import CATEGORY, COLLECTIVES, PASSES, RECEIVES, SENDS, Action, Op, message_of
from chinchilla_sim.planner.pricing.prices import RankMemory, StagePrice
from chinchilla_sim.planner.program import needs
from chinchilla_sim.simulator.activities import Holding, Record
from chinchilla_sim.simulator.meetings import GRADIENTS, NORM, SECOND_ROUND, SHARED, Collective, CollectiveKey, Message

if TYPE_CHECKING:
    from chinchilla_sim.simulator.lowering import Lowering

INPUT = "INPUT"
"""Label of getting the batch, which is no action of the program."""

PREFETCHED_BUCKETS = 2
"""ZeRO 3 gathers the weights of so many buckets ahead of their use (FSDP's default: the next one, beside the present)."""


NO_MEMORY = RankMemory((), 0.0, {})


@dataclass(slots=True)
class Row:
    """One rank's list of actions on its way into the graph."""

    lowering: Lowering
    rank: int
    actions: tuple[Action, ...]
    stages: tuple[int, ...] = ()
    replica: int = 0
    expected: frozenset[tuple[Op, int, int | None]] = frozenset()
    started: set[int] = field(default_factory=set)
    last_backward: dict[int, int] = field(default_factory=dict)
    decoded: frozenset[int] = frozenset()
    memory: RankMemory = NO_MEMORY
    played: int = 0
    updated: bool = False

    def __post_init__(self) -> None:
        self.stages, self.replica = self.lowering.plan.position[self.rank]
        self.expected = frozenset((a.op, a.stage, a.microbatch) for a in self.actions if a.op in RECEIVES or a.op in COLLECTIVES)
        self.decoded = frozenset(a.stage for a in self.actions if a.op is Op.DECODE_GRAD)
        self.last_backward = {a.stage: index for index, a in enumerate(self.actions) if a.op in (Op.B, Op.W)}
        passes = [action for action in self.actions if action.op in PASSES]
        self.memory = self.lowering.pricing.memory_of(self.lowering.plan, self.rank, passes)

    def lower(self) -> None:
        """Add the rank's activities, and note what it issues and awaits."""
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
        return self.lowering.plan.buckets_leave_early

    def _issue_messages(self, count: int) -> None:
        """What the program itself takes to send or await something: no span, as a run records none."""
        lowering = self.lowering
        if lowering.pricing.message_s:
            lowering.tail[self.rank] = lowering.graph.add(
                count * lowering.pricing.message_s[self.rank], self.rank, lowering.tail[self.rank]
            )

    def _message(self, action: Action) -> None:
        lowering = self.lowering
        direction, boundary, microbatch = message_of(action)
        lane = lowering.plan.lane_of(self.replica, microbatch)
        key = (direction, boundary, microbatch, lane)
        message = lowering.messages.setdefault(key, Message())
        self._issue_messages(1)
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
        if op is Op.DECODE_GRAD and self.lowering.pricing.gradients[stage].rounds > 1:
            self._decode_twice(action)
            return
        number = self._append(str(action), action, self._price(stage).action_s[op])
        if op is Op.OPTIM:
            self._update_memory(stage, number)
        for needed in needs(action):
            if needed in COLLECTIVES:
                self._await_gradients(number, stage, needed)
            else:
                self._await(number, action, needed)

    def _decode_twice(self, action: Action) -> None:
        """Unpack each bucket's first round and issue its second; then, behind that, unpack the results."""
        lowering, price = self.lowering, self._price(action.stage)
        firsts = [key for key in lowering.issued[self.rank] if key[:2] == (action.stage, GRADIENTS)]
        seconds = []
        for key in firsts:
            first = lowering.collectives[key]
            number = self._append(str(action), action, price.between_rounds_s * first.share)
            lowering.awaited_collectives.append((number, key))
            seconds.append((action.stage, SECOND_ROUND, *key[2:]))
            named = Action(action.stage, Op.REDUCE_GRAD)
            self._enter(seconds[-1], Collective(first.members, first.exchange, first.share, 1), named)
        behind_s = price.action_s[Op.DECODE_GRAD] - price.between_rounds_s
        for key in seconds:
            number = self._append(str(action), action, behind_s * lowering.collectives[key].share)
            lowering.awaited_collectives.append((number, key))

    def _await(self, number: int, action: Action, needed: Op) -> None:
        if (needed, action.stage, action.microbatch) in self.expected:
            direction, boundary, microbatch = message_of(Action(action.stage, needed, action.microbatch))
            lane = self.lowering.plan.lane_of(self.replica, microbatch)
            self.lowering.awaited_messages.append((number, (direction, boundary, microbatch, lane)))

    def _await_gradients(self, number: int, stage: int, needed: Op) -> None:
        sets = self.lowering.plan.shared_stages
        for key in self.lowering.issued[self.rank]:
            if {
                Op.REDUCE_GRAD: key[1] == GRADIENTS and key[0] == stage,
                Op.REDUCE_SHARED: key[1] == SHARED and stage in sets[key[0]],
                Op.REDUCE_NORM: key[1] == NORM,
            }[needed]:
                self.lowering.awaited_collectives.append((number, key))

    def _pass(self, action: Action, last: bool) -> None:
        price = self._price(action.stage)
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
        running, left = self.memory.changes[self.played]
        self.played += 1
        self._hold(begin, end, running, left)

    def _hold(self, begin: int, end: int, running: float, left: float) -> None:
        """Take so many bytes, and leave so many behind."""
        holdings = self.lowering.graph.holdings[self.rank]
        if running:
            holdings.append(Holding(begin, False, running))
        if left != running:
            holdings.append(Holding(end, True, left - running))

    def _update_memory(self, stage: int, number: int) -> None:
        """An update frees its stage's gradients; the first one says what updates need."""
        first = not self.updated
        self.updated = True
        self._hold(number, number, self.memory.update_bytes if first else 0.0, -self.memory.freed_bytes[stage])

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
        blocking_s, sent = price.blocking_s.get(op, 0.0), price.blocking_bytes.get(op, 0.0)
        if blocking_s or sent:
            end = lowering.graph.add(blocking_s, after=end)
            lowering.graph.records.append(Record(self.rank, "collective", "collective", label, end, end, sent))
            lowering.tail[self.rank] = end
        return begin, end

    def _bucket_parts(self, action: Action, seconds: float, gathers: bool, leaves: bool) -> tuple[int, int]:
        """Gather a bucket's weights ahead, run its part of the pass, send its gradients away; backwards in reverse order."""
        plan, price = self.lowering.plan, self._price(action.stage)
        forward = action.op is Op.F
        order = list(range(len(price.buckets))) if forward else list(reversed(range(len(price.buckets))))
        total = sum(bucket.parameter_bytes for bucket in price.buckets) or 1.0
        microbatch = action.microbatch if plan.zero_stage == 3 else None
        gathered: dict[int, CollectiveKey] = {}
        parts: list[int] = []
        encode_s = price.action_s.get(Op.ENCODE_GRAD, 0.0)
        for turn, index in enumerate(order):
            bucket = price.buckets[index]
            share = bucket.parameter_bytes / total
            # Weights of the next bucket are asked for before this one's gradients leave.
            for ahead in order[turn : turn + PREFETCHED_BUCKETS]:
                size = price.buckets[ahead].parameter_bytes
                if gathers and size and ahead not in gathered:
                    gathered[ahead] = self._join("weights", action, microbatch, ahead, size / total)
            part = self._append(str(action), action, seconds * (bucket.forward_share if forward else bucket.backward_share))
            parts.append(part)
            if index in gathered:
                self.lowering.awaited_collectives.append((part, gathered[index]))
            if leaves and bucket.parameter_bytes:
                if plan.zero_stage < 3:
                    packing = Action(action.stage, Op.ENCODE_GRAD)
                    self._append(str(packing), packing, encode_s * share)
                left = self._join(GRADIENTS, action, microbatch, index, share)
                if plan.zero_stage == 3 and self.lowering.cluster.backend.rendezvous:
                    self._wait_for(left)
        return parts[0], self.lowering.tail[self.rank]

    def _wait_for(self, key: CollectiveKey) -> None:
        """Where there are no streams (gloo) FSDP2 goes on when the sum is there."""
        lowering = self.lowering
        lowering.tail[self.rank] = lowering.graph.add(0.0, after=lowering.tail[self.rank])
        lowering.awaited_collectives.append((lowering.tail[self.rank], key))

    # Collectives

    def _issue(self, action: Action) -> None:
        """An exchange of the whole stage, unless its buckets have left already; or of weights shared with other stages."""
        if action.op is Op.REDUCE_SHARED:
            self._join_shared(action)
            return
        if action.op is Op.REDUCE_NORM:
            self._join_norm(action)
            return
        if action.op is not Op.REDUCE_GRAD:
            self._join("weights", action, None, 0, 1.0)
        elif not self._split:
            buckets = self._price(action.stage).buckets
            total = sum(bucket.parameter_bytes for bucket in buckets)
            shares = {index: bucket.parameter_bytes / total for index, bucket in enumerate(buckets) if bucket.parameter_bytes}
            for index, share in (shares or {0: 1.0}).items():
                self._join(GRADIENTS, action, None, index, share)

    def _join(self, what: str, action: Action, microbatch: int | None, bucket: int, share: float) -> CollectiveKey:
        lowering = self.lowering
        gradients = what == GRADIENTS
        exchange = (lowering.pricing.gradients if gradients else lowering.pricing.weights)[action.stage]
        # A microbatch gathers weights for its forward and again for its backward pass.
        name = what if gradients or microbatch is None else f"{what} {action.op}"
        key = (action.stage, name, -1 if microbatch is None else microbatch, bucket)
        named = Action(action.stage, Op.REDUCE_GRAD if gradients else Op.UNSHARD)
        members = lowering.plan.placement[action.stage][: 1 if lowering.folded else None]
        # A second round waits until DECODE_GRAD.
        rounds = 1 if action.stage in self.decoded else exchange.rounds
        self._enter(key, Collective(members, exchange, share, rounds), named)
        return key

    def _join_shared(self, action: Action) -> None:
        """Of a folded program the slowest replica's exchange."""
        lowering, number = self.lowering, action.microbatch
        assert number is not None
        by_replica, replica = lowering.pricing.shared[number], 0 if lowering.plan.free_replicas else self.replica
        exchange = max(by_replica, key=lambda one: one.idle_s) if lowering.folded else by_replica[replica]
        collective = Collective(lowering.plan.sharing_ranks(number, replica), exchange, 1.0, exchange.rounds)
        self._enter((number, SHARED, -1, replica), collective, action)

    def _join_norm(self, action: Action) -> None:
        """Of a folded program the slowest replica's."""
        lowering, plan = self.lowering, self.lowering.plan
        exchanges = lowering.pricing.norm
        exchange = max(exchanges, key=lambda one: one.idle_s) if lowering.folded else lowering.pricing.norm_of(self.replica)
        members = plan.pipeline(0) if lowering.folded else plan.norm_ranks(self.replica)
        place = self.replica if len(exchanges) > 1 else 0
        collective = Collective(members, exchange, 1.0, exchange.rounds)
        self._enter((0, NORM, -1, place), collective, action)

    def _enter(self, key: CollectiveKey, collective: Collective, action: Action) -> None:
        joined = self.lowering.collectives.setdefault(key, collective)
        alone = collective.exchange.algorithm not in MESSAGES
        self._issue_messages(1 if alone else 2 * (len(collective.members) - 1))
        joined.joined_after[self.rank], joined.actions[self.rank] = self.lowering.tail[self.rank], action
        self.lowering.issued[self.rank].append(key)
