"""The judge of plans under load: every simulated plan must carry the arrivals, and in time.

A plan that saturates, or whose 95th percentile of latency is above [search] maximum_latency, is no candidate. With objective "latency" the
95th percentile is minimised, and no request of a plan is answered before a batch of one has passed its stages: that is the plan's bound.
Cost and energy are those of the devices in use while the requests of a global batch arrive: devices that wait are rented, and powered, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from chinchilla_sim.errors import NoFeasiblePlanError
from chinchilla_sim.planner.accuracy_rule import AccuracyRule
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.selection.judge import Judge, Progress, Simulate, Stop
from chinchilla_sim.planner.serving import Load, Serve, Serving, Tandem, tandems_of
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.units import format_requests_per_s, format_seconds, plain_number


class ServedJudge(Judge):
    """A judge that also asks how plans answer a load; `refused` are those that do not carry it, or not in time."""

    def __init__(
        self,
        pricer: Pricer,
        search: SearchSpec,
        simulate: Simulate,
        serve: Serve,
        load: Load,
        progress: Progress | None = None,
        stop: Stop | None = None,
        accuracy: AccuracyRule | None = None,
    ) -> None:
        super().__init__(pricer, search, simulate, progress, stop, accuracy)
        self.serve, self.load, self.by_latency = serve, load, search.objective == "latency"
        self.refused: list[tuple[Serving, Plan]] = []
        self._tandems: dict[Plan, tuple[Tandem, ...]] = {}

    def best_of(
        self, plans: Iterable[Plan | None], below: float = np.inf, limited: bool = True, most: int | None = None
    ) -> Candidate | None:
        """The best of some plans that carry the load."""
        best = super().best_of(plans, below, limited, most)
        return best if best and best.objective < np.inf else None

    def objective(self, step_s: float, slots: Sequence[int], plan: Plan | None = None) -> float:
        """What is minimised; money and energy do not depend on the step."""
        if self.search.objective in ("step_time", "latency"):
            return step_s
        return super().objective(self.pricer.job.global_batch_size / self.load.arrivals_per_s, slots)

    def objective_of(self, candidate: Candidate) -> float:
        """What is minimised, of a plan that another search simulated."""
        return candidate.serving.p95_s if self.by_latency and candidate.serving else super().objective_of(candidate)

    def _bounded(self, plan: Plan, limited: bool = True) -> tuple[float, Pricing] | None:
        priced = super()._bounded(plan, limited)
        if priced is None or not self.by_latency:
            return priced
        return min(tandem.traversal_s(1) for tandem in self._lines(plan)), priced[1]

    def _simulated(self, plan: Plan, pricing: Pricing, limited: bool = True) -> Candidate | None:
        """What does not carry the load is worse than anything that does."""
        least = self.least
        candidate = super()._simulated(plan, pricing, limited)
        if candidate is None:
            return None
        serving = self.serve(self._lines(plan), self.load)
        objective = serving.p95_s if self.by_latency else candidate.objective
        if overloaded(serving, self.search.maximum_latency_s):
            self.refused.append((serving, plan))
            objective = np.inf
        self.least = min(least, objective) if limited else least
        served = replace(candidate, serving=serving, objective=objective)
        self.seen[-1:] = [served] if objective < np.inf else []
        return served

    def _lines(self, plan: Plan) -> tuple[Tandem, ...]:
        if plan not in self._tandems:
            self._tandems[plan] = tandems_of(plan, self.pricer)
        return self._tandems[plan]

    def refusal(self) -> NoFeasiblePlanError:
        """Why the plan that comes nearest does not carry the load, and by how much."""
        serving, plan = min(
            self.refused, key=lambda row: (row[0].saturated, row[0].load if row[0].saturated else row[0].p95_s, row[1].describe())
        )
        who = f"the {'largest' if serving.saturated else 'nearest'} plan ({plan.describe()})"
        return NoFeasiblePlanError(*overload_of(serving, self.search.maximum_latency_s, who))


def overloaded(serving: Serving, maximum_latency_s: float | None) -> bool:
    """Whether a plan saturates, or answers too late."""
    return serving.saturated or serving.p95_s > (maximum_latency_s or np.inf)


def overload_of(serving: Serving, maximum_latency_s: float | None, who: str) -> tuple[str, str, str]:
    """Which constraint a plan that does not carry its load breaks, by how much, and what would help."""
    cure = "use more or faster devices, a larger global_batch_size (larger batches), or fewer requests"
    if serving.saturated:
        rate, capacity = (format_requests_per_s(value) for value in (serving.arrivals_per_s, serving.capacity_per_s))
        return "job.arrival_rate", f"{rate} arrive, {plain_number(serving.load)} times the {capacity} that {who} can answer", cure
    excess_s = serving.p95_s - (maximum_latency_s or 0.0)
    what = f"{who} answers 95 % of the requests within {format_seconds(serving.p95_s)}, {format_seconds(excess_s)} too late"
    return "search.maximum_latency", what, f"allow more, or {cure}"
