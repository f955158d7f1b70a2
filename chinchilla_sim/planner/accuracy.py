"""The accuracy table: short real runs of one job, as it is and with one change each, and what follows from them.

`chinchilla calibrate --accuracy` measures it (runtime/accuracy/); it holds what was seen, and every figure is worked out when it is asked
for (cost/accuracy.py). Changes are named by texts, so that whatever a plan may change has a row:

    gradients: int8      codec of what replicas exchange        activations: fp16    codec of what stages send each other
    local_steps: 16      of which replicas exchange in one      gradient_delay: 1    steps by which gradients are applied late
    variant: pruned 50 %     a smaller variant of the model
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from chinchilla_sim.cost.accuracy import AS_MANY, NOTHING, Interval, paired_interval, ratio_interval, steps_to_reach
from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import CompressionSpec

FORMAT = "chinchilla-accuracy"
VERSION = 1
AS_IT_IS = "as it is"
"""The change that is none: what all others are compared with."""
ACCURACIES = ("accuracy", "iou", "auc", "precision", "match")
"""Words by which a metric is taken for an accuracy (0..1, more is better), the first of them first."""
LOSS = "validation_loss"
TARGET_SHARE = 0.8
"""Where a scenario states no target it is the mean of the run as it is from this share of its steps on: about what it has reached at 90 %.
The best that it reached until then would be a lucky evaluation, which the same run with rounded gradients need not meet."""


def gradient_change(codec: str) -> str:
    """Name of a codec of gradients as a change."""
    return AS_IT_IS if codec == "none" else f"gradients: {codec}"


def activation_change(codec: str) -> str:
    """Name of a codec of activations as a change."""
    return AS_IT_IS if codec == "none" else f"activations: {codec}"


def local_steps_change(local_steps: int) -> str:
    """Name of local steps as a change."""
    return AS_IT_IS if local_steps == 1 else f"local_steps: {local_steps}"


def delay_change(gradient_delay: int) -> str:
    """Name of late gradients as a change."""
    return f"gradient_delay: {gradient_delay}" if gradient_delay else AS_IT_IS


def variant_change(variant: CompressionSpec) -> str:
    """Name of a smaller variant of the model as a change."""
    return AS_IT_IS if variant == CompressionSpec() else f"variant: {variant.describe()}"


def changes_of(plan: Plan, compression: CompressionSpec) -> tuple[str, ...]:
    """What a plan changes about the job, each kind of codec once however many stages have it; () where nothing."""
    changes = [variant_change(compression)]
    if plan.training and plan.exchange_degree > 1:
        changes += sorted(gradient_change(codec) for stage, codec in enumerate(plan.gradient_codecs) if plan.exchange_degree_of(stage) > 1)
        changes += [local_steps_change(plan.local_steps), delay_change(plan.gradient_delay)]
    crossed = [codec for boundary, codec in enumerate(plan.activation_codecs) if plan.crosses(boundary)]
    changes += sorted(map(activation_change, crossed))
    return tuple(change for change in dict.fromkeys(changes) if change != AS_IT_IS)


@dataclass(frozen=True, slots=True)
class ShortRun:
    """One run: `metrics[name][i]` was evaluated after `steps[i]` steps.

    `sent_bytes` is what the change is about, per step: what a rank sends for its gradients (or differences of weights), or both ways over
    a boundary; of a variant its weights. `plain_bytes` is the same of the job as it is.
    """

    change: str
    seed: int
    steps: tuple[int, ...]
    metrics: Mapping[str, tuple[float, ...]]
    sent_bytes: float = 0.0
    plain_bytes: float = 0.0

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(steps, value) of every evaluation."""
        return [(float(steps), value) for steps, value in zip(self.steps, self.metrics[metric], strict=True)]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the runs were made: optimizer steps, replicas among which each batch was divided, evaluations."""

    steps: int
    replicas: int = 2
    evaluations: int = 20


@dataclass(frozen=True, slots=True)
class Target:
    """What training is to reach; without a `value` what the run as it is has about reached after 90 % of its steps, seed by seed."""

    metric: str
    rising: bool
    value: float | None = None

    def value_of(self, plain: ShortRun) -> float:
        """The value to be reached by the runs of a seed."""
        if self.value is not None:
            return self.value
        return fmean(value for steps, value in plain.curve(self.metric) if steps >= TARGET_SHARE * plain.steps[-1] * (1 - 1e-9))


@dataclass(frozen=True)
class AccuracyTable:
    """All runs of one job; `job` is what they depend on, by name, and `source` says when and with what they were made."""

    job: Mapping[str, Any]
    protocol: Protocol
    runs: tuple[ShortRun, ...] = ()
    date: str = ""
    source: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Changes that could not be measured, and why."""

    @cached_property
    def by_change(self) -> dict[str, dict[int, ShortRun]]:
        """Change -> seed -> run."""
        found: dict[str, dict[int, ShortRun]] = {}
        for run in self.runs:
            found.setdefault(run.change, {})[run.seed] = run
        return found

    def has(self, change: str, seed: int) -> bool:
        """Whether this run was made."""
        return seed in self.by_change.get(change, {})

    def with_runs(self, runs: Sequence[ShortRun], date: str) -> AccuracyTable:
        """The table with more runs."""
        return replace(self, runs=(*self.runs, *runs), date=date)

    @property
    def changes(self) -> list[str]:
        """Changes that were measured, in the order of their runs."""
        return [change for change in self.by_change if change != AS_IT_IS]

    @property
    def accuracy_metric(self) -> str | None:
        """The metric that is the accuracy."""
        return accuracy_among(self.runs[0].metrics) if self.runs else None

    def seeds(self, changes: Iterable[str]) -> list[int]:
        """Seeds of which there is the run as it is and one of each change."""
        common = set(self.by_change.get(AS_IT_IS, {}))
        for change in changes:
            common &= set(self.by_change.get(change, {}))
        return sorted(common)

    def drop(self, changes: Sequence[str]) -> Interval | None:
        """By how much all changes together lower the accuracy at the end (0..1); None where one is not measured."""
        metric = self.accuracy_metric
        if not changes:
            return NOTHING
        seeds = self.seeds(changes)
        if not seeds or metric is None:
            return None
        plain = self.by_change[AS_IT_IS]
        lost = [sum(plain[seed].metrics[metric][-1] - self.by_change[one][seed].metrics[metric][-1] for one in changes) for seed in seeds]
        return paired_interval(lost)

    def plain_steps(self, target: Target) -> float | None:
        """Mean steps of the job as it is to a target, over seeds; infinite where one does not reach it, None where nothing is measured."""
        plain = self.by_change.get(AS_IT_IS, {})
        return fmean(_steps(run, run, target) for run in plain.values()) if plain and self.knows(target) else None

    def steps_ratio(self, changes: Sequence[str], target: Target) -> Interval | None:
        """How many times the steps all changes together take to a target; None where one is not measured."""
        if not changes:
            return AS_MANY
        seeds = self.seeds(changes)
        if not seeds or not self.knows(target):
            return None
        plain = self.by_change[AS_IT_IS]
        before = [_steps(plain[seed], plain[seed], target) for seed in seeds]
        after = [_product_of_ratios(self, changes, seed, target) for seed in seeds]
        return ratio_interval(after, [1.0] * len(after)) if all(map(isfinite, before)) else Interval(inf, inf, inf)

    def reached(self, change: str, target: Target) -> int:
        """How many seeds reach the target with a change."""
        plain, seeds = self.by_change.get(AS_IT_IS, {}), self.seeds([change])
        return sum(isfinite(_steps(self.by_change[change][seed], plain[seed], target)) for seed in seeds)

    def knows(self, target: Target) -> bool:
        """Whether the metric of a target was evaluated, in runs that have steps."""
        return bool(self.runs) and target.metric in self.runs[0].metrics and self.runs[0].steps[-1] > 0

    def target_of(self, job: JobSpec) -> Target:
        """The target of a job: the accuracy or loss that it states, else one of the run as it is, of its loss if that is evaluated."""
        accuracy = self.accuracy_metric or "validation_accuracy"
        if job.target_accuracy is not None:
            return Target(accuracy, True, job.target_accuracy)
        if job.target_loss is not None:
            return Target(LOSS, False, job.target_loss)
        falls = bool(self.runs) and LOSS in self.runs[0].metrics
        return Target(LOSS, False) if falls else Target(accuracy, True)

    @property
    def seed_count(self) -> int:
        """Seeds of the run as it is."""
        return len(self.by_change.get(AS_IT_IS, {}))

    def describe(self) -> str:
        """When and how it was measured, in words."""
        how = f"{self.seed_count} seeds of {self.protocol.steps} steps with {self.protocol.replicas} replicas"
        return f"measured {self.date}, {how}" if self.protocol.steps else f"measured {self.date} on given weights, without training"

    def differences(self, job: Mapping[str, Any]) -> list[str]:
        """Names of what another job has different."""
        return sorted(name for name in {*job, *self.job} if job.get(name) != self.job.get(name))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        runs = [{**asdict(run), "steps": list(run.steps), "metrics": {k: list(v) for k, v in run.metrics.items()}} for run in self.runs]
        rest = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("runs", "protocol")}
        return {"format": FORMAT, "version": VERSION, **rest, "protocol": asdict(self.protocol), "runs": runs}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> AccuracyTable:
        """Inverse of `to_dict`; ValueError, KeyError or TypeError where it is something else."""
        values = dict(data)
        if values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
            raise ValueError(f"not a {FORMAT} file of version {VERSION}")
        runs = tuple(_run(row) for row in values.pop("runs"))
        if any(run.metrics.keys() != runs[0].metrics.keys() for run in runs):
            raise ValueError("its runs evaluate different metrics")
        table = AccuracyTable(protocol=Protocol(**values.pop("protocol")), runs=runs, **values)
        texts = (table.date, table.source, *table.refused.keys(), *table.refused.values(), *table.job.keys())
        if not all(isinstance(text, str) for text in texts) or not all(_is_count(value) for value in asdict(table.protocol).values()):
            raise ValueError("its date, source, refusals, job or protocol is not what was written")
        return table


def accuracy_among(metrics: Iterable[str]) -> str | None:
    """The metric that is an accuracy, by its name.

    >>> accuracy_among(["validation_loss", "validation_token_accuracy"])
    'validation_token_accuracy'
    """
    names = list(metrics)
    return next((name for word in ACCURACIES for name in names if word in name), None)


def _product_of_ratios(table: AccuracyTable, changes: Sequence[str], seed: int, target: Target) -> float:
    """Product of the changes' ratios of steps for one seed."""
    plain, product = table.by_change[AS_IT_IS][seed], 1.0
    before = _steps(plain, plain, target)
    for change in changes:
        product *= _steps(table.by_change[change][seed], plain, target) / before
    return product


def _steps(run: ShortRun, plain: ShortRun, target: Target) -> float:
    # What is reached before the first step is reached in one: a ratio needs a number above 0.
    return max(1.0, steps_to_reach(run.curve(target.metric), target.value_of(plain), target.rising))


def _run(row: Mapping[str, Any]) -> ShortRun:
    metrics = {name: tuple(map(_number, values)) for name, values in row["metrics"].items()}
    sent = {key: _number(row[key]) for key in ("sent_bytes", "plain_bytes") if key in row}
    run = ShortRun(**{**row, **sent, "steps": tuple(row["steps"]), "metrics": metrics})
    if not isinstance(run.change, str) or not _is_count(run.seed) or not all(map(_is_count, run.steps)):
        raise ValueError("a run has no name, seed or steps")
    if not run.steps or any(len(values) != len(run.steps) for values in metrics.values()):
        raise ValueError(f"the run of {run.change}, seed {run.seed}, has other numbers of steps and values")
    return run


def _number(value: Any) -> float:
    """A number; a loss that has diverged is none that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    return float(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def load_table(path: Path) -> AccuracyTable:
    """Read one file; a damaged one is a ScenarioError."""
    try:
        return AccuracyTable.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        cure = "make it with chinchilla calibrate --accuracy SCENARIO"
        raise ScenarioError([Mistake("accuracy table", f"cannot be read: {why_unreadable(error)}", cure)], str(path)) from error


def save_table(table: AccuracyTable, path: Path) -> None:
    """Write the file in one move, a run on each line."""
    facts = table.to_dict()
    runs = ",\n  ".join(json.dumps(run) for run in facts.pop("runs"))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(f'{json.dumps(facts, indent=1).removesuffix("}").rstrip()},\n "runs": [\n  {runs}\n ]\n}}\n')
    partial.replace(path)
