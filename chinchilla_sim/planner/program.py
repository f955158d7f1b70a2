"""Program: a plan lowered to an ordered list of actions per rank, in PyTorch's notation.

`2F0` is stage 2, forward, microbatch 0; `1SEND_F0`, `1RECV_B3`, `0REDUCE_GRAD` are PyTorch's too. Ours are
`1ENCODE_F0`, `1DECODE_B0` (codecs of a boundary, named after the direction they travel), `0ENCODE_GRAD` (gradients
into the bucket), `0DECODE_GRAD` and `0OPTIM`. Both interpreters read a program alike:

- compute actions (F, B, codecs, OPTIM) run in list order on the rank's main thread;
- RECV posts a receive where it stands and returns; the first action that needs the message waits for it;
- SEND and REDUCE_GRAD are issued where they stand and return; DECODE_GRAD or OPTIM waits for the collective.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from enum import StrEnum

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.schedule import SCHEDULE_OF
from chinchilla_sim.timeline import Category


class Op(StrEnum):
    """What an action does."""

    F = "F"
    B = "B"
    SEND_F = "SEND_F"
    RECV_F = "RECV_F"
    SEND_B = "SEND_B"
    RECV_B = "RECV_B"
    ENCODE_F = "ENCODE_F"
    DECODE_F = "DECODE_F"
    ENCODE_B = "ENCODE_B"
    DECODE_B = "DECODE_B"
    ENCODE_GRAD = "ENCODE_GRAD"
    REDUCE_GRAD = "REDUCE_GRAD"
    DECODE_GRAD = "DECODE_GRAD"
    OPTIM = "OPTIM"


SENDS = frozenset({Op.SEND_F, Op.SEND_B})
RECEIVES = frozenset({Op.RECV_F, Op.RECV_B})
COMPUTES = frozenset(set(Op) - SENDS - RECEIVES - {Op.REDUCE_GRAD})

CATEGORY: dict[Op, Category] = {
    Op.F: "forward",
    Op.B: "backward",
    Op.OPTIM: "optimizer",
    Op.REDUCE_GRAD: "collective",
    **dict.fromkeys((Op.SEND_F, Op.SEND_B, Op.RECV_F, Op.RECV_B), "transfer"),
    **dict.fromkeys((Op.ENCODE_F, Op.DECODE_F, Op.ENCODE_B, Op.DECODE_B, Op.ENCODE_GRAD, Op.DECODE_GRAD), "codec"),
}
"""What the span of an action is counted as in a timeline."""

_PATTERN = re.compile(r"(\d+)(" + "|".join(sorted(Op, key=len, reverse=True)) + r")(\d*)")


@dataclass(frozen=True, slots=True)
class Action:
    """One entry of a program; `microbatch` is None for actions of the whole step."""

    stage: int
    op: Op
    microbatch: int | None = None

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{'' if self.microbatch is None else self.microbatch}"


def parse_action(text: str) -> Action:
    """Inverse of `str(action)`; raises ValueError.

    >>> parse_action("2RECV_F10")
    Action(stage=2, op=<Op.RECV_F: 'RECV_F'>, microbatch=10)
    """
    match = _PATTERN.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not an action; write for example 0F1 or 1SEND_F0")
    stage, op, microbatch = match.groups()
    return Action(int(stage), Op(op), int(microbatch) if microbatch else None)


@dataclass(frozen=True, slots=True)
class Program:
    """`actions[rank]` in the order in which the rank issues them."""

    plan: Plan
    actions: tuple[tuple[Action, ...], ...]

    def to_csv(self) -> str:
        """One row per rank."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[str(action) for action in row] for row in self.actions])
        return text.getvalue()


def message_of(action: Action) -> tuple[str, int, int]:
    """What a SEND and its RECV have in common: direction, boundary (index of its lower stage) and microbatch."""
    assert action.microbatch is not None
    forward = action.op in (Op.SEND_F, Op.RECV_F)
    sender_is_lower = action.op in (Op.SEND_F, Op.RECV_B)
    return "F" if forward else "B", action.stage if sender_is_lower else action.stage - 1, action.microbatch


def needs(action: Action) -> tuple[Op, ...]:
    """Operations of the same stage and microbatch whose completion an action waits for, if the program has them."""
    return {
        Op.F: (Op.RECV_F,),
        Op.B: (Op.RECV_B,),
        Op.DECODE_F: (Op.RECV_F,),
        Op.DECODE_B: (Op.RECV_B,),
        Op.DECODE_GRAD: (Op.REDUCE_GRAD,),
        Op.OPTIM: (Op.REDUCE_GRAD,),
    }.get(action.op, ())


def lower(plan: Plan) -> Program:
    """The program of a plan."""
    rows = [_lower_rank(plan, *plan.position[rank]) for rank in range(plan.rank_count)]
    return Program(plan, tuple(rows))


def _lower_rank(plan: Plan, stage: int, replica: int) -> tuple[Action, ...]:
    last = plan.pipeline_parallel_degree - 1
    work: list[Action] = []
    for name, microbatch in SCHEDULE_OF[plan.schedule](stage, plan.pipeline_parallel_degree, plan.microbatch_count):
        ahead = name == "F"
        incoming, outgoing = (stage - 1, stage) if ahead else (stage, stage - 1)
        if 0 <= incoming < last:
            work.append(Action(stage, Op.RECV_F if ahead else Op.RECV_B, microbatch))
            if plan.activation_codecs[incoming] != "none":
                work.append(Action(stage, Op.DECODE_F if ahead else Op.DECODE_B, microbatch))
        work.append(Action(stage, Op(name), microbatch))
        if 0 <= outgoing < last:
            if plan.activation_codecs[outgoing] != "none":
                work.append(Action(stage, Op.ENCODE_F if ahead else Op.ENCODE_B, microbatch))
            work.append(Action(stage, Op.SEND_F if ahead else Op.SEND_B, microbatch))
    if plan.training:
        work += _gradient_actions(plan, stage)
        work.append(Action(stage, Op.OPTIM))
    return _post_early(work, plan.receives_in_flight)


def _gradient_actions(plan: Plan, stage: int) -> list[Action]:
    if plan.data_parallel_degree == 1:
        return []
    ops = [Op.ENCODE_GRAD, Op.REDUCE_GRAD] + ([Op.DECODE_GRAD] if plan.gradient_codecs[stage] != "none" else [])
    return [Action(stage, op) for op in ops]


def _post_early(work: list[Action], in_flight: int) -> tuple[Action, ...]:
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
