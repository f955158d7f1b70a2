"""A schedule by its name, or from a file, played with equal stages: what `chinchilla schedule` shows."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from chinchilla_sim.errors import DeadlockError, Mistake, ScenarioError, why_unreadable
from chinchilla_sim.planner.action import parse_action
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.program import read_order
from chinchilla_sim.planner.schedules.automatic import PassSeconds
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.scenario.check import suggest
from chinchilla_sim.simulator.equal_stages import custom_plan, equal_stages_plan, play_equal_stages, rows_of
from chinchilla_sim.timeline import Timeline


def read_order_file(path: Path) -> tuple[str, ...]:
    """Rows of a CSV in PyTorch's notation; ScenarioError where it cannot be read."""
    try:
        rows = read_order(path.read_text())
        passes = [parse_action(word) for row in rows for word in row.split()]
        # A stage number is an index: one far beyond the passes is a slip, and would take its memory.
        far = next((action for action in passes if action.stage >= len(passes)), None)
        if far:
            raise ValueError(f"{far} names a stage beyond what its {len(passes)} passes can fill")
        return rows
    except (OSError, ValueError, csv.Error) as error:
        cure = "give one row of actions per rank, such as 0F0,0F1,0B0,0B1"
        raise ScenarioError([Mistake("", f"cannot be read: {why_unreadable(error)}", cure)], str(path)) from error


def check_plan_of_rows(plan: Plan, source: str) -> None:
    """ScenarioError where the rows of a file and the plan that is to play them contradict each other."""
    cure = "give every pass of every stage and microbatch once, in the row of its rank"
    found = [(re.sub(r"^order\.(\d+)$", lambda row: f"row {int(row[1]) + 1}", where), what) for where, what in mistakes_of(plan)]
    if found:
        raise ScenarioError([Mistake("" if where == "order" else where, what, cure) for where, what in found], source)


def unplayable_rows(error: DeadlockError, plan: Plan, field: str = "") -> Mistake:
    """A circle of waiting actions as a mistake of the rows that a file, or a field of it, writes out; every replica plays the same rows."""
    line = {rank: row for replica in range(plan.data_parallel_degree) for row, rank in enumerate(plan.pipeline(replica), start=1)}
    rows = sorted({line[rank] for rank in error.ranks})
    place = f"row{'s' if len(rows) > 1 else ''} {' and '.join(map(str, rows))}"
    cure = "put F behind F of the stage before, B behind B of the stage after, and the microbatches of both in one order"
    return Mistake(f"{field}, {place}" if field else place, f"cannot be played to the end: {error.waiting}", cure)


@dataclass(frozen=True)
class DrawnSchedule:
    """A schedule of equal stages, played."""

    plan: Plan
    rows: tuple[str, ...]
    timeline: Timeline
    ideal_s: float


def draw_schedule(
    name: str, ranks: int, stages_per_rank: int | None, microbatches: int, seconds: tuple[float, float, float], transfer_s: float
) -> DrawnSchedule:
    """A schedule by name (or a CSV of its rows), played with equal stages."""
    passes = PassSeconds(*seconds)
    if name.endswith(".csv"):
        plan = custom_plan(read_order_file(Path(name)))
        check_plan_of_rows(plan, name)
    elif name in SCHEDULES:
        width = stages_per_rank or (1 if SCHEDULES[name].layout == "line" else 2)
        refused = SCHEDULES[name].refuses(ranks, width, microbatches)
        if refused:
            raise ScenarioError([Mistake("", refused)], name)
        plan = equal_stages_plan(name, ranks, width, microbatches, passes, transfer_s)
    else:
        raise ScenarioError([Mistake("", f"there is no schedule {name!r}", suggest(name, list(SCHEDULES)))])
    try:
        timeline = play_equal_stages(plan, passes, transfer_s)
    except DeadlockError as error:
        raise ScenarioError([unplayable_rows(error, plan)], name) from error
    return DrawnSchedule(plan, rows_of(plan), timeline, plan.microbatch_count * (sum(seconds) if plan.training else seconds[0]))
