"""What an unseen laboratory may expect: constants and intervals from all other sources, scored on the one that was left out.

The constants of `fitting.py` are fitted to some rows of every other source, each source weighted equally. Simulations are expensive, so
the fit works on their derivatives at the shipped constants; the rows of the source left out are then simulated for real with
what it found. Intervals are quantiles of measured over simulated steps among the other sources (Vovk et al. 2005, split conformal, with
whole sources in place of rows: rows of one source err alike).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.validation.fitting import PULL, constants_of, logarithms_of
from chinchilla_sim.validation.ledger import FEWEST_ROWS, PredictedRow
from chinchilla_sim.validation.published import Constants, predict, shipped_constants, spread_class
from chinchilla_sim.validation.published_model import Row

Floats = NDArray[np.float64]
STEP = 0.05
QUANTILES = (0.05, 0.95)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Errors of one source that constants and interval have not seen; `width` is half of p95 less p5, relative to the step."""

    source: str
    rows: int
    shipped_error: float
    refitted_error: float
    bias: float
    inside: float
    width: float
    constants: Constants


@dataclass(frozen=True, slots=True)
class _Sample:
    """Rows that stand for their sources: measured and simulated steps in logarithms, and derivatives to the constants'."""

    sources: list[str]
    classes: list[str]
    measured: Floats
    simulated: Floats
    slopes: Floats

    def weights(self, sources: set[str]) -> Floats:
        """Of each row, so that each of these sources counts the same and others nothing."""
        return np.array([1.0 / self.sources.count(source) if source in sources else 0.0 for source in self.sources])


def leave_one_out(
    predicted: Sequence[PredictedRow], rows_per_source: int = 24, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> list[LeftOut]:
    """Every source with FEWEST_ROWS scored rows or more, scored with constants and intervals of all others."""
    found: dict[str, list[PredictedRow]] = {}
    for one in predicted:
        if one.error is not None:
            found.setdefault(one.row["source_id"], []).append(one)
    groups = {source: rows for source, rows in sorted(found.items()) if len(rows) >= FEWEST_ROWS}
    sample = _sample(groups, rows_per_source, seed)
    results = []
    for number, (source, rows) in enumerate(groups.items()):
        results.append(_score(source, rows, sample, set(groups) - {source}))
        if progress:
            progress(number + 1, len(groups))
    return results


def _sample(groups: dict[str, list[PredictedRow]], count: int, seed: int) -> _Sample:
    generator = np.random.default_rng(seed)
    chosen = [rows[index] for rows in groups.values() for index in generator.permutation(len(rows))[:count]]
    start = logarithms_of(shipped_constants(chosen[0].row))

    def logarithms(moved: int | None) -> Floats:
        constants = constants_of(start + STEP * (np.arange(len(start)) == moved)) if moved is not None else constants_of(start)
        return np.log([predict(one.row, constants).step_s for one in chosen])

    simulated = logarithms(None)
    slopes = np.stack([(logarithms(moved) - simulated) / STEP for moved in range(len(start))], axis=1)
    measured = np.log([one.measured_s or 1.0 for one in chosen])
    rows: list[Row] = [one.row for one in chosen]
    return _Sample([row["source_id"] for row in rows], [spread_class(row) for row in rows], measured, simulated, slopes)


def _score(source: str, rows: Sequence[PredictedRow], sample: _Sample, others: set[str]) -> LeftOut:
    start = logarithms_of(shipped_constants(rows[0].row))
    weights = sample.weights(others)
    moved = _fit(sample, weights, len(others))
    constants = constants_of(start + moved)
    residuals = sample.measured - sample.simulated - sample.slopes @ moved
    ratios = np.array([(one.measured_s or 1.0) / predict(one.row, constants).step_s for one in rows])
    inside, widths = [], []
    for one, ratio in zip(rows, ratios, strict=True):
        alike = np.array([kind == spread_class(one.row) for kind in sample.classes]) * weights
        low, high = np.exp(weighted_quantiles(residuals, alike if alike.any() else weights))
        inside.append(low <= ratio <= high)
        widths.append((high - low) / 2)
    errors, shipped = 1 / ratios - 1.0, np.array([abs(one.error or 0.0) for one in rows])
    return LeftOut(
        source, len(rows), float(shipped.mean()), float(np.abs(errors).mean()), float(np.median(errors)), float(np.mean(inside)),
        float(np.median(widths)), constants,
    )  # fmt: skip


def _fit(sample: _Sample, weights: Floats, sources: int) -> Floats:
    """Change of the constants' logarithms with the least weighted error, robust against rows that are far off."""
    from scipy.optimize import least_squares

    off = sample.measured - sample.simulated
    root = np.sqrt(weights / sources)

    def residuals(moved: Floats) -> Floats:
        error = off - sample.slopes @ moved
        # Like soft_l1 at 0.1, but only for rows: the pull stays quadratic.
        soft = 0.1 * np.sqrt(2.0 * (np.sqrt(1.0 + (error / 0.1) ** 2) - 1.0))
        return np.concatenate([root * soft, PULL * moved])

    return np.asarray(least_squares(residuals, np.zeros(sample.slopes.shape[1])).x)


def weighted_quantiles(values: Floats, weights: Floats, shares: Sequence[float] = QUANTILES) -> Floats:
    """Quantiles of weighted values.

    >>> weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]), [0.5]).tolist()
    [2.0]
    """
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return np.array([values[order][min(len(values) - 1, np.searchsorted(total, share * total[-1]))] for share in shares])
