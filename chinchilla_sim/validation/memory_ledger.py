"""How far simulated peak memory of published rows is off, and which plans are rightly said to fit: per source and over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_sim.validation.ledger import PredictedRow

GB = 1e9


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """Errors of one source (or of all, each weighted equally), and its plans by what became of them.

    `mean`, `bias` (median) and `mean_gb` are of the `scored` rows that state a peak; without any they are None. `missed` plans ran
    out of memory though they were said to fit, `false_alarms` ran though they were not.
    """

    source: str
    scored: int
    mean: float | None
    bias: float | None
    mean_gb: float | None
    fitting: int
    missed: int
    false_alarms: int
    refused: int


def memory_ledger(predicted: Sequence[PredictedRow]) -> list[MemoryLine]:
    """A line per source whose rows state a peak or ran out of memory, or are said to; and one over all sources."""
    sources: dict[str, list[PredictedRow]] = {}
    for one in predicted:
        if one.prediction and one.row.get("quality", "A") in ("A", "B"):
            sources.setdefault(one.row["source_id"], []).append(one)
    lines = [_line(source, rows) for source, rows in sorted(sources.items())]
    return [*(line for line in lines if line.scored or line.missed or line.false_alarms or line.refused), _overall(lines)] if lines else []


def _line(source: str, rows: Sequence[PredictedRow]) -> MemoryLine:
    pairs = np.array([pair for pair in map(_peaks_gb, rows) if pair], dtype=float).reshape(-1, 2)
    errors = pairs[:, 0] / pairs[:, 1] - 1.0
    outcomes = [(bool(one.prediction and one.prediction.fits), one.row.get("status", "ok") in ("ok", "")) for one in rows]
    return MemoryLine(
        source, len(errors), *_figures(errors), float(np.abs(pairs[:, 0] - pairs[:, 1]).mean()) if len(errors) else None,
        *(outcomes.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))),
    )  # fmt: skip


def _peaks_gb(one: PredictedRow) -> tuple[float, float] | None:
    """Simulated and measured, where a row that ended well states its peak."""
    text = one.row.get("peak_mem_gb", "")
    if not text or not one.prediction or one.row.get("status", "ok") not in ("ok", ""):
        return None
    return one.prediction.peak_bytes / GB, float(text)


def _figures(errors: np.ndarray) -> tuple[float | None, float | None]:
    return (float(np.abs(errors).mean()), float(np.median(errors))) if len(errors) else (None, None)


def _overall(lines: Sequence[MemoryLine]) -> MemoryLine:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def total(name: str) -> int:
        return sum(getattr(line, name) for line in lines)

    return MemoryLine(
        "all sources", total("scored"), mean([line.mean for line in lines]), mean([line.bias for line in lines]),
        mean([line.mean_gb for line in lines]), *map(total, ("fitting", "missed", "false_alarms", "refused")),
    )  # fmt: skip
