"""Which model size, on how many tokens, should this cluster train within a time or for a sum of money?

    scenario ─► a size of the family ─► best plan, step ─► cost of a token ─┐
                  ▲                                                         ├─► best size ─► refined around it
                  └── next size, while the best may lie beyond ◄── law ─────┘

Every size is planned as `chinchilla plan` would (without runners-up), on the scenario's cluster and with its batch: the fastest plan for
a time, the cheapest for a sum of money. Sizes are tried from where the law puts the best one for the devices' flop rates, outwards until
they cover p5 to p95 of where the best may lie, or no plan fits; then the rungs beside the best one, and the best size of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.rent import rent
from chinchilla_sim.cost.scaling import Futures, ScalingLaw, draw_futures
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.given import disturb_plan
from chinchilla_sim.graph.zoo.ladder import WIDEST, Ladder, Size, common_options
from chinchilla_sim.planner.selection.judge import Progress
from chinchilla_sim.report.tables.budget import Budget, BudgetStudy, PlannedSize, count_words
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import Setting, prepare, shape_options
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.published import SPREAD
from chinchilla_sim.workflow import make_plan, plan_file

DRAWS = 1000
COARSE = 2
"""Rungs from one size to the next before refining: about 2.5 times the parameters."""
MOST_SIZES = 14
USUAL_SIZES = 9
USUAL_UTILIZATION = 0.5
"""Of the devices' flop rates; only decides with which size the search begins."""

Told = Callable[[str], None]


def answer_budget(
    scenario: Scenario, source: str, family: str, law: ScalingLaw, budget: Budget, progress: Progress, told: Told
) -> BudgetStudy:
    """Sizes of a family planned on a scenario's cluster, and the best of them.

    NoFeasiblePlanError where none fits, or the budget is too small for the law. `told` gets a line about every size as it is planned.
    """
    _check(scenario, source)
    own = scenario.model.formula == family
    ladder = Ladder(family, common_options(family, shape_options(scenario.model)) if own else {})
    explorer = _Explorer(scenario, source, ladder, law, budget, progress, told)
    explorer.explore()
    return explorer.answer()


def _check(scenario: Scenario, source: str) -> None:
    if scenario.job.kind != "training":
        raise ScenarioError([Mistake("job.kind", "inference trains no model", 'write job.kind = "training"')], source)


def scenario_of(scenario: Scenario, source: str, size: Size, budget: Budget) -> Scenario:
    """The scenario with a model of this size: what it says of the length of its own job, and of its own model, is left out."""
    tables = scenario.to_dict()
    tables["model"] = {"formula": size.family, "options": dict(size.options)}
    left_out = ("steps", "target_samples", "target_accuracy", "target_loss")
    tables["job"] = {key: value for key, value in tables["job"].items() if key not in left_out}
    left_out = ("deadline", "budget", "variants", "accuracy_table")
    search = {key: value for key, value in tables["search"].items() if key not in left_out}
    tables["search"] = search | {"objective": "cost" if budget.of_money else "step_time", "runner_ups": 0}
    return parse_scenario(tables, source)


@dataclass
class _Explorer:
    """Plans sizes one after the other; `planned` and `refused` are by their parameters."""

    scenario: Scenario
    source: str
    ladder: Ladder
    law: ScalingLaw
    budget: Budget
    progress: Progress
    told: Told
    planned: dict[int, PlannedSize] = field(default_factory=dict)
    refused: dict[int, tuple[Size, NoFeasiblePlanError]] = field(default_factory=dict)

    def explore(self) -> None:
        """Begin where the best should be, go outwards as far as it may lie, refine."""
        low = high = self._first_that_fits()
        while len(self.planned) + len(self.refused) < MOST_SIZES:
            study = self.study()
            up = high + COARSE <= WIDEST and not study.bounded
            if low >= COARSE and (study.parameters.p5 < study.sizes[0].size.parameters or (len(study.sizes) == 1 and not up)):
                low -= COARSE
                if not self._plan(self.ladder.size(low)):
                    break
            elif up and (study.parameters.p95 > study.sizes[-1].size.parameters or len(study.sizes) == 1):
                high += COARSE
                self._plan(self.ladder.size(high))
            else:
                break
        rung = self.ladder.rung_near(self.study().best.size.parameters)
        for beside in (rung - 1, rung + 1):
            if 0 <= beside <= WIDEST:
                self._plan(self.ladder.size(beside))
        ideal = self.ladder.size_near(self.study().ideal.parameters)
        if ideal.parameters >= self.ladder.size(0).parameters:
            self._plan(ideal)

    def study(self) -> BudgetStudy:
        """What is known so far."""
        low, high = SPREAD[True]
        sizes = tuple(self.planned[count] for count in sorted(self.planned))
        unfit = tuple((size, _reason(error)) for _, (size, error) in sorted(self.refused.items()))
        return BudgetStudy(self.scenario.name, self.ladder.family, self.budget, self.law, sizes, unfit, self._futures, (low, high))

    @cached_property
    def _futures(self) -> Futures:
        return draw_futures(self.law, *SPREAD[True], DRAWS, self.scenario.job.seed)

    def answer(self) -> BudgetStudy:
        """What was found, if the budget is large enough for the law to have an answer."""
        study = self.study()
        smallest = study.sizes[0]
        least = self.ladder.size(0).parameters
        if smallest.size.parameters > least or study.ideal.parameters >= least:
            return study
        exponent = study.token_cost.exponent(least)
        needed = self.law.least_budget(least, study.token_cost.cost(least) / least**exponent, exponent)
        what = f"{self.budget.words} train the smallest size ({count_words(least)} parameters) on {smallest.steps(self.budget)} steps of "
        what += f"{count_words(smallest.batch_tokens)} tokens, and the law would have a smaller one"
        raise NoFeasiblePlanError("budget", what, f"give about {self.budget.format(needed)}, or a faster cluster")

    def _first_that_fits(self) -> int:
        """The rung of the size to begin with: where the law puts the best one, or the next smaller one that fits."""
        cluster = prepare(scenario_of(self.scenario, self.source, self.ladder.size(0), self.budget)).cluster
        flop = self._flop(cluster)
        first = self.ladder.rung_near(self.law.best_size(flop)) // COARSE * COARSE
        for rung in range(first, -1, -COARSE):
            if self._plan(self.ladder.size(rung)):
                return rung
        size, why = self.refused[min(self.refused)]
        raise NoFeasiblePlanError(why.constraint, f"even of the smallest size, {count_words(size.parameters)}, {why.shortfall}", why.cure)

    def _flop(self, cluster: Cluster) -> float:
        """What the budget may compute, about."""
        devices = [cluster.device(slot) for slot in range(cluster.rank_count)]
        if not self.budget.of_money:
            return USUAL_UTILIZATION * self.budget.amount * sum(device.flop_per_s for device in devices)
        if any(device.usd_per_s <= 0 for device in devices):
            cure = 'write price = "2 USD/h" for its nodes, or give --days'
            raise ScenarioError([Mistake("cluster.nodes", "a device has no price, so that money buys any amount of it", cure)], self.source)
        return USUAL_UTILIZATION * self.budget.amount * max(device.flop_per_s / device.usd_per_s for device in devices)

    def _plan(self, size: Size) -> bool:
        """Whether a plan fits; planned once."""
        if size.parameters in self.planned or size.parameters in self.refused:
            return size.parameters in self.planned
        done = len(self.planned) + len(self.refused)
        self.progress(done, max(USUAL_SIZES, done + 1))
        words = f"{count_words(size.parameters)} ({self.ladder.family} {size.shape})"
        setting = prepare(scenario_of(self.scenario, self.source, size, self.budget))
        try:
            found = plan_size(setting, size, self.ladder.tokens)
        except NoFeasiblePlanError as error:
            self.refused[size.parameters] = size, error
            self.told(f"{words}: no plan: {_reason(error)}")
            return False
        self.planned[size.parameters] = found
        steps = found.steps(self.budget)
        loss = self.law.loss(size.parameters, steps * found.batch_tokens)
        told = f"{found.file.plan.describe()}, {format_seconds(found.step_s)} a step, {count_words(steps * found.batch_tokens)} tokens"
        self.told(f"{words}: {told}, loss {loss:.3f}")
        return True


def plan_size(setting: Setting, size: Size, sample_tokens: int) -> PlannedSize:
    """The best plan of one size, with what a step of it really takes."""
    search = make_plan(setting)
    plan, step_s = search.best.plan, search.best.step_s
    rented = rent(setting.cluster, plan.slots, setting.scenario.job, setting.scenario.search)
    robust = disturb_plan(setting, plan, step_s)
    wall_s = (fmean(robust.spread.steps_s) if robust else step_s) * rented.wall_s_per_work_s
    if robust and robust.goodput:
        wall_s /= robust.goodput.expected
    devices = [setting.cluster.device(slot, len(plan.slots)) for slot in plan.slots]
    return PlannedSize(
        size,
        plan_file(setting, search),
        step_s,
        wall_s,
        wall_s * rented.usd_per_s if rented.usd_per_s else None,
        setting.scenario.job.global_batch_size * sample_tokens,
        sum(device.peak_flop_per_s or device.flop_per_s for device in devices),
    )


def _reason(error: NoFeasiblePlanError) -> str:
    return f"{error.constraint}: {error.shortfall}; {error.cure}"
