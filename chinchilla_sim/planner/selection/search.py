"""The best plan of a space: screened as a whole, cut and priced where it can win, judged by the simulator.

The space: data-parallel degree x pipeline degree x microbatch count x schedule x sharding x devices x placement x gradient
codec x activation codec. `space/screen.py` bounds and ranks all configurations at once; `drafting/drafts.py` makes the plans of one, with
stages cut by `drafting/cutting.py`; every plan that fits into memory gets a bound of its own (`space/bound.py`), and what cannot beat the
best simulated plan is not simulated (`judge.py`).

Spaces of up to EXHAUSTIVE configurations are searched whole, split by split, so that the best of every split is known. Larger ones
are searched in the order of their estimates until no bound is below the best, or EVALUATIONS configurations have been priced. The best
splits then go through a local search (`improve.py`), where single boundaries and stages may differ from the rest, and through stages in
several pieces (`drafting/scattered.py`); stages with replica counts of their own have a space beside this one
(`drafting/free_space.py`). All budgets count, so that the same scenario gives the same plan; `stop` (a time limit, Ctrl-C) only cuts off,
and the result says so.
The least bound of the space says how far from the best the plan can be at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

import numpy as np

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.rent import least_prices
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.accuracy_rule import MEASURE, TIME_TO_ACCURACY, AccuracyRule
from chinchilla_sim.planner.drafting.drafts import Drafter
from chinchilla_sim.planner.drafting.free_space import FreeSpace
from chinchilla_sim.planner.executable import search_mistakes, variant_mistakes
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.planner.selection.front import front_of, rows_on_fewer_devices
from chinchilla_sim.planner.selection.improve import Budget, improve
from chinchilla_sim.planner.selection.judge import Judge, Progress, Simulate, Stop
from chinchilla_sim.planner.selection.limits import find_without_limits, refusal
from chinchilla_sim.planner.slots import SlotChooser
from chinchilla_sim.planner.space.configuration import Configuration, Space, divisors
from chinchilla_sim.planner.space.screen import Floats, Screen, screen
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec

EXHAUSTIVE = 400
EVALUATIONS = 8
SIMULATED = 3
"""So many plans of one configuration are simulated in large spaces."""
IMPROVED = 3
"""So many of the best splits go through a local search."""
MOST_EVALUATIONS = 400
"""So many configurations are priced where none of the first EVALUATIONS fits into memory."""


def find_plans(
    graph: TaskGraph,
    cluster: Cluster,
    job: JobSpec,
    search: SearchSpec,
    simulate: Simulate,
    progress: Progress | None = None,
    profile: Profile | None = None,
    stop: Stop | None = None,
    pricer: Pricer | None = None,
    front: bool = False,
    accuracy: AccuracyRule | None = None,
) -> SearchResult:
    """The best plan of the stated space; raises NoFeasiblePlanError that says what stood in the way.

    The search ends with the best plan so far when `stop` says so; `pricer` keeps prices between searches.
    For the `front` the likeliest plans on fewer devices, and beyond the limits, are simulated too; the best plan is the same without.
    By `accuracy` plans are refused that lose too much of it, and steps are counted.
    """
    pricer = pricer or Pricer(graph, cluster, job, profile)
    search = accuracy.narrowed(search) if accuracy else search
    return PlanSearch(pricer, search, Judge(pricer, search, simulate, progress, stop, accuracy)).run(front)


class PlanSearch:
    """One search; `served_search.py` builds on it for jobs under load."""

    evaluations = EVALUATIONS

    def __init__(self, pricer: Pricer, search: SearchSpec, judge: Judge) -> None:
        self.pricer, self.search, self.judge = pricer, search, judge
        self.cluster, self.job = pricer.cluster, pricer.job
        self.prices = least_prices(self.cluster, search) if search.objective == "cost" or judge.limits.limits_of_money else []
        self.drafter = Drafter(pricer, search, SlotChooser(self.cluster, self.prices))
        can_end = self.drafter.cutter.can_end
        self.can_end = {task.name: end for task, end in zip(pricer.graph.compute_tasks, can_end, strict=True)}
        most = min(self.cluster.usable_count, search.maximum_ranks or self.cluster.rank_count)
        self.free_bound_s = np.inf
        self.space = Space(self.job, search, most, sum(can_end))

    def run(self, front: bool = False) -> SearchResult:
        """Best of every split, then the best of those, improved."""
        self._check()
        screened = screen(self.pricer, self.space)
        per_s = self._objective_per_s(screened)
        self.judge.lower_bound = float((screened.lower_bound_s * per_s).min(initial=np.inf))
        exhaustive = screened.screened <= EXHAUSTIVE
        winners = self._every_split() if exhaustive else self._likely_first(screened, per_s)
        winners += self._with_free_replicas()
        ranked = sorted(winners, key=_rank)
        budget = Budget()
        ranked = sorted([*(self._improved(one, budget) for one in ranked[:IMPROVED]), *ranked[IMPROVED:]], key=_rank)
        ranked = sorted([*ranked, *self._near_misses(ranked, budget)], key=_rank) or self._elsewhere(screened.screened)
        counts, beyond = (self.judge.considered, self.judge.simulated, self.judge.infeasible), self.judge.beyond
        if front:
            self._look_at_fewer_devices(screened)
        members = front_of(self.judge.seen, self.pricer.cluster, self.job, self.search, ranked[0])
        return SearchResult(
            ranked[0],
            tuple(ranked[1 : self.search.runner_ups + 1]),
            self._one_rank(ranked),
            *counts,
            screened=screened.screened,
            lower_bound_s=min(float(screened.lower_bound_s.min(initial=np.inf)), self.free_bound_s, ranked[0].step_s),
            lower_bound=min(self.judge.lower_bound, ranked[0].objective),
            truncated=self.judge.truncated,
            front=members,
            limits=self.judge.limits,
            beyond=beyond,
            accuracy=self.judge.accuracy,
        )

    def _look_at_fewer_devices(self, screened: Screen) -> None:
        """Simulate the likeliest plans on fewer devices, within the limits or beyond."""
        for rows in rows_on_fewer_devices(screened, frozenset(len(candidate.plan.slots) for candidate in self.judge.seen)):
            for row in rows:
                if self.judge.cut_off() or self.judge.best_of(self.drafter.plans(screened.configuration(row)), limited=False):
                    break

    def _every_split(self) -> list[Candidate]:
        by_split: dict[tuple[int, int], list[Configuration]] = {}
        for configuration in self.space.configurations():
            if configuration.sharding.recompute == self.space.recompute[0]:  # the cutter chooses what each stage computes again
                by_split.setdefault(configuration.split, []).append(configuration)
        winners: list[Candidate] = []
        for done, group in enumerate(by_split.values(), start=1):
            best = self.judge.best_of(plan for shape in group for plan in self.drafter.plans(shape))
            winners += [best] if best else []
            if self.judge.late(done, len(by_split)) and winners:
                break
        return winners

    def _likely_first(self, screened: Screen, per_s: Floats) -> list[Candidate]:
        """Best of every split that was looked at, by rising estimate of the objective."""
        bounds, estimates = screened.lower_bound_s * per_s, self._estimates(screened, per_s)
        best: dict[tuple[int, int], Candidate] = {}
        seen: set[Configuration] = set()
        longest_s = self._longest_step_s(screened)
        # Plans that probably hold the limits come first, then by how much they exceed them.
        for row in np.lexsort((estimates, np.maximum(1.0, screened.estimate_s / longest_s))):
            if bounds[row] >= self.judge.least or screened.lower_bound_s[row] > longest_s[row]:
                continue
            configuration = screened.configuration(int(row))
            # The cutter chooses what each stage computes again: rows that differ in it rank, and are one.
            plain = replace(configuration, sharding=replace(configuration.sharding, recompute="none"))
            if plain in seen:
                continue
            seen.add(plain)
            candidate = self.judge.best_of(self.drafter.plans(configuration), self.judge.least, most=SIMULATED)
            rival = best.get(configuration.split)
            if candidate and (rival is None or candidate.objective < rival.objective):
                best[configuration.split] = candidate
            if self.judge.late(min(len(seen), self.evaluations), self.evaluations) and best:
                break
            if len(seen) >= self.evaluations and (best or len(seen) >= MOST_EVALUATIONS):
                break
        return list(best.values())

    def _with_free_replicas(self) -> list[Candidate]:
        """The best plan whose stages have replica counts of their own: no configurations of the screen, and with a bound of their own."""
        if self.search.stage_replicas == "equal":
            return []
        free = FreeSpace(self.pricer, self.space)
        best = self.judge.best_of(takewhile(lambda _: not self.judge.cut_off(), free.plans()))
        self.free_bound_s, bound = free.least(self.judge.objective)
        self.judge.lower_bound = min(self.judge.lower_bound, bound)
        return [best] if best else []

    def _improved(self, candidate: Candidate, budget: Budget, limited: bool = True) -> Candidate:
        """The candidate after a local search, within what the scenario allows."""
        evaluate = partial(self.judge.if_better, limited=limited)
        best = improve(candidate, self.search, self.cluster, self.can_end, evaluate, budget, self.judge.cut_off)
        scattered = self.judge.best_of(self.drafter.scattered(best.plan), best.objective, limited)
        return min(best, scattered or best, key=_rank)

    def _near_misses(self, ranked: Sequence[Candidate], budget: Budget) -> list[Candidate]:
        """Plans a little beyond the limits that would be the best, as far as a local search brings them within."""
        least = ranked[0].objective if ranked else np.inf
        brought: list[Candidate] = []
        for objective, _, plan in sorted(self.judge.near_misses.values(), key=lambda miss: miss[:2])[:IMPROVED]:
            start = self.judge.best_of([plan], limited=False) if objective < least else None
            better = self._improved(start, budget, limited=False) if start else None
            brought += [better] if better and self.judge.limits.hold(better.plan.slots, better.step_s) else []
        return brought

    def _elsewhere(self, screened: int) -> list[Candidate]:
        """What holds the limits among the best plans without them; NoFeasiblePlanError where none does."""
        if not screened or not self.judge.limits:
            raise self._no_plan(screened)
        found = find_without_limits(self.judge.limits, self.search, self._another)
        self.judge.seen += found
        holding = [one for one in found if self.judge.limits.hold(one.plan.slots, one.step_s)]
        if not holding:
            raise refusal(self.judge.limits, found)
        best: dict[tuple[int, int], Candidate] = {}
        for one in sorted((replace(one, objective=self.judge.objective_of(one)) for one in holding), key=_rank):
            best.setdefault((one.plan.data_parallel_degree, one.plan.pipeline_parallel_degree), one)
        return list(best.values())

    def _objective_per_s(self, screened: Screen) -> Floats:
        """What is minimised, per second of a step, by configuration: on the cheapest devices that it may get."""
        if self.search.objective == "step_time":
            return np.ones(len(screened))
        if self.search.objective == TIME_TO_ACCURACY:
            assert self.judge.accuracy
            return np.full(len(screened), self.judge.accuracy.least_steps)
        devices = (self.cluster.device(slot) for slot in range(self.cluster.rank_count))
        rates = self.prices if self.search.objective == "cost" else [device.power_watt for device in devices]
        # A little less, for sums that round differently.
        per_s: Floats = np.concatenate([[0.0], np.cumsum(np.sort(rates))])[screened.device_counts()] * (1 - 1e-9)
        return per_s

    def _longest_step_s(self, screened: Screen) -> Floats:
        """Seconds that the limits leave a step at most, by configuration."""
        limits = self.judge.limits
        counts, index = np.unique(screened.device_counts(), return_inverse=True)
        cheapest = np.concatenate([[0.0], np.cumsum(np.sort(least_prices(self.cluster, self.search)))])
        longest_s: Floats = np.array([limits.longest_step_s(float(cheapest[count])) for count in counts], dtype=np.float64)[index]
        return longest_s

    def _estimates(self, screened: Screen, per_s: Floats) -> Floats:
        """What is minimised, by configuration, roughly; the least come first."""
        return screened.estimate_s * per_s

    def _check(self) -> None:
        """Minimising what no device states would make every plan equal; and what the runtime cannot play must be asked for."""
        mistakes = [
            *search_mistakes(self.search),
            *variant_mistakes(self.search, self.job.kind == "training"),
            *self.judge.limits.mistakes(),
            *(self.judge.accuracy.mistakes() if self.judge.accuracy else self._unknown_steps()),
        ]
        rates = {"cost": "usd_per_s", "energy": "power_watt"}
        field = rates.get(self.search.objective)
        if field and not any(getattr(self.cluster.device(slot), field) for slot in range(self.cluster.rank_count)):
            name = {"usd_per_s": "price", "power_watt": "power"}[field]
            what = f"{self.search.objective} is to be minimised, but no node states its {name}"
            mistakes.append(Mistake("search.objective", what, f'give the nodes a {name} such as "2 USD/h" or "300 W"'))
        if mistakes:
            raise ScenarioError(mistakes)

    def _unknown_steps(self) -> list[Mistake]:
        if self.search.objective != TIME_TO_ACCURACY:
            return []
        return [Mistake("search.objective", "counts steps, of which nothing is known", f"{MEASURE}, or minimise step_time")]

    def _one_rank(self, ranked: Sequence[Candidate]) -> Candidate | None:
        """One rank alone, also where the scenario asks for more; not counted."""
        for candidate in ranked:
            if len(candidate.plan.slots) == 1:
                return candidate
        counts = divisors(self.job.global_batch_size)
        shapes = [Configuration(1, 1, count, schedule) for count in counts for schedule, _ in self.space.schedules(1, count)]
        # More microbatches need less memory: where the most do not fit, no others do.
        if self.judge.best_of(self.drafter.plans(shapes[-1]), limited=False) is None:
            return None
        return self.judge.best_of((plan for shape in shapes for plan in self.drafter.plans(shape)), limited=False)

    def _no_plan(self, screened: int) -> NoFeasiblePlanError:
        fewest, most = self.search.minimum_ranks, self.space.maximum_ranks
        if fewest > most:
            return NoFeasiblePlanError(
                "search.minimum_ranks", f"asks for {fewest} ranks of {most}", f"write at most {most}, or add devices"
            )
        if not screened:
            return NoFeasiblePlanError(
                "search",
                f"no split of {self.space.cuts} possible stages and a batch of {self.job.global_batch_size} "
                f"over {fewest} to {most} ranks is allowed",
                "change global_batch_size, minimum_ranks, or the degrees and microbatch counts that [search] lists",
            )
        if self.judge.inaccurate and not self.judge.shortfalls:
            assert self.judge.accuracy
            return self.judge.accuracy.refusal(self.judge.inaccurate)
        shortfall = min(self.judge.shortfalls)[1] if self.judge.shortfalls else "no partition exists"
        cure = "use more nodes or more memory per device, a smaller global_batch_size, or an optimizer with less state (sgd)"
        return NoFeasiblePlanError("device memory", shortfall, cure)

    def _another(self, search: SearchSpec) -> SearchResult:
        """The result for another [search] of the same job."""
        judge = Judge(self.pricer, search, self.judge.simulate, None, self.judge.stop, self.judge.accuracy)
        return PlanSearch(self.pricer, search, judge).run()


def _rank(candidate: Candidate) -> tuple[float, int, str]:
    return candidate.objective, len(candidate.plan.slots), candidate.plan.describe()
