"""What a plan may take at most: deadline and budget of the whole job, time of a step, cost of a sample.

On given devices, which together cost r USD per second of useful work and take w seconds for it (w > 1 where spot prices bring
interruptions, `cost/rent.py`), each of them is a bound on the step:

    step_s <= min(deadline / (steps w), maximum_step_time, budget / (steps r), maximum_cost_per_sample batch / r)

so that the faster of two plans on the same devices holds all that the other holds, and a plan whose lower bound is above it need not
be simulated. The bound of the whole space is over plans within the limits and beyond them, and so holds for those within.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.rent import rent
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.units import SECONDS, USD, QuantityKind, plain_number

ROUNDING = 1e-9
"""A plan holds a limit that it exceeds by less than sums of floats can be off."""
FIELDS = ("deadline_s", "budget_usd", "maximum_step_time_s", "maximum_cost_per_sample_usd")


@dataclass(frozen=True, slots=True)
class Limit:
    """One key of [search]: `most` seconds or USD, where a step counts `weight` times."""

    key: str
    most: float
    weight: float
    kind: QuantityKind

    @property
    def of_money(self) -> bool:
        """Whether it is USD that are limited, not seconds."""
        return self.kind is USD

    def value(self, step_s: float, usd_per_work_s: float, wall_s_per_work_s: float = 1.0) -> float:
        """What a plan takes of it; interruptions count in a deadline, not in the time of one step."""
        return self.weight * step_s * (usd_per_work_s if self.of_money else wall_s_per_work_s if self.key == "deadline" else 1.0)


@dataclass(frozen=True, slots=True)
class Use:
    """A limit, and what a plan takes of it."""

    limit: Limit
    value: float

    @property
    def excess(self) -> float:
        """By how much it is broken, as a share of the limit; 0 and less where it holds."""
        return self.value / self.limit.most - 1

    @property
    def holds(self) -> bool:
        """Whether the plan stays within it."""
        return self.excess <= ROUNDING


@dataclass(frozen=True)
class Limits:
    """All limits of a scenario, on its cluster; false where there are none."""

    limits: tuple[Limit, ...]
    cluster: Cluster
    job: JobSpec
    search: SearchSpec

    def __bool__(self) -> bool:
        return bool(self.limits)

    def uses(self, slots: Sequence[int], step_s: float) -> tuple[Use, ...]:
        """What a step on these slots takes of every limit."""
        if not self.limits:
            return ()
        rented = rent(self.cluster, slots, self.job, self.search)
        return tuple(Use(limit, limit.value(step_s, rented.usd_per_work_s, rented.wall_s_per_work_s)) for limit in self.limits)

    def hold(self, slots: Sequence[int], step_s: float) -> bool:
        """Whether a step on these slots stays within all limits."""
        return all(use.holds for use in self.uses(slots, step_s))

    def excess(self, slots: Sequence[int], step_s: float) -> float:
        """By how much of it the limit that is broken most is broken; 0 and less where all hold."""
        return max((use.excess for use in self.uses(slots, step_s)), default=0.0)

    def longest_step_s(self, usd_per_s: float) -> float:
        """Seconds of the longest step that can stay within all limits on devices that cost at least so much."""
        taken = [(limit.most, limit.value(1.0, usd_per_s)) for limit in self.limits]
        return min((most / value for most, value in taken if value > 0), default=float("inf")) * (1 + ROUNDING)

    def mistakes(self) -> list[Mistake]:
        """A limit of money means nothing where no node states a price."""
        if any(self.cluster.device(slot).usd_per_s for slot in range(self.cluster.rank_count)):
            return []
        cure = 'give the nodes a price such as "2 USD/h"'
        return [Mistake(f"search.{limit.key}", "money is limited, but no node states its price", cure) for limit in self.limits_of_money]

    @property
    def limits_of_money(self) -> tuple[Limit, ...]:
        """Those in USD."""
        return tuple(limit for limit in self.limits if limit.of_money)


def limits_of(job: JobSpec, search: SearchSpec, cluster: Cluster) -> Limits:
    """The limits that [search] states, for a job whose length [job] states."""
    steps, batch_size = job.total_steps or 0, job.global_batch_size
    stated = (
        ("deadline", search.deadline_s, steps, SECONDS),
        ("budget", search.budget_usd, steps, USD),
        ("maximum_step_time", search.maximum_step_time_s, 1.0, SECONDS),
        ("maximum_cost_per_sample", search.maximum_cost_per_sample_usd, 1 / batch_size, USD),
    )
    missing = [key for key, most, weight, _ in stated if most is not None and not weight]
    if missing:
        cure = "write job.steps or job.target_samples"
        raise ScenarioError([Mistake(f"search.{key}", "is for the whole job, whose steps are not stated", cure) for key in missing])
    return Limits(tuple(Limit(key, most, weight, kind) for key, most, weight, kind in stated if most is not None), cluster, job, search)


def without_limits(search: SearchSpec, objective: str) -> SearchSpec:
    """The same space, where nothing but memory is limited."""
    return search.model_copy(update=dict.fromkeys(FIELDS) | {"objective": objective})


def find_without_limits(limits: Limits, search: SearchSpec, find: Callable[[SearchSpec], SearchResult]) -> list[Candidate]:
    """The fastest and, where money is limited, the cheapest plans of the same space, and what was simulated on the way."""
    candidates: list[Candidate] = []
    for objective in ("step_time", "cost") if limits.limits_of_money else ("step_time",):
        found = find(without_limits(search, objective))
        candidates += [found.best, *found.runner_ups, *(point.candidate for point in found.front)]
    return candidates


def refusal(limits: Limits, candidates: Sequence[Candidate]) -> NoFeasiblePlanError:
    """Which limits the nearest of some plans breaks and by how much, and which limits would let one of them pass."""
    uses = [limits.uses(candidate.plan.slots, candidate.step_s) for candidate in candidates]
    order = sorted(range(len(candidates)), key=lambda row: (max(use.excess for use in uses[row]), candidates[row].plan.describe()))
    nearest = candidates[order[0]]
    constraint, shortfall, cure = shortfall_of(limits, uses, order[0])
    return NoFeasiblePlanError(constraint, f"the nearest plan ({nearest.plan.describe()}) {shortfall}", cure)


def shortfall_of(limits: Limits, uses: Sequence[Sequence[Use]], nearest: int = 0) -> tuple[str, str, str]:
    """Which limits one of some plans breaks, by how much, and which limits would let one of them pass."""
    broken = [use for use in uses[nearest] if not use.holds]
    by_how_much = " and ".join(_excess_words(use) for use in broken)
    taken = " and ".join(_use_words(use) for use in uses[nearest])
    ways = list(_ways(limits, uses)) or [" and ".join(_raised(use) for use in broken)]
    cure = f"write {', or '.join(ways)}; or use more, faster or cheaper devices"
    return " and ".join(f"search.{use.limit.key}" for use in broken), f"{taken}: {by_how_much}", cure


def within_limits(limits: Limits | None, candidates: list[Candidate]) -> list[Candidate]:
    """Those that hold all limits; NoFeasiblePlanError where none does."""
    holding = [one for one in candidates if not limits or limits.hold(one.plan.slots, one.step_s)]
    if limits and not holding:
        raise refusal(limits, candidates)
    return holding


def use_words(use: Use) -> str:
    """A limit and what the plan takes of it.

    >>> use_words(Use(Limit("deadline", 86400.0, 100, SECONDS), 43200.0))
    'deadline 1.00 d: takes 12.0 h'
    """
    return f"{use.limit.key.replace('_', ' ')} {use.limit.kind.format(use.limit.most)}: {_use_words(use)}"


def _use_words(use: Use) -> str:
    scope = {"deadline": "", "budget": "", "maximum_step_time": " a step", "maximum_cost_per_sample": " a sample"}[use.limit.key]
    return f"{'costs' if use.limit.of_money else 'takes'} {use.limit.kind.format(use.value)}{scope}"


def _excess_words(use: Use) -> str:
    over, most = use.limit.kind.format(use.value - use.limit.most), use.limit.kind.format(use.limit.most)
    share = (
        "< 0.1 %"
        if use.excess < 0.0005
        else f"{100 * use.excess:.1f} %"
        if use.excess < 10
        else f"{plain_number(1 + use.excess)} times as much"
    )
    return f"{over} ({share}) above the {use.limit.key.replace('_', ' ')} of {most}"


def _ways(limits: Limits, uses: Sequence[Sequence[Use]]) -> Iterator[str]:
    """Single limits that could be raised so that a plan passes, where it holds all others."""
    for index in range(len(limits.limits)):
        passing = [row[index] for row in uses if all(use.holds for position, use in enumerate(row) if position != index)]
        if passing:
            yield _raised(min(passing, key=lambda use: use.value))


def _raised(use: Use) -> str:
    """The key with three digits that leave the plan a hundredth of room: in the model's own tasks it may take a little more."""
    enough = use.value * 1.01
    texts = [use.limit.kind.format(enough * (1 + more / 1000)) for more in range(12)]
    text = next((text for text in texts if use.limit.kind.parse(text) >= enough), use.limit.kind.write(enough))
    return f'{use.limit.key} = "{text}"'
