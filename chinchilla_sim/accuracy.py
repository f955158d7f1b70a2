"""The accuracy of a scenario's plans: where its table is kept, how it is measured, and the rule that a search follows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chinchilla_sim.cluster.calibration import cache_folder
from chinchilla_sim.cost.accuracy import FEWEST_SEEDS
from chinchilla_sim.errors import Mistake, RunError, ScenarioError
from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.accuracy import (
    AS_IT_IS,
    AccuracyTable,
    Protocol,
    ShortRun,
    activation_change,
    delay_change,
    gradient_change,
    load_table,
    local_steps_change,
    save_table,
    variant_change,
)
from chinchilla_sim.planner.accuracy_rule import TIME_TO_ACCURACY, AccuracyRule
from chinchilla_sim.planner.selection.judge import Progress
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import Setting, build_graph

SEEDS, STEPS = 5, 400
"""Of a scenario that says nothing else; no more steps than the job has."""
_JOB_KEYS = (
    *("kind", "global_batch_size", "optimizer", "learning_rate", "learning_rate_schedule", "warmup_steps"),
    *("clip_gradient_norm", "momentum", "precision", "data"),
)
_OUTER_KEYS = ("outer_learning_rate", "outer_momentum")


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured; None takes what a stored table has, or the default."""

    seeds: int | None = None
    steps: int | None = None
    replicas: int | None = None


def rule_of(setting: Setting, strict: bool = True) -> AccuracyRule | None:
    """By which plans of a setting are judged for their accuracy; None where nothing was measured and nothing is asked.

    A table that cannot be read, or is of another job, is an error where `strict`, and none where not.
    """
    scenario, search = setting.scenario, setting.scenario.search
    asked = search.max_accuracy_drop is not None or search.objective == TIME_TO_ACCURACY
    named = search.accuracy_table is not None
    if not (asked or named or any(cache_folder().glob("accuracy-*.json"))):
        return None
    try:
        table = _find_table(scenario, _plain_graph(setting))
    except ScenarioError:
        if strict and (asked or named):
            raise
        table = None
    return AccuracyRule(scenario.job, search, scenario.model.compression, table) if asked or table else None


def _plain_graph(setting: Setting) -> TaskGraph:
    """The graph of the model as it is."""
    plain = CompressionSpec()
    if setting.scenario.model.compression == plain:
        return setting.graph
    return build_graph(_of_variant(setting.scenario, plain))[0]


def _of_variant(scenario: Scenario, variant: CompressionSpec) -> Scenario:
    return scenario.model_copy(update={"model": scenario.model.model_copy(update={"compression": variant})})


def job_of(scenario: Scenario, graph: TaskGraph) -> dict[str, Any]:
    """What accuracy depends on, by name: the model and the job, not the cluster; the number of steps and the seeds are the runs' own."""
    model, job = scenario.model, scenario.job
    facts: dict[str, Any] = {"graph": graph.digest, "model": model.builtin or model.factory or model.kind, "options": dict(model.options)}
    facts |= {"weights": _digest_of_file(model.weights), **{key: getattr(job, key) for key in _JOB_KEYS}}
    # Plain averages are what tables without these keys mean.
    facts |= {key: value for key in _OUTER_KEYS if (value := getattr(job, key)) != JobSpec.model_fields[key].default}
    # A file is another one elsewhere: what it is called is enough.
    facts["model"], facts["data"] = (text and Path(text).name for text in (facts["model"], facts["data"]))
    return json.loads(json.dumps(facts, sort_keys=True, default=list))  # type: ignore[no-any-return]


def _digest_of_file(path: str | None) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
    except OSError as error:
        raise ScenarioError([Mistake("model.weights", f"cannot be read: {error.strerror}", "name a saved state_dict")], path) from error


def accuracy_path(job: dict[str, Any]) -> Path:
    """File of the accuracy table of a job on this machine."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"accuracy-{digest[:16]}.json"


def _find_table(scenario: Scenario, graph: TaskGraph) -> AccuracyTable | None:
    job, named = job_of(scenario, graph), scenario.search.accuracy_table
    path = Path(named) if named else accuracy_path(job)
    if not named and not path.exists():
        return None
    table = load_table(path)
    differing = table.differences(job)
    if differing:
        what = f"is of another job: {', '.join(differing)} differ"
        raise ScenarioError(
            [Mistake("search.accuracy_table", what, "run chinchilla calibrate --accuracy SCENARIO --output FILE")], str(path)
        )
    return table


def measure_accuracy(
    scenario: Scenario, amount: Amount, output: Path | None = None, progress: Progress | None = None, tell: Callable[[str], None] = print
) -> tuple[AccuracyTable, Path]:
    """The table of a scenario's job with a row for every change that [search] lists, and the file where it is kept.

    Runs that are stored already are not made again; every run is stored at once. `tell` hears of changes that cannot be measured.
    """
    from chinchilla_sim.runtime.accuracy.accuracy_probe import AccuracyProbe

    graph = build_graph(_of_variant(scenario, CompressionSpec()))[0]
    job = job_of(scenario, graph)
    path = output or accuracy_path(job)
    table = _start(scenario, job, amount, path, tell)
    probe, changes = AccuracyProbe(scenario, table.protocol), listed_changes(scenario)
    seeds = range(scenario.job.seed, scenario.job.seed + max(amount.seeds or SEEDS, table.seed_count if amount.seeds is None else 0))
    missing = [(change, seed) for seed in seeds for change in changes if not table.has(change.name, seed)]
    for done, (change, seed) in enumerate(missing):
        if progress:
            progress(done, len(missing))
        if change.name in table.refused:
            continue
        try:
            runs: Sequence[ShortRun] = [probe.run(change, seed)]
        except RunError as error:
            tell(f"{change.name} is not measured: {error}")
            table, runs = replace(table, refused={**table.refused, change.name: str(error)}), []
        table = table.with_runs(runs, datetime.now(UTC).date().isoformat())
        save_table(table, path)
    return table, path


def _start(scenario: Scenario, job: dict[str, Any], amount: Amount, path: Path, tell: Callable[[str], None]) -> AccuracyTable:
    """The stored table, where it is of the same job and of runs as they are asked for now; else an empty one."""
    stored = load_table(path) if path.exists() else None
    if stored and (differing := stored.differences(job)):
        what = f"has runs of another job: {', '.join(differing)} differ"
        raise ScenarioError([Mistake("--output", what, "name another file, or delete it")], str(path))
    protocol = _protocol(scenario, amount, stored.protocol if stored else None)
    if amount.seeds is not None and amount.seeds < FEWEST_SEEDS:
        raise ScenarioError([Mistake("--seeds", f"must be at least {FEWEST_SEEDS}", "fewer say nothing about chance: write --seeds 5")])
    if stored and stored.protocol == protocol:
        return replace(stored, refused={})
    if stored:
        tell(f"runs of {stored.protocol.steps} steps with {stored.protocol.replicas} replicas in {path} make way for others")
    return AccuracyTable(job, protocol, source=f"torch {version('torch')}, chinchilla calibrate --accuracy")


def _protocol(scenario: Scenario, amount: Amount, stored: Protocol | None) -> Protocol:
    job, given = scenario.job, scenario.model.weights is not None and scenario.job.kind == "inference"
    default = stored or Protocol(steps=min(STEPS, job.total_steps or STEPS))
    steps = 0 if given else amount.steps or default.steps or STEPS
    replicas = amount.replicas or default.replicas
    if job.global_batch_size % replicas:
        what = f"{replicas} virtual replicas cannot share {job.global_batch_size} samples equally"
        raise ScenarioError([Mistake("--replicas", what, "write a number that divides job.global_batch_size")])
    return Protocol(steps, replicas, min(default.evaluations, steps) or default.evaluations)


def listed_changes(scenario: Scenario) -> list[Any]:
    """The job as it is, and everything that [search] lists for its kind of job and that changes what is learned."""
    from chinchilla_sim.runtime.accuracy.short_training import Change

    search, changes = scenario.search, [Change(AS_IT_IS)]
    if scenario.job.kind == "training":
        changes += [Change(gradient_change(codec), gradients=codec) for codec in search.gradient_codecs]
        changes += [Change(local_steps_change(steps), local_steps=steps) for steps in search.local_steps]
        changes += [Change(delay_change(delay), gradient_delay=delay) for delay in search.gradient_delays]
    changes += [Change(activation_change(codec), activations=codec) for codec in search.activation_codecs]
    variants = (scenario.model.compression, *search.variants)
    changes += [Change(variant_change(one), variant=Variant(**one.changes)) for one in variants]
    return list({change.name: change for change in changes}.values())
