"""Plans before the judge: what they need, what they take at least, and what the simulator says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.money import expense
from chinchilla_sim.cost.rent import rent
from chinchilla_sim.planner.accuracy_rule import TIME_TO_ACCURACY, AccuracyRule
from chinchilla_sim.planner.drafting.placement import distinct_replicas
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import Program, folds, lower, passes_of
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.selection.limits import limits_of
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.units import format_bytes

Simulate = Callable[[Program, Pricing, Cluster], Timeline]
Stop = Callable[[], bool]
"""Whether a search is to end with the best plan so far: the time is over, or the user has seen enough."""

NEAR = 0.25
"""Plans that take so much more than a limit allows may hold it after a local search."""


class Progress(Protocol):
    """Hears how far a long work is: steps done, all steps, and how much more than the lower bound the best so far takes, as a share."""

    def __call__(self, done: int, total: int, gap: float | None = None) -> None: ...


class Judge:
    """Prices, bounds and simulates plans of one search, and counts them; `least` is the best objective so far.

    Plans that cannot beat a limit by their bound are not simulated; those that do not fit into memory leave their shortfall. Those
    that fit, but take more than the `limits` of the scenario, are counted as `beyond`; of each split the best that takes only a little
    more is kept in `near_misses`. `seen` are all that were simulated; `inaccurate` are the changes of plans that `accuracy` refuses.
    """

    def __init__(
        self,
        pricer: Pricer,
        search: SearchSpec,
        simulate: Simulate,
        progress: Progress | None = None,
        stop: Stop | None = None,
        accuracy: AccuracyRule | None = None,
    ) -> None:
        self.pricer, self.cluster, self.search, self.simulate = pricer, pricer.cluster, search, simulate
        self.progress, self.stop, self.truncated = progress, stop, False
        self.considered = self.simulated = self.infeasible = self.beyond = 0
        self.limits = limits_of(pricer.job, search, pricer.cluster)
        self.accuracy = accuracy
        self.inaccurate: set[tuple[str, ...]] = set()
        self.seen: list[Candidate] = []
        self.near_misses: dict[tuple[int, int], tuple[float, str, Plan]] = {}
        self.shortfalls: list[tuple[float, str]] = []
        self.least = np.inf
        self.lower_bound = 0.0

    def late(self, done: int, total: int) -> bool:
        """Tell the progress; whether to stop."""
        if self.progress:
            known = np.isfinite(self.least) and self.lower_bound > 0
            self.progress(done, total, max(0.0, self.least / self.lower_bound - 1) if known else None)
        return self.cut_off()

    def cut_off(self) -> bool:
        """Whether to stop; the search is then truncated."""
        self.truncated = self.truncated or (self.stop is not None and self.stop())
        return self.truncated

    def best_of(
        self, plans: Iterable[Plan | None], below: float = np.inf, limited: bool = True, most: int | None = None
    ) -> Candidate | None:
        """The best of some plans that is below a limit (None among them: no partition); simulated by rising bound until that passes it.

        Where it is not `limited`, plans beyond the limits of the scenario count too. At most so many with the least bounds are simulated.
        """
        bounded: list[tuple[float, int, Plan, Pricing]] = []
        for plan in plans:
            if plan is None:
                self.considered += 1
                self.infeasible += 1
                continue
            plan = self.pricer.completed(plan)
            if (priced := self._bounded(plan, limited)) is not None:
                bounded.append((priced[0], len(bounded), plan, priced[1]))
        best: Candidate | None = None
        for bound, _, plan, pricing in sorted(bounded, key=lambda row: row[:2])[:most]:
            if bound >= (best.objective if best else below):
                break
            candidate = self._simulated(plan, pricing, limited)
            if candidate and (best is None or candidate.objective < best.objective):
                best = candidate
        return best

    def if_better(self, plan: Plan, limit: float, limited: bool = True) -> Candidate | None:
        """A plan simulated, if it fits and its bound is below a limit; `limited` as in `best_of`."""
        plan = self.pricer.completed(plan)
        priced = self._bounded(plan, limited)
        return self._simulated(plan, priced[1], limited) if priced and priced[0] < limit else None

    def objective(self, step_s: float, slots: Sequence[int], plan: Plan | None = None) -> float:
        """What is minimised, of a step on some devices: seconds, USD or joule; with no plan as little as any of them can take."""
        if self.search.objective == "step_time":
            return step_s
        if self.search.objective == TIME_TO_ACCURACY:
            return step_s * self._steps(plan)
        if self.search.objective == "cost":
            return step_s * rent(self.cluster, slots, self.pricer.job, self.search).usd_per_work_s
        return expense(step_s, [self.cluster.device(slot) for slot in slots]).joule

    def objective_of(self, candidate: Candidate) -> float:
        """What is minimised, of a plan that another search simulated."""
        return self.objective(candidate.step_s, candidate.plan.slots, candidate.plan)

    def _steps(self, plan: Plan | None) -> float:
        """Steps to the target."""
        assert self.accuracy
        return self.accuracy.least_steps if plan is None else self.accuracy.forecast(plan).steps or np.inf

    def _bounded(self, plan: Plan, limited: bool = True) -> tuple[float, Pricing] | None:
        """Lower bound of the objective, with the prices; None where the plan does not fit, cannot be played, or is beyond the limits."""
        self.considered += 1
        if self.search.executable and unplayable(plan):
            self.infeasible += 1
            return None
        if self.accuracy and not self.accuracy.allows(changes := self.accuracy.forecast(plan).changes):
            self.inaccurate.add(changes)
            return None
        pricing = self.pricer.price(plan)
        if not self._fits(plan, pricing):
            return None
        bound_s = step_lower_bound_s(plan, pricing, self.cluster)
        if limited and not self._within(plan, bound_s):
            return None
        return self.objective(bound_s, plan.slots, plan), pricing

    def _within(self, plan: Plan, step_s: float) -> bool:
        """Whether a step of a plan is within the limits; of those that are a little beyond the best of each split is kept."""
        if self.limits.hold(plan.slots, step_s):
            return True
        self.beyond += 1
        if self.limits.excess(plan.slots, step_s) <= NEAR:
            split = plan.data_parallel_degree, plan.pipeline_parallel_degree
            missed = self.objective(step_s, plan.slots, plan), plan.describe(), plan
            if split not in self.near_misses or missed[:2] < self.near_misses[split][:2]:
                self.near_misses[split] = missed
        return False

    def _simulated(self, plan: Plan, pricing: Pricing, limited: bool = True) -> Candidate | None:
        """The plan with its step; None where that is beyond the limits."""
        self.simulated += 1
        timeline = self.simulate(lower(plan, folds(plan, pricing)), pricing, self.cluster)
        forecast = self.accuracy.forecast(plan) if self.accuracy else None
        candidate = Candidate(plan, pricing, timeline, self.objective(timeline.step_s, plan.slots, plan), forecast=forecast)
        self.seen.append(candidate)
        if limited and not self._within(plan, candidate.step_s):
            return None
        if limited:
            self.least = min(self.least, candidate.objective)
        return candidate

    def _fits(self, plan: Plan, pricing: Pricing) -> bool:
        for replica in distinct_replicas(plan, pricing, self.cluster):
            for rank, passes in zip(plan.pipeline(replica), passes_of(plan, replica), strict=True):
                peak_bytes = pricing.peak_bytes(plan, rank, passes)
                limit = self.cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes
                if peak_bytes > limit:
                    self.infeasible += 1
                    self.shortfalls.append((peak_bytes - limit, _shortfall(peak_bytes, limit, plan, self.cluster, plan.slots_of(rank)[0])))
                    return False
        return True


def _shortfall(needed: float, limit: float, plan: Plan, cluster: Cluster, slot: int) -> str:
    return (
        f"the closest plan ({plan.describe()}) needs {format_bytes(needed)} on {cluster.slots[slot]}, "
        f"which has {format_bytes(limit)}: {format_bytes(needed - limit)} too little"
    )
