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

import networkx as nx

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.prices import NO_EXCHANGE, Pricing, StagePrice
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.schedules.automatic import PassSeconds, find_rows
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.simulator.activities import timeline_of
from chinchilla_sim.simulator.engine import play_events
from chinchilla_sim.simulator.lowering import activities_of

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
        raise ScenarioError([Mistake("", f"cannot be read: {error}", "name pipeline_stage_profiles.csv")], str(path)) from error
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
    plan = _plan(name, ranks, width, count, seconds, float(row["T_comm_ms"]) / 1000.0, kept)
    rows_s, step_s = _play(plan, seconds, float(row["T_comm_ms"]) / 1000.0)
    simulated_s = max(rows_s) if name.startswith("zb-") else step_s
    busy_s = count * (seconds.forward_s + seconds.input_s + seconds.weight_s)
    published = row.get("bubble_rate_calculated_by_authors")
    measured = row.get("measured_step_time_s")
    return ScheduleResult(
        row["model"], row["schedule"], ranks, count, simulated_s, float(measured) if measured else None, 1.0 - busy_s / simulated_s,
        float(published) if published else None,
    )  # fmt: skip


def _plan(name: str, ranks: int, width: int, count: int, seconds: PassSeconds, transfer_s: float, kept: float) -> Plan:
    stages, schedule = ranks * width, SCHEDULES[name]
    order: tuple[str, ...] = ()
    if schedule.row is None:
        rows = find_rows([seconds] * ranks, transfer_s, count, ranks * (1 if name == "zb-1p" else 2), kept)
        order = tuple(" ".join(map(str, row)) for row in rows)
    return Plan(
        stages=tuple((f"stage{stage}",) for stage in range(stages)),
        placement=tuple((schedule.rank_of_stage(stage, ranks),) for stage in range(stages)),
        slots=tuple(range(ranks)),
        global_batch_size=count,
        microbatch_count=count,
        schedule=name,
        gradient_codecs=("none",) * stages,
        activation_codecs=("none",) * (stages - 1),
        receives_in_flight=count,
        order=order,
    )


def _play(plan: Plan, seconds: PassSeconds, transfer_s: float) -> tuple[list[float], float]:
    """Seconds of every rank's row, and of the step, over links of a fixed delay."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    slots = tuple(f"rank{rank}" for rank in range(plan.rank_count))
    for slot in slots:
        graph.add_edge(slot, "network", link=Link(transfer_s / 2, float("inf")))
        graph.add_edge("network", slot, link=Link(transfer_s / 2, float("inf")))
    cluster = Cluster(graph, slots, (Device("profiled", 1.0, 1.0),) * len(slots), Backend("plain"))
    width = plan.stages_per_rank
    passes = {Op.F: seconds.forward_s, Op.I: seconds.input_s, Op.W: seconds.weight_s, Op.B: seconds.input_s + seconds.weight_s}
    price = StagePrice({op: spent / width for op, spent in passes.items()} | {Op.OPTIM: 0.0}, 0.0, 0.0, 0.0)
    none = (0.0,) * (plan.stage_count - 1)
    pricing = Pricing(((price,),) * plan.stage_count, none, none, (NO_EXCHANGE,) * plan.stage_count)
    activities = activities_of(lower(plan), pricing, cluster)
    timeline = timeline_of(activities, play_events(activities, cluster))
    rows_s = []
    for rank in range(plan.rank_count):
        passes_of_rank = [span for span in timeline.spans_of(rank, "compute") if span.category in ("forward", "backward")]
        rows_s.append(max(span.end_s for span in passes_of_rank) - min(span.start_s for span in passes_of_rank))
    return rows_s, timeline.step_s
