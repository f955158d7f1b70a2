"""Schedules that warm up with forwards, then run one backward for each forward, then drain.

All of them are one rule with other numbers: the order of forwards, the order of backwards, how many forwards come
first, and how far the weight gradients stay behind. 1F1B with 3 ranks and 4 microbatches (time runs to the right):

    rank 0   F0 F1 F2       B0 F3 B1    B2    B3
    rank 1      F0 F1    B0 F2 B1 F3 B2    B3
    rank 2         F0 B0 F1 B1 F2 B2 F3 B3

With several stages per rank, stage s lives on rank s % ranks. Microbatches travel in rounds of `round_size`:
a rank runs a round through one of its stages, then through the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chinchilla_sim.planner.action import Action, Op


def gpipe(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """All forwards, then all backwards (Huang et al. 2019).

    >>> " ".join(map(str, gpipe(0, 2, 1, 2)))
    '0F0 0F1 0B0 0B1'
    """
    return _alternate(_passes(Op.F, [position], microbatches), _passes(Op.B, [position], microbatches), microbatches)


def one_f_one_b(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """Warm-up forwards, then one backward for each forward (Narayanan et al. 2019).

    >>> " ".join(map(str, one_f_one_b(0, 2, 1, 3)))
    '0F0 0F1 0B0 0F2 0B1 0B2'
    """
    return _alternate(_passes(Op.F, [position], microbatches), _passes(Op.B, [position], microbatches), ranks - 1 - position)


def forward_only(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """Inference: every microbatch forward."""
    return iter(_passes(Op.F, [position], microbatches))


def looped_bfs(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """All microbatches through the first stage of a rank, then the next; back in reverse (Lamy-Poirier 2023).

    >>> " ".join(map(str, looped_bfs(0, 2, 2, 2)))
    '0F0 0F1 2F0 2F1 2B1 2B0 0B1 0B0'
    """
    local = [position + ranks * turn for turn in range(stages_per_rank)]
    forwards = [Action(stage, Op.F, microbatch) for stage in local for microbatch in range(microbatches)]
    return _alternate(forwards, [Action(stage, Op.B, microbatch) for stage, _, microbatch in reversed(forwards)], len(forwards))


def interleaved_1f1b(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """1F1B in rounds over several stages per rank (Narayanan et al. 2021), microbatches in any number of equal rounds.

    >>> " ".join(map(str, interleaved_1f1b(1, 2, 2, 2)))
    '1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1'
    """
    size = round_size(ranks, microbatches)
    local = [position + ranks * turn for turn in range(stages_per_rank)]
    warm_up = (stages_per_rank - 1) * size + 2 * (ranks - 1 - position)
    return _alternate(_rounds(Op.F, local, size, microbatches), _rounds(Op.B, local[::-1], size, microbatches), warm_up)


def interleaved_zero_bubble(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """Half the warm-up of interleaved 1F1B; weight gradients stay `position` behind (Qi et al. 2023). One stage: ZB-H1.

    >>> " ".join(map(str, interleaved_zero_bubble(1, 2, 1, 3)))
    '1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2'
    """
    size = round_size(ranks, microbatches)
    local = [position + ranks * turn for turn in range(stages_per_rank)]
    warm_up = (stages_per_rank - 1) * size + ranks - 1 - position
    backwards = _rounds(Op.I, local[::-1], size, microbatches)
    return _alternate(_rounds(Op.F, local, size, microbatches), backwards, warm_up, position)


def zb_h2(position: int, ranks: int, stages_per_rank: int, microbatches: int) -> Iterator[Action]:
    """No bubble where F, I and W take equally long: twice the warm-up of ZB-H1, weight gradients twice as late (Qi et al. 2023).

    >>> " ".join(map(str, zb_h2(0, 2, 1, 4)))
    '0F0 0F1 0F2 0I0 0W0 0F3 0I1 0W1 0I2 0W2 0I3 0W3'
    """
    forwards, backwards = (_passes(op, [position], microbatches) for op in (Op.F, Op.I))
    return _alternate(forwards, backwards, 2 * (ranks - 1 - position), 2 * position)


def round_size(ranks: int, microbatches: int) -> int:
    """Microbatches that a rank runs through one stage before it turns to its next.

    >>> [round_size(4, count) for count in (3, 4, 8, 10)]
    [3, 4, 4, 5]
    """
    return microbatches // max(1, microbatches // ranks)


def _passes(op: Op, stages: Sequence[int], microbatches: int) -> list[Action]:
    return _rounds(op, stages, microbatches, microbatches)


def _rounds(op: Op, stages: Sequence[int], size: int, microbatches: int) -> list[Action]:
    return [
        Action(stage, op, microbatch)
        for first in range(0, microbatches, size)
        for stage in stages
        for microbatch in range(first, min(first + size, microbatches))
    ]


def _alternate(forwards: Sequence[Action], backwards: Sequence[Action], warm_up: int, behind: int | None = None) -> Iterator[Action]:
    """Warm-up forwards, pairs of forward and backward, backwards; each W comes `behind` backwards after its I (None: no W)."""
    yield from forwards[:warm_up]
    for index, backward in enumerate(backwards):
        yield from forwards[warm_up + index : warm_up + index + 1]
        yield backward
        if behind is not None and index >= behind:
            yield _weights(backwards[index - behind])
    if behind is not None:
        yield from (_weights(backward) for backward in backwards[max(0, len(backwards) - behind) :])


def _weights(backward: Action) -> Action:
    return Action(backward.stage, Op.W, backward.microbatch)
