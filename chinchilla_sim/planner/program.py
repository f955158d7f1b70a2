"""Program: a plan lowered to an ordered list of actions per rank, in PyTorch's notation (see action.py).

Both interpreters read a program alike:

- compute actions (F, B, I, W, codecs, OPTIM) run in list order on the rank's main thread;
- RECV posts a receive where it stands and returns; the first action that needs the message waits for it;
- SEND, REDUCE_GRAD, REDUCE_SHARED, REDUCE_NORM and UNSHARD are issued where they stand and return; DECODE_GRAD, NORM_GRAD or OPTIM
  waits for the gradients, OPTIM for their norm.

Stages on one rank hand over without a message. The gradients of a stage are exchanged as soon as its last
backward pass has run, while the others go on; with ZeRO 3 they are exchanged within every backward pass instead.

Weights that several stages share are summed over these stages once a step, replica by replica, when the replicas of each stage have
summed theirs (as Megatron does). Every rank issues its collectives in one order: gradients of its stages, sets of shared weights by
number, the norm of all gradients where they are clipped, gathered weights. So no two ranks wait for each other. Stages that share
nothing are updated meanwhile.

With H local steps there are two lists: that of a step which exchanges nothing, and that of every H-th, in which each replica first
updates its own weights and then exchanges how far they have moved since the last exchange (local SGD, Stich 2019; with an outer
optimizer DiLoCo, Douillard et al. 2023):

    0F0 0B0 0OPTIM                                                                      H - 1 times
    0F0 0B0 0OPTIM 0ENCODE_GRAD 0REDUCE_GRAD 0DECODE_GRAD 0AGREE                        once

With gradients one step late a step first sends what the step before has packed, and updates its weights by it at the end, before it
packs its own (in the first step of a run there is nothing to send or apply). One list is then the whole steady state:

    0REDUCE_GRAD 0F0 0B0 0DECODE_GRAD 0OPTIM 0ENCODE_GRAD
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from chinchilla_sim.planner.action import PASSES, RECEIVES, Action, Op, parse_action
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.schedules.registry import SCHEDULES, Rows


@dataclass(frozen=True, slots=True)
class Program:
    """`actions[rank]` in the order in which the rank issues them; of a `folded` program only the first replica has any.

    `local` is the program of the steps without exchange, where only every `plan.local_steps`-th step exchanges.
    """

    plan: Plan
    actions: tuple[tuple[Action, ...], ...]
    folded: bool = False
    local: Program | None = None

    @property
    def stand_ins(self) -> tuple[int, ...]:
        """Of a folded program the rank of the first replica that is played for each rank; else nothing."""
        if not self.folded:
            return ()
        return tuple(self.plan.placement[stages[0]][0] for stages, _ in self.plan.position.values())

    def to_csv(self) -> str:
        """One row per rank."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[str(action) for action in row] for row in self.actions])
        return text.getvalue()


def needs(action: Action) -> tuple[Op, ...]:
    """Operations of the same stage and microbatch whose completion an action waits for, if the program has them."""
    return _NEEDS.get(action.op, ())


_NEEDS: dict[Op, tuple[Op, ...]] = {
    Op.F: (Op.RECV_F,),
    Op.B: (Op.RECV_B,),
    Op.I: (Op.RECV_B,),
    Op.DECODE_F: (Op.RECV_F,),
    Op.DECODE_B: (Op.RECV_B,),
    Op.DECODE_GRAD: (Op.REDUCE_GRAD,),
    Op.NORM_GRAD: (Op.REDUCE_GRAD, Op.REDUCE_SHARED),
    Op.OPTIM: (Op.REDUCE_GRAD, Op.REDUCE_SHARED, Op.REDUCE_NORM),
    Op.AGREE: (Op.REDUCE_GRAD,),
}


def read_order(text: str) -> tuple[str, ...]:
    """Passes per pipeline position from CSV in PyTorch's notation, one row each; raises ValueError.

    Idle slots are dropped, composite actions taken apart, and whatever is no pass (sends, receives, sharding) is
    left to `lower`, which issues them as the interpreters do.

    >>> read_order("0F0,,0B0\\n,(1F0;1B0)OVERLAP_F_B\\n")
    ('0F0 0B0', '1F0 1B0')
    """
    rows = []
    for row in csv.reader(io.StringIO(text)):
        actions = [action for cell in row for action in _read_cell(cell.strip())]
        if actions:
            rows.append(" ".join(str(action) for action in actions if action.op in PASSES))
    return tuple(rows)


def _read_cell(cell: str) -> Iterator[Action]:
    if cell.startswith("(") and cell.endswith(")OVERLAP_F_B"):
        for part in cell[1 : cell.rindex(")")].split(";"):
            yield parse_action(part.strip())
    elif cell and not cell.endswith("RESHARD"):
        yield parse_action(cell)


def passes_of(plan: Plan, replica: int) -> list[list[Action]]:
    """F, B, I and W of every rank of a replica (`Plan.pipeline`), in order."""
    if plan.order:
        return [[parse_action(text) for text in row.split()] for row in plan.order]
    row = SCHEDULES[plan.schedule].row
    assert row, f"{plan.schedule} needs an order"
    if plan.free_replicas:
        return [_dealt_passes(plan, row, stage, place) for stage, ranks in enumerate(plan.placement) for place in range(len(ranks))]
    count = plan.microbatches_of(replica)
    return [
        list(row(position, plan.pipeline_parallel_degree, plan.stages_per_rank, count)) for position in range(plan.pipeline_parallel_degree)
    ]


def _dealt_passes(plan: Plan, row: Rows, stage: int, place: int) -> list[Action]:
    """Passes of the rank at a place in a stage's row: its microbatches are place, place + replicas, place + 2 replicas, ...

    A rank warms up as if `depth` ranks stood between its stage and the last one, so that 1F1B has
    ceil(ranks from this stage on / ranks of this stage) microbatches under way (PipeDream, Narayanan et al. 2019).
    """
    replicas, depth = len(plan.placement[stage]), under_way([len(ranks) for ranks in plan.placement], stage)
    passes = row(stage, stage + depth, 1, plan.share_of(stage, place))
    return [Action(stage, op, place + replicas * (microbatch or 0)) for _, op, microbatch in passes]


def under_way(replica_counts: Sequence[int], stage: int) -> int:
    """Microbatches that each rank of a stage needs under way to keep itself and all stages behind it busy.

    >>> [under_way([1, 4, 1], stage) for stage in range(3)]
    [6, 2, 1]
    """
    return -(-sum(replica_counts[stage:]) // replica_counts[stage])


FOLDED_DEVICES = 128
"""Plans on more devices are simulated with their first replica standing for all, where all are alike."""


def folds(plan: Plan, pricing: Pricing) -> bool:
    """Whether the first replica may stand for all: many devices, and every replica costs the same."""
    alike = all(price is row[0] or price == row[0] for row in pricing.stages for price in row)
    return len(plan.slots) > FOLDED_DEVICES and plan.data_parallel_degree > 1 and alike and not plan.replica_microbatch_counts


def lower(plan: Plan, folded: bool = False) -> Program:
    """The program of a plan; `folded` leaves all replicas but the first without actions."""
    if plan.local_steps == 1:
        return Program(plan, _rows_of(plan, folded, exchanging=True), folded)
    local = Program(plan, _rows_of(plan, folded, exchanging=False), folded)
    return Program(plan, _rows_of(plan, folded, exchanging=True), folded, local)


def _rows_of(plan: Plan, folded: bool, exchanging: bool) -> tuple[tuple[Action, ...], ...]:
    """The actions of a step that exchanges, or of one that leaves that out."""
    rows: list[tuple[Action, ...]] = [()] * plan.rank_count
    for replica in range(1 if folded else plan.data_parallel_degree):
        for rank, passes in zip(plan.pipeline(replica), passes_of(plan, replica), strict=True):
            work = _with_messages(plan, passes)
            if plan.asynchronous:
                work = _with_own_updates(plan, work, exchanging)
            elif plan.training:
                work = _with_exchanges(plan, work)
            rows[rank] = _post_early(work, plan.receives_in_flight)
    return tuple(rows)


def _with_messages(plan: Plan, passes: Sequence[Action]) -> list[Action]:
    """What crosses to other ranks, around the passes that need and make it."""
    last = plan.stage_count - 1
    crossing = [plan.crosses(boundary) for boundary in range(last)]
    packed = [codec != "none" for codec in plan.activation_codecs]
    work: list[Action] = []
    for action in passes:
        stage, op, microbatch = action
        if op is Op.W:
            work.append(action)
            continue
        ahead = op is Op.F
        incoming, outgoing = (stage - 1, stage) if ahead else (stage, stage - 1)
        if 0 <= incoming < last and crossing[incoming]:
            work.append(Action(stage, Op.RECV_F if ahead else Op.RECV_B, microbatch))
            if packed[incoming]:
                work.append(Action(stage, Op.DECODE_F if ahead else Op.DECODE_B, microbatch))
        work.append(action)
        if 0 <= outgoing < last and crossing[outgoing]:
            if packed[outgoing]:
                work.append(Action(stage, Op.ENCODE_F if ahead else Op.ENCODE_B, microbatch))
            work.append(Action(stage, Op.SEND_F if ahead else Op.SEND_B, microbatch))
    return work


def _with_exchanges(plan: Plan, work: Sequence[Action]) -> list[Action]:
    """Every stage's gradients leave when its passes are over; updates come at the end, in the same order."""
    # Behind what the last pass sends: the rank below waits for that.
    last = {action.stage: index for index, action in enumerate(work)}
    stages = sorted(last, key=lambda stage: last[stage])
    exchanges = {stage: _gradient_actions(plan, stage) for stage in stages}
    # Replicas of unequal length could exchange stages in different orders: all of them wait for the end.
    at_once = not plan.replica_microbatch_counts
    ordered: list[Action] = []
    for index, action in enumerate(work):
        ordered.append(action)
        if at_once and last.get(action.stage) == index:
            ordered += exchanges[action.stage]
    if not at_once:
        ordered += [action for stage in sorted(stages, reverse=True) for action in exchanges[stage]]
    shared = _shared_actions(plan, stages)
    sharing = {
        stage for stage in stages for action in shared if action.microbatch is not None and stage in plan.shared_stages[action.microbatch]
    }
    decodes = {
        stage: [Action(stage, Op.DECODE_GRAD)] * bool(exchanges[stage] and plan.gradient_codecs[stage] != "none") for stage in stages
    }
    # Nothing is updated before the norm of all gradients is known.
    whole = {*stages} if plan.clips_gradients else sharing
    for stage in stages:
        ordered += decodes[stage] if stage in whole else []
    ordered += shared
    ordered += _norm_actions(plan, stages)
    for stage in sorted(stages, key=lambda stage: stage in sharing):
        ordered += decodes[stage] if stage not in whole else []
        ordered.append(Action(stage, Op.OPTIM))
        if plan.zero_stage in (1, 2) and plan.exchange_degree_of(stage) > 1:
            ordered.append(Action(stage, Op.UNSHARD))
    return ordered


def _with_own_updates(plan: Plan, work: Sequence[Action], exchanging: bool) -> list[Action]:
    """Updates that wait for no exchange of this step's gradients: late ones, or local ones, and an exchange of weights where it is time."""
    last = {action.stage: index for index, action in enumerate(work)}
    stages = sorted(last, key=lambda stage: last[stage])
    if plan.replica_microbatch_counts:  # as in `_with_exchanges`
        stages.sort(reverse=True)
    decodes = [Action(stage, Op.DECODE_GRAD) for stage in stages if plan.gradient_codecs[stage] != "none"]
    whole = [*_shared_actions(plan, stages), *_norm_actions(plan, stages)]
    updates, packs, sends, agreements = (
        [Action(stage, op) for stage in stages] for op in (Op.OPTIM, Op.ENCODE_GRAD, Op.REDUCE_GRAD, Op.AGREE)
    )
    if plan.gradient_delay:
        return [*sends, *work, *decodes, *whole, *updates, *packs]
    if not exchanging:
        return [*work, *whole, *updates]
    leaving = [action for row in zip(updates, packs, sends, strict=True) for action in row]
    return [*work, *whole, *leaving, *decodes, *agreements]


def _shared_actions(plan: Plan, stages: Collection[int]) -> list[Action]:
    """Exchanges of weights that stages of this rank share with those of others, each named after its first stage here."""
    actions = []
    for number, group in enumerate(plan.shared_stages):
        here = [stage for stage in group if stage in stages]
        if here and len(plan.sharing_ranks(number)) > 1:
            actions.append(Action(here[0], Op.REDUCE_SHARED, number))
    return actions


def _norm_actions(plan: Plan, stages: Sequence[int]) -> list[Action]:
    """The norm of all gradients, where they are clipped."""
    if not plan.clips_gradients:
        return []
    actions = [Action(stage, Op.NORM_GRAD) for stage in stages]
    return [*actions, Action(min(stages), Op.REDUCE_NORM)] if len(plan.norm_ranks()) * plan.group_width > 1 else actions


def _gradient_actions(plan: Plan, stage: int) -> list[Action]:
    if plan.exchange_degree_of(stage) == 1 or plan.zero_stage == 3:
        return []
    return [Action(stage, Op.ENCODE_GRAD), Action(stage, Op.REDUCE_GRAD)]


def _post_early(work: Sequence[Action], in_flight: int) -> tuple[Action, ...]:
    """Move every receive ahead, so that `in_flight` are outstanding: data leaves only after "ready" has arrived."""
    receives = [action for action in work if action.op in RECEIVES]
    ordered, posted, used = list(receives[:in_flight]), in_flight, False
    for action in work:
        if action.op in RECEIVES:
            used = True
            continue
        ordered.append(action)
        if used:
            ordered += receives[posted : posted + 1]
            posted, used = posted + 1, False
    return tuple(ordered)
