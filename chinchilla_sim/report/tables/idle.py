"""Why ranks are idle in a step: seconds by what they wait for."""

from __future__ import annotations

from typing import Any

from chinchilla_sim.report.table import Table, percent
from chinchilla_sim.timeline import Timeline, Wait, WaitKind
from chinchilla_sim.units import format_seconds

WAITS: dict[WaitKind, str] = {
    "peer": "another rank",
    "transfer": "data on the way",
    "collective": "a collective",
    "end": "the end",
    "unknown": "any (measured)",
}


def idle_table(timeline: Timeline) -> Table | None:
    """One row for each cause: its share of all ranks' time, the rank that has most of it, and the longest single wait."""
    rows = []
    for kind, by_rank in idle_s(timeline).items():
        worst = max(by_rank, key=lambda rank: (by_rank[rank], -rank))
        waits = [wait for wait in timeline.waits if wait.kind == kind]
        longest = max(waits, key=lambda wait: (wait.end_s - wait.start_s, -wait.rank))
        share = sum(by_rank[timeline.played_by(rank)] for rank in range(timeline.rank_count) if timeline.played_by(rank) in by_rank)
        share /= timeline.rank_count * (timeline.makespan_s or 1.0)
        row = [WAITS[kind], percent(share), str(worst), format_seconds(by_rank[worst])]
        rows.append((*row, format_seconds(longest.end_s - longest.start_s), _words(longest)))
    if not rows:
        return None
    headers = ("waits for", "of all ranks' time", "worst rank", "its idle time", "longest wait", "what that is")
    note = "of the simulated step; what each moment waits for stands in trace.json"
    return Table("Idle time by cause", headers, tuple(rows), text_columns=(0, 5), note=note)


def idle_s(timeline: Timeline) -> dict[WaitKind, dict[int, float]]:
    """Idle seconds by cause and played rank, causes in the order of `WAITS`, without those that do not occur."""
    found: dict[WaitKind, dict[int, float]] = {kind: {} for kind in WAITS}
    for wait in timeline.waits:
        by_rank = found[wait.kind]
        by_rank[wait.rank] = by_rank.get(wait.rank, 0.0) + wait.end_s - wait.start_s
    return {kind: by_rank for kind, by_rank in found.items() if by_rank}


def idle_dict(timeline: Timeline) -> dict[str, Any]:
    """JSON-ready: idle seconds by cause and rank."""
    return {"idle_s": {kind: {str(rank): seconds for rank, seconds in by_rank.items()} for kind, by_rank in idle_s(timeline).items()}}


def _words(wait: Wait) -> str:
    return f"rank {wait.rank}: {wait.cause}"
