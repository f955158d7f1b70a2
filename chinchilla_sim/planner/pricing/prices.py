"""Prices: what every action of a plan costs in seconds and bytes, as `pricer.py` fills them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring tasks of a stage whose weights travel together: their share of its passes, and their bytes."""

    forward_share: float
    backward_share: float
    parameter_bytes: float


@dataclass(frozen=True, slots=True)
class StagePrice:
    """One stage of one replica on its rank.

    `action_s` is per microbatch (or step); `accumulation_s` comes on top of every backward pass but the first.
    `blocking_s` are collectives inside a pass, for which it waits (tensor, sequence, context and expert parallelism), and `blocking_bytes`
    what all devices of the rank send in them.
    `between_rounds_s` is the part of DECODE_GRAD that a second collective waits for.
    `held_parts` are there all the time, by what they are; a microbatch adds `saved_bytes` from its F on (inference: while it runs), of
    which `kept_bytes` stay from its I until its W, and `transient_bytes` while its backward pass runs (recompute).

    Where tensors come and go one by one `transients` are by pass, in the first backward pass of a step and in later ones. The first
    makes `gradient_bytes`, which the update frees, and needs `update_bytes` more. `awaited_bytes` are those of a posted receive (F, B),
    `sent_bytes` those of what was sent: ahead they are kept until the gradient returns (inference: to the end of the step), back until
    the step ends. `left_bytes` of inference are kept to the end of the step.
    """

    action_s: dict[Op, float]
    accumulation_s: float
    held_parts: Mapping[str, float]
    saved_bytes: float
    kept_bytes: float = 0.0
    transient_bytes: float = 0.0
    transients: Mapping[Op, tuple[float, float]] = field(default_factory=dict)
    gradient_bytes: float = 0.0
    update_bytes: float = 0.0
    awaited_bytes: tuple[float, float] = (0.0, 0.0)
    sent_bytes: tuple[float, float] = (0.0, 0.0)
    left_bytes: float = 0.0
    blocking_s: dict[Op, float] = field(default_factory=dict)
    blocking_bytes: dict[Op, float] = field(default_factory=dict)
    buckets: tuple[Bucket, ...] = ()
    between_rounds_s: float = 0.0

    @property
    def held_bytes(self) -> float:
        """All that is there all the time."""
        return sum(self.held_parts.values())

    def compute_s(self, op: Op, first: bool = True) -> float:
        """Seconds of a compute action; the `first` backward pass of a step has nothing to add its gradients to."""
        return self.action_s[op] + (self.accumulation_s if op in (Op.B, Op.W) and not first else 0.0)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A collective among the replicas of a stage, or the stages that share weights: `payload_bytes` of each device, in so many `rounds`
    one after the other.

    `orders` are the slots in the order of the ring, one for each device of a rank. `idle_s` is from the measured `table` of
    (bytes, seconds) where there is one, else what the rounds of the `algorithm` take at least.
    """

    kind: str
    payload_bytes: float = 0.0
    idle_s: float = 0.0
    sent_bytes: float = 0.0
    rounds: int = 1
    table: tuple[tuple[float, float], ...] = ()
    algorithm: str = "ring"
    orders: tuple[tuple[int, ...], ...] = ()


NO_EXCHANGE = Exchange("all_reduce")


@dataclass(frozen=True, slots=True)
class Pricing:
    """`stages[s][d]`; `boundary_bytes[s]` and `boundary_gradient_bytes[s]` are payloads of one microbatch behind stage s.

    `gradients[s]` is the exchange of all gradients of stage s, `weights[s]` the all-gather of its sharded weights (ZeRO),
    `shared[n][d]` the sum over the stages of replica d that share the n-th set of weights, `norm[d]` that of squared gradients over its
    ranks (one for all replicas where these hold parts of them). Rank r takes `input_s[r]` to get its part of the batch, and its program
    `message_s[r]` to send or await a message (empty: no time).
    """

    stages: tuple[tuple[StagePrice, ...], ...]
    boundary_bytes: tuple[float, ...]
    boundary_gradient_bytes: tuple[float, ...]
    gradients: tuple[Exchange, ...]
    weights: tuple[Exchange, ...] = ()
    shared: tuple[tuple[Exchange, ...], ...] = ()
    norm: tuple[Exchange, ...] = ()
    input_s: tuple[float, ...] = ()
    message_s: tuple[float, ...] = ()

    def shared_s(self, plan: Plan, stage: int, replica: int) -> float:
        """Idle seconds of all exchanges of weights that a stage shares with others: a rank runs them one behind the other."""
        pairs = zip(plan.shared_stages, self.shared, strict=True)
        return sum(exchanges[0 if plan.free_replicas else replica].idle_s for stages, exchanges in pairs if stage in stages)

    def norm_of(self, replica: int) -> Exchange:
        """The sum of squared gradients that a replica takes part in."""
        return self.norm[replica if len(self.norm) > 1 else 0] if self.norm else NO_EXCHANGE

    def message_bytes(self, direction: str, boundary: int) -> float:
        """Payload of one message over a boundary."""
        return (self.boundary_bytes if direction == "F" else self.boundary_gradient_bytes)[boundary]

    def held_bytes(self, plan: Plan, rank: int) -> float:
        """Bytes that a rank holds all the time."""
        return sum(self.held_parts(plan, rank).values())

    def held_parts(self, plan: Plan, rank: int) -> dict[str, float]:
        """The same by what they are: weights, gradients, optimizer state, buffers."""
        stages, replica = plan.position[rank]
        parts: dict[str, float] = {}
        for stage in stages:
            for name, size in self.stages[stage][replica].held_parts.items():
                parts[name] = parts.get(name, 0.0) + size
        return parts

    def memory_of(self, plan: Plan, rank: int, passes: Sequence[Action]) -> RankMemory:
        """What a rank takes and frees as it plays these passes."""
        stages, replica = plan.position[rank]
        return rank_memory(plan, {stage: self.stages[stage][replica] for stage in stages}, passes)

    def peak_bytes(self, plan: Plan, rank: int, passes: Sequence[Action]) -> float:
        """Most bytes that a rank holds at once while it plays these passes, and updates its weights."""
        memory, held = self.memory_of(plan, rank, passes), self.held_bytes(plan, rank)
        peak = held
        for running, left in memory.changes:
            peak = max(peak, held + running, held + left)
            held += left
        return max(peak, held + memory.update_bytes)


@dataclass(frozen=True, slots=True)
class RankMemory:
    """For every pass the bytes that it adds while it runs, and those that it leaves behind (negative where it frees).

    The first update of a stage needs `update_bytes` more, every stage's frees its `freed_bytes`.
    """

    changes: tuple[tuple[float, float], ...]
    update_bytes: float
    freed_bytes: Mapping[int, float]


def rank_memory(plan: Plan, prices: Mapping[int, StagePrice], passes: Sequence[Action]) -> RankMemory:
    """What a rank with these stages takes and frees.

    Its next receives, `plan.receives_in_flight` of them, are posted ahead of the passes that need what they bring.
    """
    awaited = [size for action in passes if (size := _awaited(prices[action.stage], action.op))]
    posted, used = plan.receives_in_flight, 0
    changes: list[tuple[float, float]] = []
    freed: dict[int, float] = dict.fromkeys(prices, 0.0)
    begun = set[int]()
    ahead = sum(awaited[:posted])
    for action in passes:
        price, op = prices[action.stage], action.op
        first = op in (Op.B, Op.W) and action.stage not in begun
        running, left = memory_change(price, op, first, plan.training)
        if first:
            begun.add(action.stage)
            freed[action.stage] += price.gradient_bytes
        if size := _awaited(price, op):
            ahead -= size
            left += sum(awaited[used + posted : used + posted + 1])
            used += 1
        if op is Op.F:
            left += price.sent_bytes[0]
        elif op is not Op.W:
            # What was sent ahead has arrived where this gradient was made.
            running, left = running - price.sent_bytes[0], left - price.sent_bytes[0] + price.sent_bytes[1]
            freed[action.stage] += price.sent_bytes[1]
        changes.append((ahead + running, ahead + left))
        ahead = 0.0
    if not plan.training and changes:
        # All is freed with the last pass.
        running, left = changes[-1]
        level = sum(one for _, one in changes)
        changes[-1] = (max(running, left), left - level)
    return RankMemory(tuple(changes), max((price.update_bytes for price in prices.values()), default=0.0) if plan.training else 0.0, freed)


def _awaited(price: StagePrice, op: Op) -> float:
    return 0.0 if op is Op.W else price.awaited_bytes[op is not Op.F]


def memory_change(price: StagePrice, op: Op, first: bool = False, training: bool = True) -> tuple[float, float]:
    """Bytes that a pass adds while it runs, and those that it leaves behind (negative where it frees), without messages.

    A microbatch whose activations are recomputed holds all of them from its backward pass (or I) on.
    """
    if op is Op.F:
        return price.saved_bytes + price.transients.get(op, (0.0, 0.0))[0], price.saved_bytes if training else price.left_bytes
    default = 0.0 if op is Op.W else price.transient_bytes
    running = price.transients.get(op, (default, default))[not first]
    grown = price.gradient_bytes if first else 0.0
    if op is Op.B:
        return running, grown - price.saved_bytes
    if op is Op.I:
        return running, price.kept_bytes - price.saved_bytes
    return (running, grown - price.kept_bytes) if op is Op.W else (0.0, 0.0)
