"""Pipeline schedules against the measurements of the Zero-Bubble paper (Qi et al. 2023, table of profiled stages).

A row names the profiled milliseconds of one microbatch on one stage (F, input gradient, weight gradient, transfer) and the step
time that was measured under a schedule. The stages are simulated with exactly these; what a profile of passes leaves
out (optimizer, gradient norm, jitter) is not added, so simulated steps should be a few per cent too short.

1F1B and its interleaved form last from the first pass to the last of all ranks. ZB-1p and ZB-2p are found for the memory
of 1F1B and twice that, and their steps follow each other without a meeting of all ranks (the paper's validation after
the update), so the longest rank's row counts. Activations stay from I to W by the share that transformer layers need for
weight gradients: 32 / (34 + 5 a s / h) (Korthikanti et al. 2022; a heads, s tokens, h width).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.planner.schedules.automatic import PassSeconds
from chinchilla_sim.simulator.equal_stages import equal_stages_plan, play_equal_stages, row_seconds

NAMES = {"1F1B": "1f1b", "1F1B-I": "interleaved-1f1b", "ZB-H1": "zb-h1", "ZB-H2": "zb-h2", "ZB-1p": "zb-1p", "ZB-2p": "zb-2p"}
COLUMNS = ("model", "layers", "hidden", "heads", "seq_len", "stages_p", "num_microbatches_m", "T_F_ms", "T_B_ms", "T_W_ms", "T_comm_ms")


@dataclass(frozen=True, slots=True)
class ScheduleResult:
    """One row: what was simulated, what was measured (None: not stated), and the idle share of a rank's row."""

    model: str
    schedule: str
    ranks: int
    microbatches: int
    simulated_s: float
    measured_s: float | None
    bubble: float
    published_bubble: float | None

    @property
    def error(self) -> float | None:
        """Simulated over measured, less 1."""
        return self.simulated_s / self.measured_s - 1.0 if self.measured_s else None


def check_profiles(path: Path) -> list[ScheduleResult]:
    """Every row of a file of profiled stages; ScenarioError names what is missing or wrong."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(
            [Mistake("", f"cannot be read: {why_unreadable(error)}", "name pipeline_stage_profiles.csv")], str(path)
        ) from error
    missing = [name for name in (*COLUMNS, "schedule") if not rows or name not in rows[0]]
    if missing:
        raise ScenarioError([Mistake(name, "there is no such column", f"needed are {', '.join(COLUMNS)}") for name in missing], str(path))
    results, mistakes = [], []
    for number, row in enumerate(rows, start=2):
        try:
            results.append(_check(row))
        except (ValueError, KeyError, ZeroDivisionError) as error:
            mistakes.append(Mistake(f"line {number}", f"cannot be simulated: {error}", f"schedules are {', '.join(NAMES)}"))
    if mistakes:
        raise ScenarioError(mistakes, str(path))
    return results


def errors_by_schedule(results: list[ScheduleResult]) -> dict[str, list[float]]:
    """Errors of all measured rows, by schedule."""
    found: dict[str, list[float]] = {}
    for result in results:
        if result.error is not None:
            found.setdefault(result.schedule, []).append(result.error)
    return found


def _check(row: Mapping[str, str]) -> ScheduleResult:
    name = NAMES[row["schedule"]]
    ranks, count = int(row["stages_p"]), int(row["num_microbatches_m"])
    seconds = PassSeconds(*(float(row[column]) / 1000.0 for column in ("T_F_ms", "T_B_ms", "T_W_ms")))
    kept = 32.0 / (34.0 + 5.0 * int(row["heads"]) * int(row["seq_len"]) / int(row["hidden"]))
    # Embedding and head count as a layer each: that makes stages of equal numbers of layers.
    width = (int(row["layers"]) + 2) // ranks if name == "interleaved-1f1b" else 1
    transfer_s = float(row["T_comm_ms"]) / 1000.0
    timeline = play_equal_stages(equal_stages_plan(name, ranks, width, count, seconds, transfer_s, kept), seconds, transfer_s)
    simulated_s = max(row_seconds(timeline)) if name.startswith("zb-") else timeline.step_s
    busy_s = count * (seconds.forward_s + seconds.input_s + seconds.weight_s)
    published = row.get("bubble_rate_calculated_by_authors")
    measured = row.get("measured_step_time_s")
    return ScheduleResult(
        row["model"], row["schedule"], ranks, count, simulated_s, float(measured) if measured else None, 1.0 - busy_s / simulated_s,
        float(published) if published else None,
    )  # fmt: skip
