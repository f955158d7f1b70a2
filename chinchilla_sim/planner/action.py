"""Actions: what a rank does next, in PyTorch's notation.

`2F0` is stage 2, forward, microbatch 0; `1B3` a whole backward pass, `1I3` and `1W3` its two halves (gradients of the
input and of the weights); `1SEND_F0`, `1RECV_B3`, `0UNSHARD`, `0REDUCE_GRAD` are PyTorch's too. Ours are `1ENCODE_F0`,
`1DECODE_B0` (codecs of a boundary, named after the direction they travel), `0ENCODE_GRAD` (gradients into the
bucket), `0DECODE_GRAD`, `0OPTIM`, and `3REDUCE_SHARED0`: gradients of the first set of weights that stage 3 shares with
other stages (its number stands where others have their microbatch). Where gradients are clipped, `0NORM_GRAD` adds up the squares of
a stage's, and `0REDUCE_NORM` those of all stages (the stage is the rank's first one). Behind local steps it is differences of
weights that `0ENCODE_GRAD`, `0REDUCE_GRAD` and `0DECODE_GRAD` exchange, and `0AGREE` moves the weights that all replicas share by them.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from chinchilla_sim.timeline import Category


class Op(StrEnum):
    """What an action does."""

    F = "F"
    B = "B"
    I = "I"  # noqa: E741 - PyTorch's letter
    W = "W"
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
    REDUCE_SHARED = "REDUCE_SHARED"
    NORM_GRAD = "NORM_GRAD"
    REDUCE_NORM = "REDUCE_NORM"
    OPTIM = "OPTIM"
    AGREE = "AGREE"
    UNSHARD = "UNSHARD"


PASSES = frozenset({Op.F, Op.B, Op.I, Op.W})
SENDS = frozenset({Op.SEND_F, Op.SEND_B})
RECEIVES = frozenset({Op.RECV_F, Op.RECV_B})
COLLECTIVES = frozenset({Op.REDUCE_GRAD, Op.REDUCE_SHARED, Op.REDUCE_NORM, Op.UNSHARD})
COMPUTES = frozenset(set(Op) - SENDS - RECEIVES - COLLECTIVES)

CATEGORY: dict[Op, Category] = {
    Op.F: "forward",
    **dict.fromkeys((Op.B, Op.I, Op.W), "backward"),
    **dict.fromkeys((Op.NORM_GRAD, Op.OPTIM, Op.AGREE), "optimizer"),
    **dict.fromkeys(COLLECTIVES, "collective"),
    **dict.fromkeys(SENDS | RECEIVES, "transfer"),
    **dict.fromkeys((Op.ENCODE_F, Op.DECODE_F, Op.ENCODE_B, Op.DECODE_B, Op.ENCODE_GRAD, Op.DECODE_GRAD), "codec"),
}
"""What the span of an action is counted as in a timeline."""

_PATTERN = re.compile(r"(\d+)(" + "|".join(sorted(Op, key=len, reverse=True)) + r")(\d*)")


class Action(NamedTuple):
    """One entry of a program; `microbatch` is None for actions of the whole step, of REDUCE_SHARED the number of the set of weights."""

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


def message_of(action: Action) -> tuple[str, int, int]:
    """What a SEND and its RECV have in common: direction, boundary (index of its lower stage) and microbatch."""
    assert action.microbatch is not None
    forward = action.op in (Op.SEND_F, Op.RECV_F)
    sender_is_lower = action.op in (Op.SEND_F, Op.RECV_B)
    return "F" if forward else "B", action.stage if sender_is_lower else action.stage - 1, action.microbatch
