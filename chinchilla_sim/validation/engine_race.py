"""What a race of two engines on one plan gave: seconds of their steps in turns, and how they compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

OURS, TORCH = "chinchilla", "torch"


@dataclass(frozen=True)
class EngineRace:
    """Seconds of all steps that count, by engine, round for round."""

    step_s: Mapping[str, tuple[tuple[float, ...], ...]]

    def median_s(self, engine: str) -> float:
        """Median step of an engine."""
        return median(seconds for round_s in self.step_s[engine] for seconds in round_s)

    @property
    def ratio(self) -> float:
        """Torch's median step over ours: above 1 where ours is faster."""
        return self.median_s(TORCH) / self.median_s(OURS)

    @property
    def round_ratios(self) -> tuple[float, ...]:
        """The same, of each round."""
        return tuple(median(theirs) / median(ours) for theirs, ours in zip(self.step_s[TORCH], self.step_s[OURS], strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        medians = {f"{engine}_step_s": self.median_s(engine) for engine in (OURS, TORCH)}
        return medians | {"torch_over_ours": self.ratio, "rounds": list(self.round_ratios)}


def race_of(records: Sequence[Mapping[str, Sequence[Sequence[float]]]]) -> EngineRace:
    """The race from every rank's record: for each engine and round, when each of its steps ended there.

    A step lasts from the last rank's end of the one before to that of its own; the first of a round only marks the start.

    >>> race_of([{"chinchilla": [[0.0, 1.0]], "torch": [[5.0, 7.0]]}, {"chinchilla": [[0.5, 2.0]], "torch": [[5.0, 8.0]]}]).ratio
    2.0
    """
    return EngineRace({engine: tuple(_round_seconds([record[engine] for record in records])) for engine in (OURS, TORCH)})


def _round_seconds(ranks: Sequence[Sequence[Sequence[float]]]) -> Iterator[tuple[float, ...]]:
    for rounds in zip(*ranks, strict=True):
        ends = [max(moments) for moments in zip(*rounds, strict=True)]
        yield tuple(end - start for start, end in pairwise(ends))
