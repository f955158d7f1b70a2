"""What requests meet: the table of plans under load."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.planner.candidate import Candidate, SearchResult
from chinchilla_sim.planner.serving import Serving
from chinchilla_sim.report.plans import listed_candidates
from chinchilla_sim.report.table import NONE, Table, percent
from chinchilla_sim.units import format_requests_per_s, format_seconds

RULE = (
    "from arrival to answer; Poisson arrivals, simulated; a free replica takes all that wait, up to a full microbatch, and waits for no "
    "more; busy: busiest station of a replica, of all time"
)


def serving_tables(search: SearchResult) -> list[Table]:
    """The candidates under the load of the job; none where no load is stated."""
    if search.best.serving is None:
        return []
    note = f"; {search.overloaded} simulated plans saturate or are too late" if search.overloaded else ""
    return [requests_table(listed_candidates(search), RULE + note)]


def requests_table(listed: Sequence[tuple[str, Candidate]], note: str = RULE) -> Table:
    """Quantiles of latency, throughput and utilization of named plans under load."""
    served = [(name, candidate.serving) for name, candidate in listed if candidate.serving]
    rate = format_requests_per_s(served[0][1].arrivals_per_s) if served else "0 requests/s"
    headers = ("plan", "p50", "p95", "p99", "mean", "answered", "capacity", "busy", "mean batch")
    return Table(f"Latency of {rate}", headers, tuple((name, *_cells(serving)) for name, serving in served), note=note)


def _cells(serving: Serving) -> tuple[str, ...]:
    capacity = format_requests_per_s(serving.capacity_per_s)
    if serving.saturated:
        return ("saturated", *[NONE] * 4, capacity, *[NONE] * 2)
    times = (serving.p50_s, serving.p95_s, serving.p99_s, serving.mean_s)
    answered = format_requests_per_s(serving.throughput_per_s)
    return (*map(format_seconds, times), answered, capacity, percent(serving.utilization), f"{serving.batch_size:.1f}")
