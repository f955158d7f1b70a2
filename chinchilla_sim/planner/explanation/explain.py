"""Why this plan: what its step is made of, and what the runners-up would take."""

from __future__ import annotations

from math import isfinite

from chinchilla_sim.planner.accuracy_rule import AccuracyRule, Forecast
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.planner.selection.limits import use_words
from chinchilla_sim.units import format_bytes, format_seconds


def explain_choice(search: SearchResult) -> tuple[str, ...]:
    """A few sentences for people, the most telling first."""
    best = search.best
    lines = [_composition(best)]
    if search.one_rank and search.one_rank.plan != best.plan:
        lines.append(_against_one_rank(best, search.one_rank))
    lines += [_against(best, other) for other in search.runner_ups if len(other.plan.slots) > 1]
    lines.append(
        f"The best of {search.considered} priced plans ({search.infeasible} do not fit or cannot be cut) of {search.screened} "
        f"configurations; {search.simulated} were simulated{', until it was cut off' if search.truncated else ''}."
    )
    lines.append(f"Lower bound: {gap_words(search)}.")
    if search.limits:
        lines.append(f"Limits: {limits_words(search)}.")
    if search.accuracy:
        lines.append(f"Accuracy: {accuracy_words(search.accuracy, search.best.forecast, search.best.step_s)}.")
    return tuple(lines)


def accuracy_words(rule: AccuracyRule, forecast: Forecast | None, step_s: float) -> str:
    """What a plan is to do to accuracy and steps, and where that is known from."""
    words = [forecast_words(forecast, step_s)] if forecast else []
    return "; ".join([*words, *rule.notes()])


def forecast_words(forecast: Forecast, step_s: float) -> str:
    """What a plan changes, what that does to accuracy with its interval, and its steps to the target with the time that they take.

    >>> forecast_words(Forecast((), None, None, None), 0.1)
    'the plan changes nothing about the job'
    """
    changed = f"the plan changes {' and '.join(forecast.changes)}" if forecast.changes else "the plan changes nothing about the job"
    drop, ratio, steps = forecast.drop, forecast.ratio, forecast.steps
    parts = [changed]
    if forecast.changes:
        parts.append(
            f"accuracy changes by {-100 * drop.estimate:+.2f} % ({-100 * drop.high:+.2f} to {-100 * drop.low:+.2f} %)"
            if drop
            else "what that does to accuracy was not measured here"
        )
    if steps is not None and ratio is not None:
        times = f"{ratio.estimate:.3f} times those as it is, {ratio.low:.3f} to {ratio.high:.3f}; " if forecast.changes else ""
        whole = f"{steps:.0f} steps to the target ({times}{format_seconds(step_s)} x {steps:.0f} = {format_seconds(step_s * steps)})"
        parts.append(whole if isfinite(steps) else "it does not reach the target")
    return ", ".join(parts)


def limits_words(search: SearchResult) -> str:
    """What the chosen plan takes of every limit, and how many plans take too much."""
    assert search.limits
    uses = search.limits.uses(search.best.plan.slots, search.best.step_s)
    return f"{'; '.join(map(use_words, uses))}; {search.beyond} of the priced plans are beyond"


def gap_words(search: SearchResult) -> str:
    """What no plan of the space can beat, however its stages are cut, and how near the chosen one is."""
    space = "stated space, within the limits or beyond," if search.limits else "stated space"
    bound = f"no plan of the {space} takes less than {format_seconds(search.lower_bound_s)} a step"
    if search.gap is None:
        return bound
    return f"{bound}; the chosen one is within {100 * search.gap:.1f} % of the least that any can reach"


def _composition(candidate: Candidate) -> str:
    timeline = candidate.timeline
    busiest = max(range(timeline.rank_count), key=timeline.busy_s)
    exposed_s = timeline.exposed_communication_s(busiest)
    waiting_s = max(0.0, timeline.step_s - timeline.busy_s(busiest) - exposed_s)
    return (
        f"{candidate.title}: a step takes {format_seconds(timeline.step_s)}; its busiest rank ({busiest}) computes "
        f"{format_seconds(timeline.busy_s(busiest))}, waits {format_seconds(exposed_s)} for data on the wire "
        f"and {format_seconds(waiting_s)} for other ranks."
    )


def _against_one_rank(best: Candidate, alone: Candidate) -> str:
    if alone.step_s <= best.step_s:
        return (
            f"One rank alone would be faster: {format_seconds(alone.step_s)}, {best.step_s / alone.step_s:.2f} times as fast. "
            "The network is too small to split over these links; the scenario asks for more ranks."
        )
    return f"One rank alone would take {format_seconds(alone.step_s)}, {alone.step_s / best.step_s:.2f} times as long."


def _against(best: Candidate, other: Candidate) -> str:
    timeline = other.timeline
    ranks = range(timeline.rank_count)
    exposed_s = max(timeline.exposed_communication_s(rank) for rank in ranks)
    sent = sum(timeline.sent_bytes(rank) for rank in ranks)
    ratio = f"{other.objective / best.objective:.2f} times the objective" if best.objective else "no cheaper"
    return (
        f"{other.title} would take {format_seconds(other.step_s)} ({ratio}): "
        f"it sends {format_bytes(sent)} a step, of which {format_seconds(exposed_s)} are not hidden behind computation."
    )
