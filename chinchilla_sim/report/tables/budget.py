"""What a budget trains: the sizes that were planned, which is best, and within which range the best lies; as table, words and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from chinchilla_sim.cost.scaling import FLOP_PER_PARAMETER, Futures, Range, ScalingLaw, TokenCost, Trade, best_trades, range_of, trade_at
from chinchilla_sim.graph.zoo.ladder import Size
from chinchilla_sim.planner.accuracy import changes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.report.table import NOT_STATED, Table, percent
from chinchilla_sim.units import QuantityKind, format_flop, format_seconds, format_usd

_COUNTS = {"": Fraction(1), **{prefix: Fraction(1000**power) for power, prefix in enumerate("kMBT", start=1)}}
HARDLY = 0.002
"""Share of the loss by which sizes may differ and are as good: a tenth of what the ranges of published laws leave open."""
_COUNT = QuantityKind("count", "", "1 B", _COUNTS, tuple(_COUNTS))


def count_words(count: float) -> str:
    """Three digits of a count.

    >>> count_words(1_313_722_368), count_words(512)
    ('1.31 B', '512')
    """
    return _COUNT.format(count).strip()


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds of the cluster, or USD for it."""

    amount: float
    of_money: bool

    @property
    def words(self) -> str:
        """Three digits with a unit."""
        return self.format(self.amount)

    def format(self, amount: float) -> str:
        """An amount of the budget's kind."""
        return format_usd(amount) if self.of_money else format_seconds(amount)


@dataclass(frozen=True)
class PlannedSize:
    """A size with its best plan; `wall_s` are seconds of a step with what disturbances, failures and interruptions take."""

    size: Size
    file: PlanFile
    step_s: float
    wall_s: float
    step_usd: float | None
    batch_tokens: int
    peak_flop_per_s: float
    """Of the devices in use together."""

    @property
    def utilization(self) -> float:
        """6 N flop per token as a share of the devices' peak."""
        return FLOP_PER_PARAMETER * self.size.parameters * self.batch_tokens / (self.step_s * self.peak_flop_per_s)

    def step_cost(self, budget: Budget) -> float:
        """What a step takes of a budget."""
        return (self.step_usd or 0.0) if budget.of_money else self.wall_s

    def steps(self, budget: Budget) -> int:
        """Whole steps within a budget."""
        return int(budget.amount / self.step_cost(budget))


@dataclass(frozen=True)
class BudgetStudy:
    """Planned sizes from small to large, sizes without a plan (with the reason), and what the law makes of them."""

    name: str
    family: str
    budget: Budget
    law: ScalingLaw
    sizes: tuple[PlannedSize, ...]
    unfit: tuple[tuple[Size, str], ...]
    futures: Futures
    step_range: tuple[float, float]
    """p5 and p95 of measured over simulated steps."""

    @cached_property
    def token_cost(self) -> TokenCost:
        """What a token takes of the budget, by size."""
        counts = tuple(float(one.size.parameters) for one in self.sizes)
        costs = tuple(one.step_cost(self.budget) / one.batch_tokens for one in self.sizes)
        return TokenCost(counts, costs, self.bounded)

    @property
    def bounded(self) -> bool:
        """Whether a larger size was tried and does not fit."""
        return any(size.parameters > self.sizes[-1].size.parameters for size, _ in self.unfit)

    def trade(self, planned: PlannedSize) -> Trade:
        """The tokens of whole steps of a planned size, and its loss."""
        tokens = float(planned.steps(self.budget) * planned.batch_tokens)
        return Trade(planned.size.parameters, tokens, self.law.loss(planned.size.parameters, tokens))

    @cached_property
    def best(self) -> PlannedSize:
        """The planned size with the least loss."""
        return min(self.sizes, key=lambda one: (self.trade(one).loss, one.size.parameters))

    @cached_property
    def ideal(self) -> Trade:
        """The best size of all, planned or between."""
        return best_trades([self.law], self.token_cost, [self.budget.amount])[0]

    @property
    def law_alone(self) -> Trade:
        """The best size if a token cost as its size, at the best planned size's speed: what the law says without a simulator."""
        best = self.best
        factor = best.step_cost(self.budget) / best.batch_tokens / best.size.parameters
        size = self.law.best_size(self.budget.amount, factor)
        return trade_at(self.law, factor * size, self.budget.amount, size)

    @property
    def smaller(self) -> PlannedSize | None:
        """The smallest planned size whose loss is hardly more than the best: it is cheaper to use."""
        least = self.trade(self.best).loss
        near = [one for one in self.sizes if self.trade(one).loss <= least * (1 + HARDLY)]
        return near[0] if near[0] is not self.best else None

    @cached_property
    def _ideals(self) -> list[Trade]:
        return self.futures.best(self.token_cost, self.budget.amount)

    @cached_property
    def parameters(self) -> Range:
        """Where the best size may lie."""
        return range_of([trade.parameters for trade in self._ideals])

    @cached_property
    def tokens(self) -> Range:
        """The tokens that go with it."""
        return range_of([trade.tokens for trade in self._ideals])

    def futures_of(self, planned: PlannedSize) -> tuple[Range, Range]:
        """Where tokens and loss of a planned size may lie."""
        token_cost = planned.step_cost(self.budget) / planned.batch_tokens
        trades = self.futures.at(token_cost, self.budget.amount, planned.size.parameters)
        return range_of([trade.tokens for trade in trades]), range_of([trade.loss for trade in trades])


def budget_table(study: BudgetStudy) -> Table:
    """One row per planned size."""
    headers = (
        *("parameters", "depth x width", "without embeddings", "plan", "ranks", "step", "MFU (6 N)"),
        *("tokens", "per parameter", "time", "price", "loss", "p5 to p95"),
    )
    rows = tuple(_row(study, one) for one in study.sizes)
    note = "step: simulated; loss: nats per token by the law; its range has the law's uncertainty and the simulator's"
    return Table(f"What {study.budget.words} train: {study.family} by size", headers, rows, text_columns=(3,), note=note)


def _row(study: BudgetStudy, one: PlannedSize) -> tuple[str, ...]:
    trade, (_, loss), steps = study.trade(one), study.futures_of(one), one.steps(study.budget)
    return (
        count_words(one.size.parameters) + (" (best)" if one is study.best else ""),
        one.size.shape,
        count_words(one.size.inner_parameters),
        one.file.plan.describe(),
        str(one.file.plan.rank_count),
        format_seconds(one.step_s),
        percent(one.utilization),
        count_words(trade.tokens),
        f"{trade.tokens / trade.parameters:.1f}",
        format_seconds(steps * one.wall_s),
        NOT_STATED if one.step_usd is None else format_usd(steps * one.step_usd),
        f"{trade.loss:.3f}",
        f"{loss.p5:.3f} to {loss.p95:.3f}",
    )


def unfit_table(study: BudgetStudy) -> Table:
    """Sizes that no plan fits."""
    rows = tuple((count_words(size.parameters), size.shape, reason) for size, reason in study.unfit)
    return Table("Sizes without a plan", ("parameters", "depth x width", "because"), rows, text_columns=(2,))


def budget_answer(study: BudgetStudy) -> tuple[str, ...]:
    """What to train, and where the best may lie."""
    best, trade, (_, loss) = study.best, study.trade(study.best), study.futures_of(study.best)
    steps, spent = best.steps(study.budget), ""
    if study.budget.of_money:
        spent = f", {format_seconds(steps * best.wall_s)}"
    elif best.step_usd is not None:
        spent = f", {format_usd(steps * best.step_usd)}"
    n, d, alone = study.parameters, study.tokens, study.law_alone
    return (
        f"In {study.budget.words}: train {study.family} {best.size.shape}, {count_words(trade.parameters)} parameters, on "
        f"{count_words(trade.tokens)} tokens ({trade.tokens / trade.parameters:.1f} per parameter, {steps} steps{spent}) with "
        f"{best.file.plan.describe()}: loss {trade.loss:.3f} (p5 to p95: {loss.p5:.3f} to {loss.p95:.3f}).",
        f"The best size of all is {count_words(study.ideal.parameters)} parameters (p5 to p95: {count_words(n.p5)} to "
        f"{count_words(n.p95)}) on {count_words(study.ideal.tokens)} tokens ({count_words(d.p5)} to {count_words(d.p95)}).",
        f"If all sizes ran at the speed of this one, it would be {count_words(alone.parameters)} on {count_words(alone.tokens)} tokens "
        f"({alone.tokens / alone.parameters:.1f} per parameter).",
    )


def budget_remarks(study: BudgetStudy) -> tuple[str, ...]:
    """What the answer rests on, and where it goes beyond it."""
    law, best, (low, high) = study.law, study.best, study.step_range
    trade = study.trade(best)
    remarks = [
        f"law {law.name}: {law.source}; N counts all parameters with the embedding",
        "ranges: "
        + (
            "coefficients drawn together, as they are correlated"
            if law.deviations
            else "how uncertain the coefficients are is not published"
        )
        + f"; true steps take {low:g} to {high:g} of the simulated ones (p5, p95 of published runs of decoders)",
        f"between the sizes a token costs what a parabola through their logarithms says, off by {percent(study.token_cost.misfit)} at most",
        f"every size trains with batches of {count_words(best.batch_tokens)} tokens, and no token is seen twice: have so many",
    ]
    if changes := changes_of(best.file.plan, best.file.scenario.model.compression):
        remarks.append(f"the plan changes what is learned ({', '.join(changes)}): the law knows nothing of that")
    if study.smaller:
        other = study.trade(study.smaller)
        what = f"{count_words(other.parameters)} on {count_words(other.tokens)} tokens reach {other.loss:.3f}"
        remarks.append(f"the loss is flat around the best: {what}, and are cheaper to use")
    if study.bounded and best is study.sizes[-1]:
        remarks.append(
            "the largest size that fits is the best: more memory per device, recompute or ZeRO in [search] would allow larger ones"
        )
    if not law.smallest <= trade.parameters <= law.largest or FLOP_PER_PARAMETER * trade.parameters * trade.tokens > law.most_flop:
        fitted = f"models of {count_words(law.smallest)} to {count_words(law.largest)} parameters and up to {format_flop(law.most_flop)}"
        remarks.append(f"the law was fitted to {fitted}: the answer goes beyond them")
    return tuple(remarks)


def budget_dict(study: BudgetStudy) -> dict[str, Any]:
    """JSON-ready answer, ranges, sizes and law."""
    law = asdict(study.law)
    return {
        "scenario": study.name,
        "family": study.family,
        "budget": {"usd" if study.budget.of_money else "seconds": study.budget.amount},
        "best": _size_dict(study, study.best),
        "ideal": asdict(study.ideal) | {"parameters_range": asdict(study.parameters), "tokens_range": asdict(study.tokens)},
        "law_alone": asdict(study.law_alone),
        "answer": list(budget_answer(study)),
        "remarks": list(budget_remarks(study)),
        "sizes": [_size_dict(study, one) for one in study.sizes],
        "unfit": [_shape_dict(size) | {"because": reason} for size, reason in study.unfit],
        "measured_per_simulated_step": {"p5": study.step_range[0], "p95": study.step_range[1]},
        "law": law,
    }


def _shape_dict(size: Size) -> dict[str, Any]:
    counts = {"parameters": size.parameters, "parameters_without_embeddings": size.inner_parameters}
    return {"formula": size.family, "options": dict(size.options)} | counts


def _size_dict(study: BudgetStudy, one: PlannedSize) -> dict[str, Any]:
    trade, (tokens, loss), steps = study.trade(one), study.futures_of(one), one.steps(study.budget)
    return _shape_dict(one.size) | {
        "plan": one.file.plan.describe(),
        "ranks": one.file.plan.rank_count,
        "simulated_step_s": one.step_s,
        "wall_step_s": one.wall_s,
        "step_usd": one.step_usd,
        "utilization": one.utilization,
        "batch_tokens": one.batch_tokens,
        "steps": steps,
        "tokens": trade.tokens,
        "tokens_range": asdict(tokens),
        "time_s": steps * one.wall_s,
        "usd": None if one.step_usd is None else steps * one.step_usd,
        "loss": trade.loss,
        "loss_range": asdict(loss),
    }
