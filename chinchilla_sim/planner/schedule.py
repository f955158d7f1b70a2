"""Schedules: the order of forward and backward passes on each pipeline position, as pure numbers.

1F1B with 3 stages and 4 microbatches (time runs to the right; gaps are the bubble):

    stage 0   F0 F1 F2       B0 F3 B1    B2    B3
    stage 1      F0 F1    B0 F2 B1 F3 B2    B3
    stage 2         F0 B0 F1 B1 F2 B2 F3 B3
"""

from __future__ import annotations

from collections.abc import Iterator

Pass = tuple[str, int]


def gpipe(stage: int, stage_count: int, microbatch_count: int) -> Iterator[Pass]:
    """All forwards, then all backwards (Huang et al. 2019).

    >>> " ".join(f"{op}{m}" for op, m in gpipe(0, 2, 2))
    'F0 F1 B0 B1'
    """
    yield from (("F", microbatch) for microbatch in range(microbatch_count))
    yield from (("B", microbatch) for microbatch in range(microbatch_count))


def one_f_one_b(stage: int, stage_count: int, microbatch_count: int) -> Iterator[Pass]:
    """Warm-up forwards, then one backward for each forward (Narayanan et al. 2019).

    >>> " ".join(f"{op}{m}" for op, m in one_f_one_b(0, 2, 3))
    'F0 F1 B0 F2 B1 B2'
    """
    ahead = min(stage_count - stage, microbatch_count)
    yield from (("F", microbatch) for microbatch in range(ahead))
    for microbatch in range(microbatch_count):
        yield "B", microbatch
        if microbatch + ahead < microbatch_count:
            yield "F", microbatch + ahead


def forward_only(stage: int, stage_count: int, microbatch_count: int) -> Iterator[Pass]:
    """Inference: every microbatch forward."""
    yield from (("F", microbatch) for microbatch in range(microbatch_count))


SCHEDULE_OF = {"gpipe": gpipe, "1f1b": one_f_one_b, "forward": forward_only}
