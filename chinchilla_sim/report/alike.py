"""Ranks that do the same at the same time: one row of a table or figure is enough for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from chinchilla_sim.timeline import Timeline

MANY = 8
"""Up to so many ranks have a row each, alike or not."""
Item = TypeVar("Item")


def alike_ranks(timeline: Timeline) -> list[list[int]]:
    """Ranks whose spans are the same, each group by number; every rank for itself where there are not many."""
    if timeline.rank_count <= MANY:
        return [[rank] for rank in range(timeline.rank_count)]
    step_s = timeline.makespan_s or 1.0
    kinds = {
        rank: tuple(
            (span.stream, span.category, span.label, *(round((at - timeline.start_s) / step_s * 1e7) for at in (span.start_s, span.end_s)))
            for span in timeline.spans_of(rank)
        )
        for rank in timeline.played_ranks
    }
    groups: dict[object, list[int]] = {}
    for rank in range(timeline.rank_count):
        # Ranks without spans tell nothing of themselves.
        kind = kinds[timeline.played_by(rank)]
        groups.setdefault(kind or rank, []).append(rank)
    return list(groups.values())


def picked(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, the first, the last, and evenly in between.

    >>> picked(range(10), 4), picked("ab", 4)
    ([0, 3, 6, 9], ['a', 'b'])
    """
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def group_name(ranks: Sequence[int]) -> str:
    """A group by its first rank and its size.

    >>> group_name([3]), group_name([0, 4])
    ('rank 3', 'rank 0 (2x)')
    """
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"rank {ranks[0]} ({len(ranks)}x)"
