"""Why each alternative loses against the chosen plan, in words and figures."""

from __future__ import annotations

from typing import Any

from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import Table
from chinchilla_sim.report.tables.plans import exposed_s, listed_candidates
from chinchilla_sim.report.verdict import against_chosen, versus
from chinchilla_sim.units import format_seconds, format_usd

WORTH_TELLING = 0.05
"""Differences below this share of the chosen plan's step are left out."""
PARTS = ("computes", "waits for data on the wire", "waits for other ranks")


def why_table(study: Study) -> Table | None:
    """One row for each plan that was not chosen: how it compares, and what makes it so; none where there is no other plan."""
    objective = study.scenario.search.objective
    best = study.search.best
    rows = [
        (name, against_chosen(candidate, best, objective), "; ".join(reasons(study, candidate)))
        for name, candidate in listed_candidates(study.search)
        if candidate is not best
    ]
    if not rows:
        return None
    note = "seconds are of the busiest rank, against those of the chosen plan's busiest rank"
    return Table("Why the others lose", ("plan", "vs chosen", "because"), tuple(rows), text_columns=(0, 1, 2), note=note)


def reasons(study: Study, candidate: Candidate) -> list[str]:
    """What a plan does worse than the chosen one, the most first; then what it does better, and what forbids it."""
    best = study.search.best
    told = []
    if candidate.objective < best.objective or (candidate.objective == best.objective and candidate.step_s < best.step_s):
        told.append(_forbidden(study, candidate))
    mine, theirs = parts_s(best), parts_s(candidate)
    changes = sorted(((theirs[part] - mine[part], part) for part in PARTS), reverse=True)
    least = WORTH_TELLING * best.step_s
    told += [f"{part} {format_seconds(change)} longer" for change, part in changes if change > least]
    told += [f"{part} {format_seconds(-change)} less" for change, part in reversed(changes) if change < -least]
    told += _rent_words(study, candidate)
    told += _serving_words(candidate, best)
    return told or ["hardly differs"]


def parts_s(candidate: Candidate) -> dict[str, float]:
    """Seconds of the step on the busiest rank: computing, waiting for data on the wire, and for other ranks."""
    timeline = candidate.timeline
    rank = max(timeline.played_ranks, key=lambda rank: (timeline.busy_s(rank), -rank))
    busy, exposed = timeline.busy_s(rank), exposed_s(timeline, rank)
    return dict(zip(PARTS, (busy, exposed, max(0.0, timeline.step_s - busy - exposed)), strict=True))


def _forbidden(study: Study, candidate: Candidate) -> str:
    limits, count = study.search.limits, len(candidate.plan.slots)
    if limits and not limits.hold(candidate.plan.slots, candidate.step_s):
        return "better, but beyond the limits of the scenario"
    if count < study.scenario.search.minimum_ranks:
        return f"better, but the scenario asks for at least {study.scenario.search.minimum_ranks} ranks"
    return "better, but not part of this search"


def _rent_words(study: Study, candidate: Candidate) -> list[str]:
    """What its devices cost by the hour, where that is what is minimised."""
    if study.scenario.search.objective != "cost":
        return []
    mine, theirs = (sum(study.cluster.device(slot).usd_per_s for slot in one.plan.slots) for one in (study.search.best, candidate))
    if mine == theirs:
        return []
    return [f"its {len(candidate.plan.slots)} devices are listed at {format_usd(3600 * theirs)} per hour, not {format_usd(3600 * mine)}"]


def _serving_words(candidate: Candidate, best: Candidate) -> list[str]:
    """What a load of requests makes of it."""
    mine, theirs = best.serving, candidate.serving
    if mine is None or theirs is None:
        return []
    if theirs.saturated:
        return ["does not carry the load"]
    return [f"95 % of the requests answered within {format_seconds(theirs.p95_s)} ({versus(theirs.p95_s, mine.p95_s, 'latency')})"]


def why_dict(study: Study) -> dict[str, Any]:
    """JSON-ready: reasons by plan."""
    best = study.search.best
    return {"why_not": {name: reasons(study, one) for name, one in listed_candidates(study.search) if one is not best}}
