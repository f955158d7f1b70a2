"""The answer in one sentence, and the words that compare two plans."""

from __future__ import annotations

from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import NOT_STATED
from chinchilla_sim.units import format_joule, format_requests_per_s, format_seconds, format_usd

_SUPERLATIVE = {
    "step_time": "fastest",
    "cost": "cheapest",
    "energy": "most frugal",
    "latency": "most responsive",
    "time_to_accuracy": "soonest accurate",
}
_WORSE_BETTER = {
    "step_time": ("slower", "faster"),
    "cost": ("dearer", "cheaper"),
    "energy": ("hungrier", "more frugal"),
    "latency": ("slower", "faster"),
    "time_to_accuracy": ("slower", "faster"),
}
FORMAT_OBJECTIVE = {
    "step_time": format_seconds,
    "cost": format_usd,
    "energy": format_joule,
    "latency": format_seconds,
    "time_to_accuracy": format_seconds,
}


def answer(study: Study) -> str:
    """The answer in one sentence: the plan, its step, and how the best alternative and one rank alone compare with it."""
    search, objective = study.search, study.scenario.search.objective
    best, alone = search.best, search.one_rank
    priced = objective in ("cost", "energy") and best.objective
    own_price = f", {FORMAT_OBJECTIVE[objective](best.objective)} per {counted_by(best)}" if priced else ""
    if best.serving:
        own_price += f", 95 % of {format_requests_per_s(best.serving.arrivals_per_s)} answered within {format_seconds(best.serving.p95_s)}"
    if objective == "time_to_accuracy" and best.forecast:
        own_price += f", {format_seconds(best.objective)} for the {best.forecast.steps:.0f} steps to the target (measured)"
    step = f"{format_seconds(best.step_s)} per step (simulated){own_price}"
    parts = [f"The {_SUPERLATIVE[objective]} plan found is {best.title}: {step}"]
    alternative = search.runner_ups[0] if search.runner_ups else None
    if alternative:
        name = "one rank alone" if len(alternative.plan.slots) == 1 else alternative.title
        parts.append(f"the best alternative, {name}, is {_compared(alternative, best, objective)}")
    else:
        parts.append("no plan of another split is reported")
    if alone is None:
        parts.append(no_one_rank(search))
    elif len(best.plan.slots) > 1 and alone is not alternative:
        # Were it allowed it would have been chosen: the objective says so.
        beyond = search.limits and not search.limits.hold(alone.plan.slots, alone.step_s)
        excluded = "is beyond the limits" if beyond else "this search excludes"
        name = f"but one rank alone, which {excluded}," if alone.objective < best.objective else "one rank alone"
        own = alone.objective if objective == "latency" else alone.step_s
        parts.append(f"{name} is {_compared(alone, best, objective)} ({format_seconds(own)})")
    return "; ".join(parts) + "."


def counted_by(best: Candidate) -> str:
    """What money and energy are counted by: under load the devices run however long a step takes."""
    return f"{best.plan.global_batch_size} requests" if best.serving else "step"


def no_one_rank(search: SearchResult) -> str:
    """Why there is no plan of one rank to compare with."""
    return f"one rank alone does not {'carry the load, or does not ' if search.best.serving else ''}fit into memory"


def _compared(candidate: Candidate, best: Candidate, objective: str) -> str:
    if objective == "latency":
        return f"{versus(candidate.objective, best.objective, objective)} at the 95th percentile"
    if objective == "time_to_accuracy":
        return f"{versus(candidate.objective, best.objective, objective)} to the target"
    step = versus(candidate.step_s, best.step_s, "step_time")
    return step if objective == "step_time" else f"{versus(candidate.objective, best.objective, objective)} and {step}"


def against_chosen(candidate: Candidate, best: Candidate, objective: str) -> str:
    """What is minimised, compared with the chosen plan; the step where that is worth nothing (no price)."""
    if best.objective and candidate.objective:
        return versus(candidate.objective, best.objective, objective)
    return versus(candidate.step_s, best.step_s, "step_time")


def versus(value: float, chosen: float, objective: str) -> str:
    """A value beside that of the chosen plan.

    >>> versus(3.0, 2.0, "step_time"), versus(1.0, 2.0, "cost"), versus(2.0, 2.0, "energy")
    ('1.50x slower', '2.00x cheaper', 'equal')
    """
    if value == chosen:
        return "equal"
    if value <= 0 or chosen <= 0:
        return NOT_STATED
    worse, better = _WORSE_BETTER[objective]
    ratio, word = (value / chosen, worse) if value > chosen else (chosen / value, better)
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x {word}"
