"""A handful of physical constants of one source, fitted to some of its rows and scored on the rest.

What differs between laboratories with the same GPUs: how fast kernels run within their jobs, how long their host program
takes to start one, what of a link's bandwidth arrives, and fixed times per step and per microbatch. The fit minimises errors in
logarithms, with a pull towards the shipped constants that a few rows cannot overcome without reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.validation.ledger import PredictedRow
from chinchilla_sim.validation.published import Constants, predict, shipped_constants
from chinchilla_sim.validation.published_model import NotPredictedError, Row

Floats = NDArray[np.float64]
PULL = 0.05
"""Weight of a constant's deviation (in e-foldings) against a row's error."""

FLOORS = (0.0, 0.0, 0.0, 1e-4, 0.0, 1e-3)
"""Added before logarithms are taken: fixed times may be nothing."""

MOST_EVALUATIONS = 60


@dataclass(frozen=True, slots=True)
class SourceFit:
    """Mean errors on the rows that the fit has not seen, with the shipped constants and with the fitted ones."""

    source: str
    fitted_rows: int
    scored_rows: int
    shipped_error: float
    fitted_error: float
    constants: Constants


def fit_sources(predicted: Sequence[PredictedRow], count: int, seed: int = 0) -> list[SourceFit]:
    """Every source with at least twice `count` scored rows: fitted to `count` random ones, scored on the rest."""
    sources: dict[str, list[PredictedRow]] = {}
    for one in predicted:
        if one.error is not None:
            sources.setdefault(one.row["source_id"], []).append(one)
    return [_fit_source(source, rows, count, seed) for source, rows in sorted(sources.items()) if len(rows) >= 2 * count]


def _fit_source(source: str, rows: Sequence[PredictedRow], count: int, seed: int) -> SourceFit:
    order = np.random.default_rng(seed).permutation(len(rows))
    chosen, rest = ([rows[index] for index in part] for part in (order[:count], order[count:]))
    constants = fit_constants([one.row for one in chosen], [one.measured_s or 0.0 for one in chosen])
    fitted = [abs(predict(one.row, constants).step_s / (one.measured_s or 1.0) - 1.0) for one in rest]
    shipped = [abs(one.error or 0.0) for one in rest]
    return SourceFit(source, len(chosen), len(rest), float(np.mean(shipped)), float(np.mean(fitted)), constants)


def fit_constants(rows: Sequence[Row], measured_s: Sequence[float]) -> Constants:
    """Constants with the least error on these rows."""
    from scipy.optimize import least_squares

    start = logarithms_of(shipped_constants(rows[0]))
    measured = np.log(np.array(measured_s))

    def off(logarithms: Floats) -> Floats:
        constants = constants_of(logarithms)
        simulated = np.log([_step_s(row, constants) for row in rows])
        return np.concatenate([simulated - measured, PULL * np.sqrt(len(rows)) * (logarithms - start)])

    found = least_squares(off, start, loss="soft_l1", f_scale=0.1, diff_step=0.03, max_nfev=MOST_EVALUATIONS // len(start))
    return constants_of(found.x)


def logarithms_of(constants: Constants) -> Floats:
    """What the fit moves: logarithms of the constants, above FLOORS."""
    found: Floats = np.log(np.array(astuple(constants)) + FLOORS)
    return found


def constants_of(logarithms: Floats) -> Constants:
    """Constants from their logarithms."""
    values = np.maximum(np.exp(logarithms) - FLOORS, 0.0)
    return Constants(*values.tolist())


def _step_s(row: Row, constants: Constants) -> float:
    try:
        return predict(row, constants).step_s
    except NotPredictedError as error:  # pragma: no cover - scored rows have been predicted once
        raise AssertionError(f"{row['id']} was predicted before") from error
