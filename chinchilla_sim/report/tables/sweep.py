"""Many planned scenarios in one table, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chinchilla_sim.report.table import NONE, Table, percent
from chinchilla_sim.units import format_seconds


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One scenario: `result` as `search_dict` makes it, or empty, with `status` and `problem` instead."""

    file: str
    name: str
    status: str
    problem: str = ""
    exit_code: int = 0
    search_s: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)


def sweep_tables(rows: Sequence[SweepRow]) -> tuple[Table, ...]:
    """All scenarios in the given order; and, where some have no plan, why."""
    headers = ("scenario", "plan", "step time", "lower bound", "gap", "candidates", "search")
    planned = Table("Scenarios", headers, tuple(_cells(row) for row in rows), text_columns=(0, 1))
    reasons = tuple((row.name, row.file, line) for row in rows if row.problem for line in row.problem.splitlines())
    if not reasons:
        return (planned,)
    return planned, Table("Without a plan", ("scenario", "file", "because"), reasons, text_columns=(0, 1, 2))


def _cells(row: SweepRow) -> tuple[str, ...]:
    found = row.result
    if not found:
        return (row.name, row.status, NONE, NONE, NONE, NONE, format_seconds(row.search_s) if row.search_s else NONE)
    gap = NONE if found["gap"] is None else percent(found["gap"])
    times = format_seconds(found["simulated_step_s"]), format_seconds(found["lower_bound_s"])
    return (row.name, found["summary"], *times, gap, str(found["considered"]), format_seconds(row.search_s))


def progress_line(row: SweepRow, done: int, total: int) -> str:
    """One finished scenario in a line."""
    if not row.result:
        return f"{done}/{total}  {row.name}: {row.status}: {'; '.join(row.problem.splitlines())}"
    _, plan, step, bound, gap, considered, search = _cells(row)
    return f"{done}/{total}  {row.name}: {plan}; {step} a step, at least {bound}, gap {gap}; {considered} candidates in {search}"


def sweep_dict(rows: Sequence[SweepRow]) -> dict[str, Any]:
    """JSON-ready: a list in the given order, each with its file, exit code and either all of its result or its problem."""
    listed = []
    for row in rows:
        common = {"file": row.file, "scenario": row.name, "status": row.status, "exit_code": row.exit_code, "search_s": row.search_s}
        listed.append(common | (dict(row.result) or {"problem": row.problem}))
    return {"scenarios": listed}
