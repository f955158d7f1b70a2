"""Does compression pay? Each scenario is planned with and without it, and both plans run in turns over links that this machine emulates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from statistics import median

from chinchilla_sim.accuracy import rule_of
from chinchilla_sim.cluster.build import emulated
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.running import run_for_real
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.setting import Setting, prepare
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.payoffs import Payoff, Side
from chinchilla_sim.workflow import make_plan

ROUNDS = 3
PLAIN = {"gradient_codecs": ("none",), "activation_codecs": ("none",), "local_steps": (1,), "gradient_delays": (0,)}
"""Values of [search] with which nothing is compressed or late."""


def can_run(path: Path) -> bool:
    """Whether this machine emulates the scenario's nodes."""
    return emulated(load_scenario(path).cluster)


def plan_both(path: Path) -> tuple[Setting, Candidate, Candidate]:
    """The setting of a scenario, the best plan without compression, and the best with some of it."""
    setting = prepare(load_scenario(path))
    search = setting.scenario.search
    plain = _plan(setting, search.model_copy(update=PLAIN))
    others, refusal = list[Candidate](), None
    for restricted in _compressed(setting, search):
        try:
            others.append(_plan(setting, restricted))
        except NoFeasiblePlanError as error:
            refusal = error
    if not others and refusal:
        raise refusal
    if not others:
        what = "lists nothing accurate enough that compresses what is sent"
        raise ScenarioError([Mistake("search.gradient_codecs", what, "list codecs, or local_steps above 1")], str(path))
    return setting, plain, min(others, key=lambda candidate: candidate.step_s)


def _plan(setting: Setting, search: SearchSpec) -> Candidate:
    return make_plan(replace(setting, scenario=setting.scenario.model_copy(update={"search": search}))).best


def _compressed(setting: Setting, search: SearchSpec) -> Iterator[SearchSpec]:
    """Searches in each of which one kind of choice is never the plain one, the others free: of what is accurate enough."""
    rule, ranks = rule_of(setting), range(2, setting.cluster.rank_count + 1)
    allowed = rule.narrowed(search) if rule else search
    for key, (nothing,) in PLAIN.items():
        # Replicas exchange gradients and weights, stages activations.
        axis = "pipeline_parallel_degrees" if key == "activation_codecs" else "data_parallel_degrees"
        values = tuple(value for value in getattr(allowed, key) if value != nothing)
        degrees = tuple(degree for degree in getattr(search, axis) or ranks if degree > 1)
        if values and degrees:
            yield search.model_copy(update={key: values, axis: degrees})


def weigh(path: Path, steps: int | None, told: Callable[[str], None]) -> Payoff:
    """Both plans of a scenario; with `steps` each is run ROUNDS times for so many, in turns, and the median counts."""
    setting, *pair = plan_both(path)
    rule = rule_of(setting)
    measured: list[list[float]] = [[], []]
    for round_ in range(ROUNDS if steps else 0):
        for seconds, candidate in zip(measured, pair, strict=True):
            seconds.append(_run_s(setting, candidate, steps))
            told(f"{path.stem}, round {round_ + 1} of {ROUNDS}: {candidate.plan.describe()} {format_seconds(seconds[-1])}")
    sides = [
        Side(
            candidate.plan.describe(),
            candidate.step_s,
            median(seconds) if seconds else None,
            rule.forecast(candidate.plan).drop if rule else None,
        )
        for candidate, seconds in zip(pair, measured, strict=True)
    ]
    ways = [setting.cluster.bandwidth_bytes_per_s(a, b) for a, b in permutations(range(setting.cluster.rank_count), 2)]
    return Payoff(path.stem, min(ways), *sides)


def _run_s(setting: Setting, candidate: Candidate, steps: int | None) -> float:
    """Mean seconds of a step: of plans with local steps only some exchange."""
    file = PlanFile(candidate.plan, setting.scenario, setting.hashes, candidate.step_s)
    with tempfile.TemporaryDirectory(prefix="chinchilla-payoff-") as folder:
        measurement = run_for_real(file, Path(folder), steps)
    return measurement.median_step_s
