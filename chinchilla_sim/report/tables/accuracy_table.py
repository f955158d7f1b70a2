"""What changes cost in accuracy and in steps, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

from chinchilla_sim.cost.accuracy import LEVEL, Interval
from chinchilla_sim.planner.accuracy import AS_IT_IS, AccuracyTable, Target
from chinchilla_sim.report.table import NONE, Table, percent, signed_percent
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.units import format_bytes


def accuracy_table(table: AccuracyTable, scenario: Scenario) -> Table:
    """One row per change: accuracy at the end, its change with interval, steps to the target and their ratio, bytes."""
    target = table.target_of(scenario.job)
    rows = [_row(table, change, target) for change in (AS_IT_IS, *table.changes)]
    headers = (
        "change",
        "accuracy",
        "change of it",
        f"{LEVEL:.0%} interval".replace("%", " %"),
        "steps",
        "times",
        "interval",
        "reached",
        "bytes",
    )
    unmeasured = "".join(f"; not measured: {change} ({why})" for change, why in table.refused.items())
    note = (
        f"{table.describe()}; {target_words(target)}; {table.accuracy_metric} on validation data; bytes: sent per step of what is changed"
    )
    return Table("Accuracy and steps of each change", headers, tuple(rows), (0,), note + unmeasured)


def target_words(target: Target) -> str:
    """The target in words.

    >>> target_words(Target("validation_accuracy", True, 0.95)), target_words(Target("validation_loss", False))
    ('steps to validation_accuracy 0.95', 'steps to the validation_loss of 90 % of the run as it is')
    """
    return (
        f"steps to {target.metric} {target.value:g}"
        if target.value is not None
        else f"steps to the {target.metric} of 90 % of the run as it is"
    )


def _row(table: AccuracyTable, change: str, target: Target) -> tuple[str, ...]:
    runs, facts = table.by_change[change], change_facts(table, change, target)
    metric, drop, ratio = table.accuracy_metric, facts["drop"], facts["ratio"]
    assert metric
    accuracy = sum(run.metrics[metric][-1] for run in runs.values()) / len(runs)
    gained = (signed_percent(-drop.estimate), _interval(-drop.high, -drop.low)) if drop and change != AS_IT_IS else (NONE, NONE)
    times = (f"{ratio.estimate:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}") if _known(ratio) and change != AS_IT_IS else (NONE, NONE)
    steps = facts["steps"]
    run = next(iter(runs.values()))
    reached = f"{table.reached(change, target)} of {len(runs)}" if table.knows(target) else NONE
    bytes_words = f"{format_bytes(run.sent_bytes)} of {format_bytes(run.plain_bytes)}" if run.plain_bytes else NONE
    counted = f"{steps:.0f}" if steps is not None and isfinite(steps) else NONE
    return (change, percent(accuracy), *gained, counted, *times, reached, bytes_words)


def _known(ratio: Interval | None) -> bool:
    return ratio is not None and isfinite(ratio.estimate)


def _interval(low: float, high: float) -> str:
    return f"{signed_percent(low)} to {signed_percent(high)}" if isfinite(low) and isfinite(high) else NONE


def change_facts(table: AccuracyTable, change: str, target: Target) -> dict[str, Any]:
    """Drop of accuracy, ratio of steps, and steps to the target; None where not known."""
    changes = () if change == AS_IT_IS else (change,)
    ratio, plain = table.steps_ratio(changes, target), table.plain_steps(target)
    return {"drop": table.drop(changes), "ratio": ratio, "steps": None if ratio is None or plain is None else plain * ratio.estimate}


def accuracy_dict(table: AccuracyTable, scenario: Scenario) -> dict[str, Any]:
    """JSON-ready: the same, with the table itself."""
    target = table.target_of(scenario.job)
    rows = []
    for change in (AS_IT_IS, *table.changes):
        runs, facts = table.by_change[change], change_facts(table, change, target)
        intervals = {name: asdict(facts[name]) if facts[name] else None for name in ("drop", "ratio")}
        run = next(iter(runs.values()))
        seen = {"seeds": len(runs), "reached": table.reached(change, target) if table.knows(target) else None}
        size = {"sent_bytes": run.sent_bytes, "plain_bytes": run.plain_bytes}
        rows.append({"change": change, **seen, **intervals, "steps": facts["steps"], **size})
    return {"level": LEVEL, "target": asdict(target), "accuracy_metric": table.accuracy_metric, "changes": rows, "table": table.to_dict()}
