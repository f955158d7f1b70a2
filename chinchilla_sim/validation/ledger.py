"""How far simulated steps of published rows are off: per source and over all, sources weighted equally."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.validation.published import Prediction, predict
from chinchilla_sim.validation.published_model import NotPredictedError, Row

Floats = NDArray[np.float64]

NEEDED = ("id", "source_id", "model_family", "hardware", "n_gpus", "tp", "pp", "global_batch", "precision")
OUTPUT = ("id", "simulated_step_s", "p5_s", "p95_s", "simulated_peak_memory_bytes", "fits", "not_predicted_because")
SCORES = ("error", "memory_error", "plan_group", "regret_of_group")
"""Columns behind OUTPUT, filled where a row has a measurement: relative errors, and who competes with whom over the best plan."""

CHUNK = 32
"""Rows that a process works out at a time; so few are not worth one."""

FEWEST_ROWS = 8
"""Sources with fewer rows do not count in the mean over sources."""


@dataclass(frozen=True, slots=True)
class PredictedRow:
    """A row of the file with its prediction, or why there is none; `measured_s` is None where a row has no step time to score."""

    row: Row
    prediction: Prediction | None
    reason: str

    @property
    def measured_s(self) -> float | None:
        """Measured step, for rows of quality A and B that ended well."""
        text = self.row.get("step_time_s_calc", "")
        scored = self.row.get("quality", "A") in ("A", "B") and self.row.get("status", "ok") in ("ok", "")
        return float(text) if text and scored else None

    @property
    def error(self) -> float | None:
        """Simulated over measured, less 1."""
        if self.prediction is None or not self.measured_s:
            return None
        return self.prediction.step_s / self.measured_s - 1.0

    @property
    def memory_error(self) -> float | None:
        """Simulated over measured peak memory, less 1, where a row of quality A or B states it."""
        text = self.row.get("peak_mem_gb", "")
        if self.prediction is None or not text or self.row.get("quality") == "C":
            return None
        return self.prediction.peak_bytes / (float(text) * 1e9) - 1.0


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """Errors of one source (or the mean over sources); `inside` is the share of measurements between p5 and p95."""

    source: str
    rows: int
    scored: int
    mean: float
    median: float
    p90: float
    bias: float
    rank_correlation: float
    inside: float
    memory: float | None


def predict_rows(
    path: Path, progress: Callable[[int, int], None] | None = None, stop: Callable[[], bool] | None = None, jobs: int = 1
) -> list[PredictedRow]:
    """Every row of a file in the columns of measured_training_steps.csv, or those until `stop`; ScenarioError where columns are missing.

    `jobs` processes share the rows.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError([Mistake("", f"cannot be read: {why_unreadable(error)}", "name a CSV of published rows")], str(path)) from error
    missing = [name for name in NEEDED if not rows or name not in rows[0]]
    if missing:
        raise ScenarioError([Mistake(name, "there is no such column", f"needed are {', '.join(NEEDED)}") for name in missing], str(path))
    found: list[PredictedRow] = []
    with _predictions([{key: value or "" for key, value in row.items()} for row in rows], jobs) as predictions:
        for number in range(len(rows)):
            if found and stop and stop():
                break
            found.append(next(predictions))
            if progress:
                progress(number + 1, len(rows))
    return found


@contextmanager
def _predictions(rows: Sequence[dict[str, str]], jobs: int) -> Iterator[Iterator[PredictedRow]]:
    """The prediction of each row, in order; worked out ahead in processes where there are several jobs."""
    if jobs == 1 or len(rows) <= CHUNK:
        yield map(_predicted, rows)
        return
    # Ctrl-C is for the process that asked.
    with ProcessPoolExecutor(jobs, get_context("spawn"), partial(signal.signal, signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            yield pool.map(_predicted, rows, chunksize=CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def _predicted(row: dict[str, str]) -> PredictedRow:
    try:
        return PredictedRow(row, predict(row), "")
    except (NotPredictedError, ScenarioError) as error:
        return PredictedRow(row, None, " ".join(str(error).split()))


def write_predictions(predicted: Sequence[PredictedRow], path: Path) -> None:
    """One line per row, in the order of the file."""
    groups = {one.row["id"]: (number, regret_of(rows)) for number, rows in enumerate(plan_groups(predicted)) for one in rows}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(OUTPUT + SCORES)
        for one in predicted:
            told = one.prediction
            figures = [told.step_s, told.p5_s, told.p95_s, told.peak_bytes, told.fits] if told else [""] * 5
            scores = ["" if value is None else value for value in (one.error, one.memory_error)]
            writer.writerow([one.row["id"], *figures, one.reason, *scores, *groups.get(one.row["id"], ("", ""))])


def ledger(predicted: Sequence[PredictedRow]) -> list[LedgerLine]:
    """A line per source that has scored rows, and one over all sources of FEWEST_ROWS or more, each weighted equally."""
    sources: dict[str, list[PredictedRow]] = {}
    for one in predicted:
        sources.setdefault(one.row["source_id"], []).append(one)
    lines = [_line(source, rows) for source, rows in sorted(sources.items()) if any(row.error is not None for row in rows)]
    counted = [line for line in lines if line.scored >= FEWEST_ROWS]
    return [*lines, _mean_line(counted, len(predicted), sum(line.scored for line in lines))] if counted else lines


def _line(source: str, rows: Sequence[PredictedRow]) -> LedgerLine:
    scored = [row for row in rows if row.error is not None]
    errors = np.array([row.error for row in scored], dtype=float)
    simulated = np.array([row.prediction.step_s for row in scored if row.prediction])
    measured = np.array([row.measured_s for row in scored], dtype=float)
    inside = [row.prediction.p5_s <= (row.measured_s or 0.0) <= row.prediction.p95_s for row in scored if row.prediction]
    size = np.abs(errors)
    return LedgerLine(
        source, len(rows), len(scored), float(size.mean()), float(np.median(size)), float(np.quantile(size, 0.9)), float(np.median(errors)),
        _rank_correlation(simulated, measured), float(np.mean(inside)), _memory_error(rows),
    )  # fmt: skip


def _mean_line(lines: Sequence[LedgerLine], rows: int, scored: int) -> LedgerLine:
    memory = [line.memory for line in lines if line.memory is not None]

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return LedgerLine(
        "all sources, weighted equally", rows, scored, mean(line.mean for line in lines), mean(line.median for line in lines),
        mean(line.p90 for line in lines), mean(line.bias for line in lines), mean(line.rank_correlation for line in lines),
        mean(line.inside for line in lines), mean(memory) if memory else None,
    )  # fmt: skip


def _rank_correlation(left: Floats, right: Floats) -> float:
    """Spearman's; 1 where there is nothing to order."""
    if len(left) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (left, right)]
    spread = float(ranks[0].std() * ranks[1].std())
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / spread) if spread else 1.0


def _memory_error(rows: Sequence[PredictedRow]) -> float | None:
    """Mean absolute relative error of peak memory, where a row states it."""
    errors = [abs(one.memory_error) for one in rows if one.memory_error is not None]
    return float(np.mean(errors)) if errors else None


SAME_JOB = ("source_id", "model_name", "layers", "hidden", "seq_len", "hardware", "n_gpus", "global_batch", "precision")
PLAN = ("tp", "pp", "vpp", "dp", "micro_batch", "zero_stage", "pp_schedule", "recompute", "sequence_parallel", "cp", "ep")


def plan_groups(predicted: Sequence[PredictedRow]) -> list[list[PredictedRow]]:
    """Rows of one job that differ only in the plan, two plans or more."""
    groups: dict[tuple[str, ...], list[PredictedRow]] = {}
    for one in predicted:
        if one.error is not None:
            groups.setdefault(tuple(one.row.get(name, "") for name in SAME_JOB), []).append(one)
    return [rows for rows in groups.values() if len({tuple(one.row.get(name, "") for name in PLAN) for one in rows}) >= 2]


def regret_of(rows: Sequence[PredictedRow]) -> float:
    """How much slower than the best measured row the one is that the simulator ranks first."""
    chosen = min(rows, key=lambda one: one.prediction.step_s if one.prediction else np.inf)
    return (chosen.measured_s or 0.0) / min(one.measured_s or np.inf for one in rows) - 1.0


def regret(predicted: Sequence[PredictedRow], sources: Sequence[str] = ()) -> tuple[int, float, float] | None:
    """Number of groups that differ only in the plan, and their mean and worst regret; of these sources, or of all."""
    groups = [rows for rows in plan_groups(predicted) if not sources or rows[0].row["source_id"] in sources]
    losses = [regret_of(rows) for rows in groups]
    return (len(losses), float(np.mean(losses)), float(np.max(losses))) if losses else None
