"""The Pareto front of a search as a table and as JSON; `drawing/front_figure.py` draws it."""

from __future__ import annotations

from typing import Any

from chinchilla_sim.planner.selection.front import FrontPlan, spread
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import NOT_STATED, Table, percent
from chinchilla_sim.report.verdict import versus
from chinchilla_sim.units import format_joule, format_seconds, format_usd


def shown_front(study: Study) -> tuple[FrontPlan, ...]:
    """The members that table, JSON and figure list, fastest first."""
    return spread(study.search.front, study.search.best)


def front_table(study: Study) -> Table:
    """One row per member: amounts per step, or of the whole job where its steps are stated."""
    members, steps, best = shown_front(study), study.scenario.job.total_steps, study.search.best
    scope = "per step" if steps is None else f"of {steps} steps"
    headers = ["no.", "plan", "ranks", "step time", "vs chosen"]
    headers += [] if steps is None else [f"time {scope}"]
    priced, powered = (
        any(value is not None for value in column) for column in zip(*((m.step_usd, m.step_joule) for m in members), strict=True)
    )
    headers += [f"price {scope}"] if priced else []
    headers += [f"energy {scope}"] if powered else []
    headers += ["memory left free", *(["limits"] if study.search.limits else [])]
    rows = []
    for number, member in enumerate(members, 1):
        row = [str(number), member.candidate.title, str(len(member.candidate.plan.slots)), format_seconds(member.step_s)]
        row.append("chosen" if member.candidate is best else versus(member.step_s, best.step_s, "step_time"))
        count = steps or 1
        row += [] if steps is None else [format_seconds(count * member.step_s)]
        row += [format_usd(count * member.step_usd) if member.step_usd else NOT_STATED] if priced else []
        row += [format_joule(count * member.step_joule) if member.step_joule else NOT_STATED] if powered else []
        row += [percent(member.headroom), *([_broken(study, member)] if study.search.limits else [])]
        rows.append(tuple(row))
    return Table("Trade-offs: no plan here is better than another in everything", tuple(headers), tuple(rows), (1,), _note(study))


def front_dict(study: Study) -> dict[str, Any]:
    """JSON-ready front: its size, and the members that are listed."""
    members = [
        {
            "describe": member.candidate.title,
            "rank_count": len(member.candidate.plan.slots),
            "chosen": member.candidate is study.search.best,
            "step_s": member.step_s,
            "step_usd": member.step_usd,
            "step_joule": member.step_joule,
            "memory_headroom": member.headroom,
            "within_limits": not _broken(study, member).startswith("beyond"),
        }
        for member in shown_front(study)
    ]
    return {"front": members, "front_size": len(study.search.front)}


def _broken(study: Study, member: FrontPlan) -> str:
    """Limits that a member is beyond."""
    limits, plan = study.search.limits, member.candidate.plan
    broken = [use.limit.key.replace("_", " ") for use in limits.uses(plan.slots, member.step_s) if not use.holds] if limits else []
    return f"beyond the {' and '.join(broken)}" if broken else "within"


def _note(study: Study) -> str:
    count, total = len(shown_front(study)), len(study.search.front)
    some = f"{count} of {total} such plans; " if count < total else ""
    return f"{some}{study.search.simulated} plans were simulated; memory left free: of the fullest rank"
