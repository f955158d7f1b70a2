"""Tables of how far simulations are from what others measured: steps, products, collectives, schedules, network cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chinchilla_sim.report.table import Table, percent
from chinchilla_sim.units import format_seconds, plain_number
from chinchilla_sim.validation.collectives import CollectiveResult
from chinchilla_sim.validation.fitting import SourceFit
from chinchilla_sim.validation.kernels import KernelResult
from chinchilla_sim.validation.ledger import LedgerLine, PredictedRow
from chinchilla_sim.validation.memory_ledger import MemoryLine, memory_ledger
from chinchilla_sim.validation.simgrid import TOLERANCE, CaseResult
from chinchilla_sim.validation.zero_bubble import ScheduleResult, errors_by_schedule


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
    rows += [(name, plain_number(value, 4)) for name, value in asdict(result.fitted).items()]
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


def network_table(results: Sequence[CaseResult]) -> Table:
    """How far the finish times of each network case are from SimGrid's."""
    cells = tuple((result.case, f"{result.worst_relative_error:.2g}", "ok" if result.passed else "wrong") for result in results)
    failed = sum(not result.passed for result in results)
    note = f"{len(results) - failed} of {len(results)} cases within {TOLERANCE:g} of every finish time"
    return Table("Network cases", ("case", "worst relative error", "verdict"), cells, text_columns=(0, 2), note=note)
