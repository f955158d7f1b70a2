"""Which plans are accurate enough, and how many steps they need: the accuracy table under the rules of [search].

Floor: the upper end of the measured interval of the drop must be within search.max_accuracy_drop, not the estimate alone: a floor that
holds on average is none. A change that was not measured is taken where its published record is safe (published_accuracy.toml), and then
counts as no drop; any other is left out, local steps and late gradients among them. Codecs of one kind in different stages count as the
worst of them, since each was measured on all stages; kinds add up (cost/accuracy.py), also a codec that was measured on gradients and
packs differences of weights behind local steps.

Time to accuracy: simulated step x measured steps to the target, of which no plan of a search needs fewer than `least_steps`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.resources import files
from itertools import groupby, product
from math import inf, isfinite
from typing import Any

from chinchilla_sim.cost.accuracy import AS_MANY, LEVEL, NOTHING, Interval
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError
from chinchilla_sim.planner.accuracy import (
    AS_IT_IS,
    AccuracyTable,
    activation_change,
    changes_of,
    delay_change,
    gradient_change,
    local_steps_change,
    variant_change,
)
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.search import SearchSpec

TIME_TO_ACCURACY = "time_to_accuracy"
MEASURE = "run chinchilla calibrate --accuracy SCENARIO"
_ROUNDING = 1e-12
_LISTS: Mapping[str, Callable[[Any], str]] = {
    "gradient_codecs": gradient_change,
    "activation_codecs": activation_change,
    "local_steps": local_steps_change,
    "gradient_delays": delay_change,
    "variants": variant_change,
}
"""Lists of [search] whose values are changes, and what these are called."""
_WITHOUT = {
    "gradients": "none, fp16 or bf16 in search.gradient_codecs",
    "activations": "none, fp16 or bf16 in search.activation_codecs",
    "local_steps": "1 in search.local_steps",
    "gradient_delay": "0 in search.gradient_delays",
    "variant": "the model as it is",
}
"""What to allow instead of a change, by its kind."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan's changes make of training; None is what nobody measured.

    `drop` of accuracy, 0..1; `steps` to the target, which are `ratio` times those of the job as it is.
    """

    changes: tuple[str, ...]
    drop: Interval | None
    ratio: Interval | None
    steps: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"changes": list(self.changes)}


class AccuracyRule:
    """The rule of one scenario, and of one variant of its model."""

    def __init__(self, job: JobSpec, search: SearchSpec, compression: CompressionSpec, table: AccuracyTable | None) -> None:
        self.job, self.search, self.compression, self.table = job, search, compression, table
        self.floor, self.timed = search.max_accuracy_drop, search.objective == TIME_TO_ACCURACY
        self._forecasts: dict[tuple[str, ...], Forecast] = {}

    def of_variant(self, compression: CompressionSpec) -> AccuracyRule:
        """The same rule for another variant of the model."""
        return AccuracyRule(self.job, self.search, compression, self.table)

    def forecast(self, plan: Plan) -> Forecast:
        """What a plan's changes make of training."""
        return self.forecast_of(changes_of(plan, self.compression))

    def forecast_of(self, changes: tuple[str, ...]) -> Forecast:
        """The same of changes by name: the worst choice of one of each kind."""
        if changes not in self._forecasts:
            kinds = [list(group) for _, group in groupby(changes, key=_kind)]
            found = [self._forecast_of_kinds(choice) for choice in product(*kinds)]
            drops, ratios = [one.drop for one in found], [one.ratio for one in found]
            steps = [one.steps for one in found]
            self._forecasts[changes] = Forecast(
                changes,
                max((drop for drop in drops if drop), key=lambda drop: drop.high) if all(drops) else None,
                max((ratio for ratio in ratios if ratio), key=lambda ratio: ratio.estimate) if all(ratios) else None,
                None if any(one is None for one in steps) else max(one for one in steps if one is not None),
            )
        return self._forecasts[changes]

    def _forecast_of_kinds(self, changes: Sequence[str]) -> Forecast:
        if self.table is None:
            return Forecast((), NOTHING if not changes else None, AS_MANY if not changes else None, None)
        ratio = self.table.steps_ratio(changes, self._target)
        counted = [change for change in changes if change not in self._trusted]
        drop = self.table.drop(counted) if counted or not changes else None
        return Forecast((), drop, ratio, None if ratio is None or self.plain_steps is None else self.plain_steps * ratio.estimate)

    @cached_property
    def _target(self) -> Any:
        return self.table.target_of(self.job) if self.table else None

    @cached_property
    def _trusted(self) -> frozenset[str]:
        """Changes that count as no drop: published as safe, and not measured here."""
        measured = self.table.changes if self.table else []
        return frozenset(safe_changes()) - frozenset(measured)

    @cached_property
    def plain_steps(self) -> float | None:
        """Steps of the job as it is to the target."""
        return self.table.plain_steps(self._target) if self.table else None

    def allows(self, changes: tuple[str, ...]) -> bool:
        """Whether a plan with these changes is accurate enough, and known to reach the target where that is what counts."""
        return self._is_within(changes) and (not self.timed or isfinite(self.forecast_of(changes).steps or inf))

    def _is_within(self, changes: tuple[str, ...]) -> bool:
        if self.floor is None or set(changes) <= self._trusted:
            return True
        drop = self.forecast_of(changes).drop
        return drop is not None and drop.high <= self.floor + _ROUNDING

    def narrowed(self, search: SearchSpec) -> SearchSpec:
        """The search with the values that can be in an allowed plan; a list of which none can stays as it is, for plans without them."""
        own = variant_change(self.compression)
        changed = {
            key: tuple(value for value in getattr(search, key) if self.allows(_without_none(own, change_of(value))))
            for key, change_of in _LISTS.items()
            if key != "variants"
        }
        return search.model_copy(update={key: values for key, values in changed.items() if values})

    @cached_property
    def least_steps(self) -> float:
        """Steps below which no allowed plan reaches the target."""
        own = variant_change(self.compression)
        gradients, activations, local, late = ([AS_IT_IS, *self._changes_in(key)] for key in _LISTS if key != "variants")
        # No plan has both local steps and late gradients.
        chosen = [_without_none(own, *one) for one in product(gradients, {*local, *late}, activations)]
        return min((self.forecast_of(changes).steps or inf for changes in chosen if self.allows(changes)), default=inf)

    def mistakes(self) -> list[Mistake]:
        """Time to accuracy without knowing how many steps that takes."""
        if not self.timed:
            return []
        if self.table is None:
            what = "needs to know how many steps changes take, and nothing was measured for this model and job"
            return [Mistake("search.objective", what, f"{MEASURE}, or minimise step_time")]
        if self.plain_steps is None:
            what = f"needs runs that evaluate {self._target.metric}, which those in the accuracy table do not"
            return [Mistake("search.objective", what, "leave job.target_loss out, or let evaluate() return it and measure again")]
        if not isfinite(self.plain_steps):
            what = f"cannot be told: {self.table.protocol.steps} steps of the job as it is do not reach the target for every seed"
            return [Mistake("job.target_accuracy", what, f"{MEASURE} --steps {4 * self.table.protocol.steps}, or ask for less")]
        return []

    def refusal(self, refused: Iterable[tuple[str, ...]]) -> NoFeasiblePlanError:
        """Why the nearest of some refused plans is not accurate enough, and what would let it pass."""
        rows = sorted(set(refused), key=lambda changes: (self._high(changes), changes))
        nearest, high = rows[0], self._high(rows[0])
        more = f"allow {' or '.join(dict.fromkeys(_WITHOUT[_kind(change)] for change in nearest))}"
        constraint = "search.max_accuracy_drop" if not self._is_within(nearest) else "search.objective"
        if constraint == "search.objective":
            what = f"with {' and '.join(nearest)} it is not known how many steps reach the target, or not all seeds reach it"
            return NoFeasiblePlanError(constraint, what, f"{MEASURE} with more --steps, or {more}")
        if not isfinite(high):
            return NoFeasiblePlanError(constraint, f"nobody has measured {' and '.join(nearest)} for this job", f"{MEASURE}, or {more}")
        most = f"the accuracy may drop by {100 * high:.2f} %, more than the {100 * (self.floor or 0):.2f} % allowed"
        what = f"with {' and '.join(nearest)} {most}"
        enough = f"write max_accuracy_drop = {high * 1.001 + 1e-6:.5f}"
        return NoFeasiblePlanError(constraint, what, f"{enough}, or measure more seeds, which narrows the interval (--seeds), or {more}")

    def _high(self, changes: tuple[str, ...]) -> float:
        drop = self.forecast_of(changes).drop
        return drop.high if drop else inf

    def notes(self) -> Iterator[str]:
        """Where the figures are from, and what is left out for its accuracy."""
        if self.table:
            yield self.table.describe()
        if self.floor is None and not self.timed:
            return
        if self.table is None:
            yield f"not measured here: of lossy codecs only {' and '.join(safe_codecs())}, whose published record is safe ({MEASURE})"
        left_out = [change for change in self._listed() if not self.allows((change,))]
        if left_out:
            yield f"left out: {'; '.join(f'{change} ({self._why_not(change)})' for change in left_out)}"

    def _listed(self) -> list[str]:
        """Every change that [search] lists."""
        return list(_without_none(*dict.fromkeys(change for key in _LISTS for change in self._changes_in(key))))

    def _changes_in(self, key: str) -> list[str]:
        return [_LISTS[key](value) for value in getattr(self.search, key)]

    def _why_not(self, change: str) -> str:
        drop = self.forecast_of((change,)).drop
        if self._is_within((change,)):
            return "not measured to the target" if self.table and change not in self.table.changes else "does not reach the target"
        if drop is not None:
            return f"drop up to {100 * drop.high:.2f} %"
        return f"not measured{published_words(change)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: provenance, and what is known of every change that [search] lists."""
        changes = {one: self.forecast_of((one,)).to_dict() | {"allowed": self.allows((one,))} for one in self._listed()}
        measured = (
            {"date": self.table.date, "source": self.table.source, "seeds": self.table.seed_count, "level": LEVEL} if self.table else None
        )
        facts: dict[str, Any] = {"measured": measured, "max_accuracy_drop": self.floor, "steps_as_it_is": self.plain_steps}
        if self.table:
            facts |= {"protocol": asdict(self.table.protocol), "target": asdict(self._target)}
        return facts | {"notes": list(self.notes()), "changes": changes}


def _kind(change: str) -> str:
    return change.partition(":")[0]


def _without_none(*changes: str) -> tuple[str, ...]:
    return tuple(change for change in changes if change != AS_IT_IS)


@cache
def published() -> dict[str, dict[str, Any]]:
    """What others found of codecs of gradients, by codec."""
    return tomllib.loads(files("chinchilla_sim.planner").joinpath("published_accuracy.toml").read_text())


def safe_codecs() -> list[str]:
    """Codecs that may be used where nothing was measured."""
    return [codec for codec, record in published().items() if record["safe"]]


def safe_changes() -> list[str]:
    """The same by what they change."""
    return [change_of(codec) for codec in safe_codecs() for change_of in (gradient_change, activation_change)]


def published_words(change: str) -> str:
    """The worst that others found of a codec of gradients, in words."""
    kind, _, codec = change.partition(": ")
    changes = published().get(codec, {}).get("changes", {}) if kind == "gradients" else {}
    if not changes:
        return ""
    model, worst = min(changes.items(), key=lambda item: item[1])
    return f"; published: {100 * worst:+.1f} % on {model}"
