"""Tables of given plans and schedules, simulated: side by side, with their memory and their disturbances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chinchilla_sim.planner.action import parse_action
from chinchilla_sim.planner.schedules.automatic import most_held
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.report.table import Table, percent
from chinchilla_sim.report.tables.plans import FACT_HEADERS, candidate_facts, fact_cells
from chinchilla_sim.report.verdict import versus
from chinchilla_sim.simulator.disturbance import Spread
from chinchilla_sim.simulator.drawing import DrawnSchedule
from chinchilla_sim.simulator.equal_stages import row_seconds
from chinchilla_sim.simulator.goodput import Goodput
from chinchilla_sim.units import format_bytes, format_seconds, plain_number

LONGEST_ROW = 120


def simulated_table(rows: Sequence[tuple[str, Candidate]]) -> Table:
    """Given plans in the given order, each against the fastest."""
    fastest_s = min(candidate.step_s for _, candidate in rows)
    cells = []
    for name, candidate in rows:
        compared = "fastest" if candidate.step_s == fastest_s else versus(candidate.step_s, fastest_s, "step_time")
        row = [name, candidate.plan.describe(), str(len(candidate.plan.slots)), format_seconds(candidate.step_s), compared]
        cells.append((*row, *fact_cells(candidate)))
    headers = ("file", "plan", "ranks", "step time", "vs fastest", *FACT_HEADERS)
    return Table("Simulated plans", headers, tuple(cells), text_columns=(0, 1))


def memory_table(candidate: Candidate) -> Table:
    """What holds the peak of every rank, and when it is reached."""
    plan, timeline = candidate.plan, candidate.timeline
    found = [peak_of(candidate, rank) for rank in range(plan.rank_count)]
    names = list(dict.fromkeys(name for peak in found for name in peak["parts"]))
    rows = []
    for rank, peak in enumerate(found):
        row = [str(rank), format_bytes(peak["peak_bytes"]), format_seconds(peak["time_s"] - timeline.start_s), peak["during"]]
        rows.append((*row, *(format_bytes(peak["parts"].get(name, 0.0)) for name in names)))
    return Table("Memory at its peak", ("rank", "peak", "at", "during", *names), tuple(rows), text_columns=(0, 3))


def peak_of(candidate: Candidate, rank: int) -> dict[str, Any]:
    """When a rank holds most, what it computes then, and bytes by what they are."""
    timeline = candidate.timeline
    samples = timeline.memory_of(rank)
    top = max(samples, key=lambda sample: sample.held_bytes)
    running = [span for span in timeline.spans_of(rank, "compute") if span.start_s <= top.time_s <= span.end_s]
    parts = candidate.pricing.held_parts(candidate.plan, rank)
    parts["gradients"] = parts.get("gradients", 0.0) + _grown_bytes(candidate, rank, top.time_s)
    parts["activations"] = max(0.0, top.held_bytes - sum(parts.values()))
    during = running[-1].label if running else ""
    return {
        "peak_bytes": top.held_bytes,
        "time_s": top.time_s,
        "during": during,
        "parts": {name: size for name, size in parts.items() if size},
    }


def _grown_bytes(candidate: Candidate, rank: int, time_s: float) -> float:
    """Gradients of weights that backward passes have begun to make by then, where they come and go."""
    plan = candidate.plan
    stages, replica = plan.position[rank]
    spans = candidate.timeline.spans_of(rank, "compute")
    begun = {parse_action(span.label).stage for span in spans if span.category == "backward" and span.start_s <= time_s}
    return sum(candidate.pricing.stages[stage][replica].gradient_bytes for stage in stages if stage in begun)


def simulated_dict(candidate: Candidate) -> dict[str, Any]:
    """JSON-ready simulation of one given plan."""
    return {
        "summary": candidate.plan.describe(),
        "rank_count": len(candidate.plan.slots),
        "simulated_step_s": candidate.step_s,
        **candidate_facts(candidate),
        **({"serving": candidate.serving.to_dict()} if candidate.serving else {}),
        "memory_peaks": [peak_of(candidate, rank) for rank in range(candidate.plan.rank_count)],
        "timeline": candidate.timeline.to_dict(),
    }


def disturbed_table(rows: Sequence[tuple[str, Spread, Goodput | None]]) -> Table:
    """Spread of disturbed steps, and what failures leave."""
    failing = any(goodput for _, _, goodput in rows)
    cells = []
    for name, spread, goodput in rows:
        row = [name, *(format_seconds(seconds) for seconds in spread.percentiles_s)]
        if failing and goodput:
            row += [percent(goodput.simulated), percent(goodput.expected), format_seconds(goodput.interval_s)]
            row += [
                f"{format_seconds(goodput.best_interval_s)} ({percent(goodput.best_expected)})",
                format_seconds(goodput.young_interval_s),
            ]
        cells.append(tuple(row + [""] * (4 + 5 * failing - len(row))))
    headers = ["file", "p5", "p50", "p95"]
    headers += ["goodput", "by Daly's formula", "checkpoint every", "best (goodput)", "by Young's formula"] if failing else []
    note = f"{len(rows[0][1].steps_s)} steps were drawn; transfers last as long as in one playing of the disturbed network"
    return Table("Disturbed steps", tuple(headers), tuple(cells), text_columns=(0,), note=note)


def disturbed_dict(spread: Spread, goodput: Goodput | None) -> dict[str, Any]:
    """JSON-ready spread and goodput."""
    p5_s, p50_s, p95_s = spread.percentiles_s
    found: dict[str, Any] = {"p5_s": p5_s, "p50_s": p50_s, "p95_s": p95_s}
    return found | ({"goodput": asdict(goodput)} if goodput else {})


def schedule_table(drawn: DrawnSchedule) -> Table:
    """Passes of every rank, its idle share, and what it holds."""
    rows = []
    for rank, (row, length_s) in enumerate(zip(drawn.rows, row_seconds(drawn.timeline), strict=True)):
        held = most_held([parse_action(word) for word in row.split()])
        idle = 1.0 - drawn.timeline.busy_s(rank) / length_s if length_s else 0.0
        words = row if len(row) <= LONGEST_ROW else row[:LONGEST_ROW].rpartition(" ")[0] + " ..."
        rows.append((str(rank), f"{held:g}", percent(max(0.0, idle)), words))
    headers = ("rank", "microbatches held", "idle within its row", "passes in PyTorch's notation")
    bubble = 1.0 - drawn.ideal_s / drawn.timeline.step_s
    step_s, ideal_s = plain_number(drawn.timeline.step_s, 6), plain_number(drawn.ideal_s, 6)
    note = f"step {step_s} s, {ideal_s} s without any bubble: {percent(max(0.0, bubble))} of the step is idle"
    return Table(drawn.plan.describe(), headers, tuple(rows), text_columns=(0, 3), note=note)


def schedule_dict(drawn: DrawnSchedule) -> dict[str, Any]:
    """JSON-ready rows, and what they take with equal stages."""
    facts = {"step_s": drawn.timeline.step_s, "ideal_s": drawn.ideal_s, "bubble_fraction": drawn.timeline.bubble_fraction}
    return {"schedule": drawn.plan.schedule, "rows": [row.split() for row in drawn.rows], **facts, "row_s": row_seconds(drawn.timeline)}
