"""The result of a search as JSON-ready data."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.report.pages.provenance import provenance_dict
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.alternatives import why_dict
from chinchilla_sim.report.tables.front import front_dict
from chinchilla_sim.report.tables.idle import idle_dict
from chinchilla_sim.report.tables.plans import candidate_facts
from chinchilla_sim.report.tables.reasons import explanation_dict
from chinchilla_sim.report.tables.traffic import traffic_dict


def search_dict(study: Study) -> dict[str, Any]:
    """JSON-ready result of a search, with comparison and metrics if the plan ran."""
    search, spent = study.search, study.step_expense
    found: dict[str, Any] = {
        "scenario": study.scenario.name,
        "question": study.scenario.question,
        "summary": study.search.best.title,
        "plan": asdict(study.plan),
        "simulated_step_s": search.best.step_s,
        "minimized": study.scenario.search.objective,
        "objective": search.best.objective,
        "candidates": [_candidate_dict(candidate) for candidate in (search.best, *search.runner_ups)],
        "one_rank": None if search.one_rank is None else _candidate_dict(search.one_rank),
        "lower_bound_s": search.lower_bound_s,
        "gap": search.gap,
        "truncated": search.truncated,
        "screened": search.screened,
        "considered": search.considered,
        "simulated": search.simulated,
        "infeasible": search.infeasible,
        "cost": {"step_usd": spent.usd, "step_joule": spent.joule, "step_kg_co2": spent.kg_co2} | _rent_dict(study) | _job_dict(study),
        "limits": _limits_dict(search),
        "ranks": [_rank_dict(study, rank) for rank in range(study.plan.rank_count)],
        "explanation": list(study.explanation),
    }
    if search.best.serving is not None:
        found |= {"serving": search.best.serving.to_dict(), "overloaded": search.overloaded}
    if search.accuracy is not None:
        found["accuracy"] = search.accuracy.to_dict()
    if study.comparison is not None:
        found |= {"measured_step_s": study.comparison.measured_step_s, "comparison": study.comparison.to_dict()}
    if study.measurement is not None:
        found["metrics"] = {name: value if isfinite(value) else None for name, value in study.measurement.metrics.items()}
    return found


def _job_dict(study: Study) -> dict[str, Any]:
    """Cost per sample, and of the whole job where its steps are stated."""
    spent, batch_size = study.step_expense, study.plan.global_batch_size
    each = spent.times(1 / batch_size)
    found: dict[str, Any] = {"sample_usd": each.usd, "sample_joule": each.joule, "sample_kg_co2": each.kg_co2, "job": None}
    steps = study.scenario.job.total_steps
    if steps is not None:
        whole = spent.times(steps)
        length = {"steps": steps, "samples": steps * batch_size, "time_s": steps * study.search.best.step_s * study.rent.wall_s_per_work_s}
        found["job"] = length | {"usd": whole.usd, "joule": whole.joule, "kg_co2": whole.kg_co2}
    return found


def _limits_dict(search: SearchResult) -> list[dict[str, Any]]:
    """Every limit, and what the chosen plan takes of it (seconds or USD)."""
    uses = search.limits.uses(search.best.plan.slots, search.best.step_s) if search.limits else ()
    return [{"key": use.limit.key, "most": use.limit.most, "value": use.value} for use in uses]


def _rent_dict(study: Study) -> dict[str, Any]:
    """What interruptions make of the cost, where spot prices are offered."""
    found = study.rent
    lost = {"between_interruptions_s": found.between_interruptions_s, "interval_s": found.interval_s} if found.on_spot else {}
    facts = {"on_spot": list(found.on_spot), "wall_s_per_work_s": found.wall_s_per_work_s, **lost}
    return facts if study.cluster.spot_offers else {}


def _rank_dict(study: Study, rank: int) -> dict[str, Any]:
    plan, slots = study.plan, study.plan.slots_of(rank)
    stages, replica = plan.position[rank]
    return {
        "rank": rank,
        "slots": [study.cluster.slots[slot] for slot in slots],
        "stages": list(stages),
        "replica": replica,
        "utilization": study.search.best.timeline.utilization(rank),
        "peak_memory_bytes": study.search.best.timeline.peak_memory_bytes(rank),
        "capacity_bytes": study.cluster.device(slots[0], len(plan.slots)).memory_bytes,
    }


def _candidate_dict(candidate: Candidate) -> dict[str, Any]:
    named = {"describe": candidate.title, "rank_count": len(candidate.plan.slots)}
    served = {"serving": candidate.serving.to_dict()} if candidate.serving else {}
    served |= {"accuracy": candidate.forecast.to_dict()} if candidate.forecast else {}
    return {**named, "step_s": candidate.step_s, "objective": candidate.objective, **candidate_facts(candidate), **served}


def report_dict(study: Study) -> dict[str, Any]:
    """All that a page shows, JSON-ready: the search with the front, traffic, idle time, sensitivity, reasons and provenance."""
    found = (
        search_dict(study) | front_dict(study) | traffic_dict(study) | idle_dict(study.timeline) | why_dict(study) | provenance_dict(study)
    )
    return found | ({"sensitivity": explanation_dict(study.sensitivity)} if study.sensitivity else {})
