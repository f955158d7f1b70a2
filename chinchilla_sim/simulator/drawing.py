"""A schedule by its name, or from a file, played with equal stages: what `chinchilla schedule` shows."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from chinchilla_sim.errors import Mistake, RunError, ScenarioError, why_unreadable
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
        found = mistakes_of(plan)
    elif name in SCHEDULES:
        width = stages_per_rank or (1 if SCHEDULES[name].layout == "line" else 2)
        refused = SCHEDULES[name].refuses(ranks, width, microbatches)
        found = [("", refused)] if refused else []
        plan = (
            Plan((), ((0,),), (), 1, 1, "1f1b", (), ())
            if found
            else equal_stages_plan(name, ranks, width, microbatches, passes, transfer_s)
        )
    else:
        raise ScenarioError([Mistake("", f"there is no schedule {name!r}", suggest(name, list(SCHEDULES)))])
    if found:
        raise ScenarioError([Mistake(where, what) for where, what in found], name)
    try:
        timeline = play_equal_stages(plan, passes, transfer_s)
    except RunError as error:
        raise ScenarioError([Mistake("", str(error), "put every pass behind those that it needs")], name) from error
    return DrawnSchedule(plan, rows_of(plan), timeline, plan.microbatch_count * (sum(seconds) if plan.training else seconds[0]))
