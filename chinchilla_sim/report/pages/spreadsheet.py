"""The plans of a report as CSV: one row for each, amounts in base units, for spreadsheets."""

from __future__ import annotations

import csv
import io
from math import isfinite
from typing import Any

from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.selection.front import weigh
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.alternatives import reasons
from chinchilla_sim.report.tables.front import shown_front
from chinchilla_sim.report.tables.plans import candidate_facts, listed_candidates


def render_csv(study: Study) -> str:
    """The chosen plan, the best of other splits, one rank alone, and the front, each once; empty cells are not stated."""
    best = study.search.best
    listed = [candidate for _, candidate in listed_candidates(study.search)]
    listed += [member.candidate for member in shown_front(study) if all(member.candidate is not one for one in listed)]
    rows = [_row(study, candidate, candidate is best) for candidate in listed]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(study: Study, candidate: Candidate, chosen: bool) -> dict[str, Any]:
    point = weigh(candidate, study.cluster, study.scenario.job, study.scenario.search)
    intensity = study.cluster.grid_kg_per_joule
    carbon = None if intensity is None or point.step_joule is None else point.step_joule * intensity
    facts = candidate_facts(candidate)
    amounts = {
        "step_s": candidate.step_s,
        "step_usd": point.step_usd,
        "step_joule": point.step_joule,
        "step_kg_co2": carbon,
        **facts,
        "memory_headroom": point.headroom,
        "p95_s": candidate.serving.p95_s if candidate.serving and not candidate.serving.saturated else None,
    }
    cells = {name: "" if value is None or not isfinite(value) else f"{value:.9g}" for name, value in amounts.items()}
    why = "chosen" if chosen else "; ".join(reasons(study, candidate))
    front = any(member.candidate is candidate for member in study.search.front)
    return {"plan": candidate.title, "ranks": len(candidate.plan.slots), "on_front": "yes" if front else "no", **cells, "why": why}
