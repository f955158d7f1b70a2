"""Compressed variants of a model beside the model itself: what the planner simulates of each, and what this machine measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class MeasuredVariant:
    """Seconds of a variant's forward passes, one for each round; bytes of its weights in memory, and the job's own metrics of it."""

    forward_s: tuple[float, ...]
    parameter_bytes: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantRow:
    """One variant: amounts, simulated and measured; `measured_ratio` is the median over rounds of the model's seconds over its own."""

    name: str
    forward_flop: float
    parameter_bytes: float
    file_bytes: float
    measured_bytes: float
    simulated_s: float
    measured_s: float
    simulated_ratio: float
    measured_ratio: float
    metrics: dict[str, float]

    @property
    def relative_error(self) -> float:
        """Of the simulated seconds."""
        return self.simulated_s / self.measured_s - 1.0

    @property
    def ratio_error(self) -> float:
        """Of the simulated speed-up over the model as it is."""
        return self.simulated_ratio / self.measured_ratio - 1.0


@dataclass(frozen=True)
class VariantCheck:
    """All variants of a model, itself first."""

    batch_size: int
    rows: tuple[VariantRow, ...]

    @property
    def _distinct(self) -> list[VariantRow]:
        """Rows that compute something else than those before: zeros and further training change no seconds."""
        first: dict[float, VariantRow] = {}
        for row in self.rows:
            first.setdefault(row.simulated_s, row)
        return list(first.values())

    @property
    def median_error(self) -> float:
        """Median size of the error of the simulated seconds, of all rows that compute differently."""
        return median(abs(row.relative_error) for row in self._distinct)

    @property
    def median_ratio_error(self) -> float:
        """Median size of the error of the simulated speed-up, of the same but the first, which is what they are relative to."""
        return median([abs(row.ratio_error) for row in self._distinct[1:]] or [0.0])

    @property
    def pairs_in_order(self) -> tuple[int, int]:
        """Pairs of variants that the simulation has in the measured order, and all pairs."""
        rows = self._distinct
        pairs = [(a, b) for index, a in enumerate(rows) for b in rows[index + 1 :]]
        return sum((a.simulated_s < b.simulated_s) == (a.measured_s < b.measured_s) for a, b in pairs), len(pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        rows = [asdict(row) | {"relative_error": row.relative_error, "ratio_error": row.ratio_error} for row in self.rows]
        right, pairs = self.pairs_in_order
        errors = {"median_error": self.median_error, "median_ratio_error": self.median_ratio_error}
        return {"batch_size": self.batch_size, "variants": rows, **errors, "pairs_in_order": right, "pairs": pairs}


@dataclass(frozen=True)
class SimulatedVariant:
    """What is planned with: flop, bytes in memory and in a file, seconds of a forward pass on one rank."""

    name: str
    forward_flop: float
    parameter_bytes: float
    file_bytes: float
    forward_s: float


def check_variants(batch_size: int, simulated: Sequence[SimulatedVariant], measured: Sequence[MeasuredVariant]) -> VariantCheck:
    """Both sides of every variant; the first is what the others are relative to.

    >>> sides = [SimulatedVariant("as it is", 2.0, 8.0, 8.0, 4.0), SimulatedVariant("half", 1.0, 4.0, 4.0, 2.0)]
    >>> check_variants(1, sides, [MeasuredVariant((4.0, 8.0, 4.0), 8.0), MeasuredVariant((2.0, 4.0, 2.5), 4.0)]).rows[1].measured_ratio
    2.0
    """
    rows = []
    for plan, real in zip(simulated, measured, strict=True):
        ratios = [base / own for base, own in zip(measured[0].forward_s, real.forward_s, strict=True)]
        rows.append(
            VariantRow(
                plan.name, plan.forward_flop, plan.parameter_bytes, plan.file_bytes, real.parameter_bytes, plan.forward_s,
                median(real.forward_s), simulated[0].forward_s / plan.forward_s, median(ratios), dict(real.metrics),
            )
        )  # fmt: skip
    return VariantCheck(batch_size, tuple(rows))
