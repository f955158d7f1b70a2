"""What requests meet: the table of plans under load."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.planner.serving import WARM_UP, Serving
from chinchilla_sim.report.table import NONE, Table, percent, signed_percent
from chinchilla_sim.report.tables.plans import listed_candidates
from chinchilla_sim.units import format_requests_per_s, format_seconds
from chinchilla_sim.validation.served import ServedComparison, relative_error

RULE = (
    "from arrival to answer; Poisson arrivals, simulated; a free replica takes all that wait, up to a full microbatch, and waits for no "
    "more; busy: busiest station of a replica, of all time"
)
CLOSED_RULE = RULE.replace("Poisson arrivals, simulated", "each answer brings the next request, simulated")


def serving_tables(search: SearchResult) -> list[Table]:
    """The candidates under the load of the job; none where no load is stated."""
    if search.best.serving is None:
        return []
    note = f"; {search.overloaded} simulated plans saturate or are too late" if search.overloaded else ""
    return [requests_table(listed_candidates(search), RULE + note)]


def requests_table(listed: Sequence[tuple[str, Candidate]], note: str = "") -> Table:
    """Quantiles of latency, throughput and utilization of named plans under load."""
    served = [(name, candidate.serving) for name, candidate in listed if candidate.serving]
    rate = _demand(served[0][1]) if served else "0 requests/s"
    note = note or (CLOSED_RULE if served and served[0][1].concurrency else RULE)
    headers = ("plan", "p50", "p95", "p99", "mean", "answered", "capacity", "busy", "mean batch")
    return Table(f"Latency of {rate}", headers, tuple((name, *_cells(serving)) for name, serving in served), note=note)


def served_tables(comparison: ServedComparison) -> list[Table]:
    """Simulated and measured requests, and the stages behind them."""
    pairs = comparison.simulated, comparison.measured
    rows = []
    for name, key, form in _FIGURES:
        simulated, measured = (float(getattr(serving, key)) for serving in pairs)
        rows.append((name, form(simulated), form(measured), _error(simulated, measured)))
    headers = ("", "simulated", "measured", "relative error")
    count = (
        f"{comparison.request_count} requests with the same arrivals"
        if not pairs[0].concurrency
        else f"{comparison.request_count} requests"
    )
    note = f"{count}, the first {WARM_UP:.0%} not counted; relative error = (simulated - measured) / measured"
    if comparison.fixed_sizes:
        sizes = ", ".join(map(str, comparison.fixed_sizes))
        note += f"; torch.export fixes this model's batch: batches were filled up to the next of {sizes}"
    stages = [
        (str(row.stage), format_seconds(row.simulated_s), format_seconds(row.measured_s), _error(row.simulated_s, row.measured_s))
        for row in comparison.stages
    ]
    return [
        Table(f"Simulated and measured latency of {_demand(pairs[1])}", headers, tuple(rows), note=note),
        Table("One batch in each stage (mean of the batches that came)", ("stage", *headers[1:]), tuple(stages), text_columns=(0,)),
    ]


def _error(simulated: float, measured: float) -> str:
    return signed_percent(relative_error(simulated, measured)) if measured else NONE


def _demand(serving: Serving) -> str:
    if serving.concurrency is not None:
        return f"{serving.concurrency} requests that are always under way"
    return format_requests_per_s(serving.arrivals_per_s)


_FIGURES: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("p50", "p50_s", format_seconds),
    ("p95", "p95_s", format_seconds),
    ("p99", "p99_s", format_seconds),
    ("mean", "mean_s", format_seconds),
    ("answered", "throughput_per_s", format_requests_per_s),
    ("busy", "utilization", percent),
    ("mean batch", "batch_size", lambda value: f"{value:.2f}"),
)


def _cells(serving: Serving) -> tuple[str, ...]:
    capacity = format_requests_per_s(serving.capacity_per_s)
    if serving.saturated:
        return ("saturated", *[NONE] * 4, capacity, *[NONE] * 2)
    times = (serving.p50_s, serving.p95_s, serving.p99_s, serving.mean_s)
    answered = format_requests_per_s(serving.throughput_per_s)
    return (*map(format_seconds, times), answered, capacity, percent(serving.utilization), f"{serving.batch_size:.1f}")
