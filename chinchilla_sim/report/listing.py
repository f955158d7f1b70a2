"""Tables that need no study: given plans side by side, and what a calibration measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from chinchilla_sim.cluster.calibration import Calibration
from chinchilla_sim.cluster.catalogue import in_base_units
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.planner.action import parse_action
from chinchilla_sim.planner.candidate import Candidate
from chinchilla_sim.planner.schedules.automatic import most_held
from chinchilla_sim.report.plans import candidate_facts
from chinchilla_sim.report.table import NONE, Table, percent
from chinchilla_sim.report.verdict import versus
from chinchilla_sim.simulator.benchmark import Figure
from chinchilla_sim.simulator.disturbance import Spread
from chinchilla_sim.simulator.drawing import DrawnSchedule
from chinchilla_sim.simulator.equal_stages import row_seconds
from chinchilla_sim.simulator.goodput import Goodput
from chinchilla_sim.units import format_bandwidth, format_bytes, format_flop_per_s, format_seconds
from chinchilla_sim.validation.collectives import CollectiveResult
from chinchilla_sim.validation.fitting import SourceFit
from chinchilla_sim.validation.kernels import KernelResult
from chinchilla_sim.validation.ledger import LedgerLine, PredictedRow
from chinchilla_sim.validation.memory_ledger import MemoryLine, memory_ledger
from chinchilla_sim.validation.simgrid import TOLERANCE, CaseResult
from chinchilla_sim.validation.zero_bubble import ScheduleResult, errors_by_schedule

LONGEST_ROW = 120


def simulated_table(rows: Sequence[tuple[str, Candidate]]) -> Table:
    """Given plans in the given order, each against the fastest."""
    fastest_s = min(candidate.step_s for _, candidate in rows)
    cells = []
    for name, candidate in rows:
        facts = candidate_facts(candidate)
        compared = "fastest" if candidate.step_s == fastest_s else versus(candidate.step_s, fastest_s, "step_time")
        row = [name, candidate.plan.describe(), str(len(candidate.plan.slots)), format_seconds(candidate.step_s), compared]
        row += [format_seconds(facts["exposed_communication_s"]), percent(facts["bubble_fraction"])]
        row += [format_bytes(facts["sent_bytes"]), format_bytes(facts["peak_memory_bytes"])]
        cells.append(tuple(row))
    headers = ("file", "plan", "ranks", "step time", "vs fastest", "exposed communication", "bubble", "sent per step", "peak memory")
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
    samples = [sample for sample in timeline.memory if sample.rank == rank]
    top = max(samples, key=lambda sample: sample.held_bytes)
    running = [span for span in timeline.spans_of(rank, "compute") if span.start_s <= top.time_s <= span.end_s]
    parts = candidate.pricing.held_parts(candidate.plan, rank)
    parts["activations"] = max(0.0, top.held_bytes - sum(parts.values()))
    during = running[-1].label if running else ""
    return {
        "peak_bytes": top.held_bytes,
        "time_s": top.time_s,
        "during": during,
        "parts": {name: size for name, size in parts.items() if size},
    }


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


def ledger_tables(
    predicted: Sequence[PredictedRow], lines: Sequence[LedgerLine], lost: tuple[int, float, float] | None
) -> tuple[Table, ...]:
    """Errors per source, and why rows were not predicted."""
    rows = []
    for line in lines:
        row = [line.source, str(line.scored), percent(line.mean), percent(line.median), percent(line.p90), f"{100 * line.bias:+.1f} %"]
        row += [f"{line.rank_correlation:.2f}", percent(line.inside), "" if line.memory is None else percent(line.memory)]
        rows.append(tuple(row))
    headers = ("source", "rows", "mean error", "median", "p90", "bias (median)", "rank correlation", "inside p5 to p95", "memory error")
    told = sum(one.prediction is not None for one in predicted)
    note = f"{told} of {len(predicted)} rows predicted; rows of quality C and failed runs are not scored"
    if lost:
        note += f"; regret in {lost[0]} groups of plans: {percent(lost[1])} mean, {percent(lost[2])} worst"
    tables = [Table("Published training steps, simulated out of the box", headers, tuple(rows), text_columns=(0,), note=note)]
    tables.append(memory_ledger_table(memory_ledger(predicted)))
    reasons = Counter(one.reason for one in predicted if one.reason)
    if reasons:
        tables.append(
            Table("Not predicted", ("rows", "because"), tuple((str(n), why) for why, n in reasons.most_common(12)), text_columns=(1,))
        )
    return tuple(tables)


def memory_ledger_table(lines: Sequence[MemoryLine]) -> Table:
    """Errors of peak memory, and plans by whether they were said to fit and did."""
    rows = []
    for line in lines:
        errors = ("", "", "") if line.mean is None else (percent(line.mean), f"{100 * (line.bias or 0.0):+.1f} %", f"{line.mean_gb:.1f} GB")
        counts = (line.fitting, line.missed, line.false_alarms, line.refused)
        rows.append((line.source, str(line.scored), *errors, *map(str, counts)))
    headers = (
        "source",
        "rows",
        "mean error",
        "bias (median)",
        "mean error",
        "fits, ran",
        "fits, out of memory",
        "no fit, ran",
        "no fit, out of memory",
    )
    note = "errors over all: sources weighted equally; quality C is not counted"
    return Table("Peak memory of published steps", headers, tuple(rows), text_columns=(0,), note=note)


def ledger_dict(
    predicted: Sequence[PredictedRow],
    lines: Sequence[LedgerLine],
    lost: tuple[int, float, float] | None,
    fits: Sequence[SourceFit] = (),
) -> dict[str, Any]:
    """JSON-ready ledger."""
    found: dict[str, Any] = {"rows": len(predicted), "predicted": sum(one.prediction is not None for one in predicted)}
    found["sources"] = [asdict(line) for line in lines]
    found["memory"] = [asdict(line) for line in memory_ledger(predicted)]
    if fits:
        found["calibrated"] = [asdict(fit) for fit in fits]
    return found | ({"regret": {"groups": lost[0], "mean": lost[1], "worst": lost[2]}} if lost else {})


def fits_table(fits: Sequence[SourceFit]) -> Table:
    """Errors on rows that a fit has not seen, and its constants."""
    rows = []
    for fit in fits:
        row = [fit.source, str(fit.fitted_rows), str(fit.scored_rows), percent(fit.shipped_error), percent(fit.fitted_error)]
        constants = fit.constants
        row += [f"{constants.sustained_share:.2f}", f"{constants.streaming_share:.2f}", f"{constants.link_efficiency:.2f}"]
        rows.append((*row, *map(format_seconds, (constants.host_launch_s, constants.host_microbatch_s, constants.step_fixed_s))))
    headers = (
        "source",
        "fitted to",
        "scored on",
        "shipped",
        "fitted",
        "speed of products",
        "of other kernels",
        "of links",
        "host launch",
        "host per microbatch",
        "per step",
    )
    return Table("Calibrated to some rows of each source", headers, tuple(rows), text_columns=(0,))


def kernels_table(result: KernelResult) -> Table:
    """Errors on measured products, and the constants of the new fit."""
    shipped = "no curve" if result.shipped_error is None else percent(result.shipped_error)
    rows = [("products", str(result.rows)), ("mean error of the catalogue's curve", shipped)]
    rows.append(("mean error of fits on products left out", percent(result.cross_validated_error)))
    rows += [(name, f"{value:.4g}") for name, value in asdict(result.fitted).items()]
    return Table("Matrix products", ("what", "value"), tuple(rows), text_columns=(0,))


def kernels_dict(result: KernelResult) -> dict[str, Any]:
    """JSON-ready."""
    return asdict(result)


COLLECTIVE_ERRORS = ("simulated_error", "formula_error", "left_out_error")


def collectives_tables(result: CollectiveResult) -> tuple[Table, ...]:
    """Errors by operation and number of ranks, their means, and what was not used."""
    rows = []
    for line in result.lines:
        series = line.series
        name = " ".join(part for part in (series.device, series.version) if part)
        errors = [getattr(line, error) for error in COLLECTIVE_ERRORS]
        rows.append((name, series.kind, str(series.nodes), str(series.ranks), str(line.rows), *map(_share, errors)))
    rows.append(
        (
            "all, weighted equally",
            "",
            "",
            "",
            str(sum(line.rows for line in result.lines)),
            *map(_share, map(result.mean, COLLECTIVE_ERRORS)),
        )
    )
    headers = (
        "measured on",
        "operation",
        "nodes",
        "ranks",
        "rows",
        "mean error",
        "of the formula alone",
        "of thinned tables on sizes left out",
    )
    whole = Table("Collectives", headers, tuple(rows), text_columns=(0, 1))
    unused = tuple((str(count), reason) for reason, count in sorted(result.unused.items()))
    return (whole, Table("Not used", ("rows", "because"), unused, text_columns=(1,))) if unused else (whole,)


def _share(error: float | None) -> str:
    return "" if error is None else percent(error)


def collectives_dict(result: CollectiveResult) -> dict[str, Any]:
    """JSON-ready; `thinned` are (payload bytes, seconds) as the catalogue takes them."""
    lines = [asdict(line.series) | {key: value for key, value in asdict(line).items() if key != "series"} for line in result.lines]
    return {"lines": lines, "mean": {name: result.mean(name) for name in COLLECTIVE_ERRORS}, "unused": result.unused}


def schedules_tables(results: Sequence[ScheduleResult]) -> tuple[Table, Table]:
    """Every profiled row, and the errors by schedule."""
    rows = []
    for r in results:
        row = [r.model, r.schedule, str(r.ranks), str(r.microbatches), format_seconds(r.simulated_s)]
        row += [format_seconds(r.measured_s) if r.measured_s else "", "" if r.error is None else f"{100 * r.error:+.1f} %"]
        row += [percent(r.bubble), "" if r.published_bubble is None else percent(r.published_bubble)]
        rows.append(tuple(row))
    headers = ("model", "schedule", "ranks", "microbatches", "simulated", "measured", "error", "bubble", "bubble by the authors")
    errors = []
    for schedule, found in errors_by_schedule(list(results)).items():
        absolute = [abs(error) for error in found]
        cells = (f"{100 * sum(found) / len(found):+.1f} %", percent(sum(absolute) / len(absolute)), percent(max(absolute)))
        errors.append((schedule, str(len(found)), *cells))
    names = ("schedule", "measured rows", "mean error", "mean absolute error", "largest")
    note = "optimizer, gradient norm and jitter are not in the profiles: simulated steps are too short by what they take"
    whole = Table("Profiled pipeline stages", headers, tuple(rows), text_columns=(0, 1))
    return whole, Table("Error by schedule", names, tuple(errors), text_columns=(0,), note=note)


def schedules_dict(results: Sequence[ScheduleResult]) -> dict[str, Any]:
    """JSON-ready rows and mean absolute errors."""
    errors = {name: sum(map(abs, found)) / len(found) for name, found in errors_by_schedule(list(results)).items()}
    return {"rows": [asdict(result) | {"error": result.error} for result in results], "mean_absolute_error": errors}


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
    note = f"step {drawn.timeline.step_s:g} s, {drawn.ideal_s:g} s without any bubble: {percent(max(0.0, bubble))} of the step is idle"
    return Table(drawn.plan.describe(), headers, tuple(rows), text_columns=(0, 3), note=note)


def schedule_dict(drawn: DrawnSchedule) -> dict[str, Any]:
    """JSON-ready rows, and what they take with equal stages."""
    facts = {"step_s": drawn.timeline.step_s, "ideal_s": drawn.ideal_s, "bubble_fraction": drawn.timeline.bubble_fraction}
    return {"schedule": drawn.plan.schedule, "rows": [row.split() for row in drawn.rows], **facts, "row_s": row_seconds(drawn.timeline)}


def figures_dict(figures: Sequence[Figure]) -> dict[str, Any]:
    """JSON-ready form of measured speeds."""
    fields = ("name", "value", "unit", "target", "reached")
    return {"figures": [{name: getattr(figure, name) for name in fields} for figure in figures]}


def speed_table(figures: Sequence[Figure], title: str = "Speed of the simulator on this machine") -> Table:
    """Measured speeds, with the targets of this project."""
    cells = []
    for figure in figures:
        value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.2f}"
        target = "" if figure.target is None else f"{'<=' if figure.at_most else '>='} {figure.target:,.0f}"
        cells.append((figure.name, value, figure.unit, target, {None: "", True: "yes", False: "no"}[figure.reached]))
    return Table(title, ("what", "measured", "unit", "target", "reached"), tuple(cells), text_columns=(0, 2))


def calibration_table(calibration: Calibration) -> Table:
    """Constants by number of busy ranks."""
    rows = []
    for count, device in sorted(calibration.devices.items()):
        row = [str(count), format_flop_per_s(device.flop_per_s), f"{format_bytes(device.memory_bandwidth_bytes_per_s)}/s"]
        row += [format_seconds(device.forward_launch_s), format_seconds(device.backward_launch_s)]
        row += [
            format_seconds(device.forward_fixed_s + device.backward_fixed_s),
            format_seconds(device.step_fixed_s),
            percent(calibration.fit_error[count]),
        ]
        rows.append(tuple(row))
    headers = ("busy ranks", "products", "memory", "forward kernel", "backward kernel", "per microbatch", "per step", "median fit error")
    link = f"{format_seconds(calibration.transfer_latency_s)} and {format_bandwidth(calibration.transfer_bandwidth_bytes_per_s)}"
    note = f"between two local ranks: {link}; {calibration.key.cpu}, torch {calibration.key.torch}, {calibration.date}"
    return Table("This machine", headers, tuple(rows), note=note)


def network_table(results: Sequence[CaseResult]) -> Table:
    """How far the finish times of each network case are from SimGrid's."""
    cells = tuple((result.case, f"{result.worst_relative_error:.2g}", "ok" if result.passed else "wrong") for result in results)
    failed = sum(not result.passed for result in results)
    note = f"{len(results) - failed} of {len(results)} cases within {TOLERANCE:g} of every finish time"
    return Table("Network cases", ("case", "worst relative error", "verdict"), cells, text_columns=(0, 2), note=note)


SHOWN_TASKS = 20


def profile_table(profile: Profile) -> Table:
    """The slowest measured tasks at the largest microbatch, and how steady all measurements were."""
    size = max(row.microbatch_size for row in profile.times)
    busy = max(row.busy_ranks for row in profile.times)
    rows = [row for row in profile.times if (row.microbatch_size, row.busy_ranks) == (size, busy)]
    slowest = sorted(rows, key=lambda row: (-(row.forward_s + row.backward_s), row.task))[:SHOWN_TASKS]
    cells = tuple((row.task, format_seconds(row.forward_s), format_seconds(row.backward_s), percent(row.spread)) for row in slowest)
    total = f"forward {format_seconds(sum(row.forward_s for row in rows))}, backward {format_seconds(sum(row.backward_s for row in rows))}"
    spread = percent(median(row.spread for row in profile.times))
    note = f"{len(rows)} tasks, microbatch {size}, {busy} busy ranks: {total}; median spread (p75 - p25) {spread}; {profile.source}"
    return Table("Slowest tasks", ("task", "forward", "backward", "spread"), cells, note=note)


_PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8")
_LISTED = {
    "devices": ("memory", "memory_bandwidth", "power", "node_link", "price", "source", "date"),
    "links": ("bandwidth", "latency", "source", "date"),
    "backends": ("header_factor", "rendezvous", "collective_hop", "collective_segment", "source", "date"),
}

_Entries = Mapping[str, Mapping[str, Mapping[str, Any]]]


def catalogue_tables(listed: _Entries) -> list[Table]:
    """One table per kind, one row per entry, figures as the file writes them."""
    tables = []
    for kind, entries in listed.items():
        peaks = _PRECISIONS if kind == "devices" else ()
        headers = (kind.removesuffix("s"), *peaks, *(key.replace("_", " ") for key in _LISTED[kind]))
        rows = [
            (name, *(entry["peak"].get(peak, NONE) for peak in peaks), *(_cell(entry.get(key, NONE)) for key in _LISTED[kind]))
            for name, entry in entries.items()
        ]
        texts = tuple(column for column, header in enumerate(headers) if column == 0 or header in ("node link", "source", "date"))
        tables.append(Table(f"{kind.capitalize()} of the catalogue", headers, tuple(rows), text_columns=texts))
    return tables


def entry_tables(name: str, found: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """All keys of the entries of one name; the title says what kind each is."""
    tables = []
    for kind, entry in found.items():
        what = f"curve of matrix products, {found['devices']['products']}'s" if kind == "products" else kind.removesuffix("s")
        tables.append(Table(f"{name}: {what}", ("key", "value"), tuple(_flat(entry)), text_columns=(0, 1)))
    return tables


def catalogue_dict(listed: _Entries) -> dict[str, Any]:
    """The entries by kind and name, in base units."""
    return {kind: {name: in_base_units(entry) for name, entry in entries.items()} for kind, entries in listed.items()}


def _flat(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        pair
        for key, value in entry.items()
        for pair in ([(f"{key} {part}", text) for part, text in value.items()] if isinstance(value, Mapping) else [(key, _cell(value))])
    ]


def _cell(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
