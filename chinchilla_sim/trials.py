"""Scenarios run for real one after the other, each beside its simulation: how right is the simulator, and is its first choice the best?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import Any

from chinchilla_sim.cluster.build import this_machine_ranks
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.running import check_runnable, run_for_real
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.setting import Setting, build_graph, find_calibration, prepare, profile_path
from chinchilla_sim.validation.compare import Measurement
from chinchilla_sim.validation.testbed_cases import Choice, LinkCase, relative_spread
from chinchilla_sim.workflow import calibrate, calibration_notes, make_plan, profile_scenario

SPLITS = ("data_parallel_degrees", "pipeline_parallel_degrees", "microbatch_counts", "schedules")
"""Lists of [search] that keep a scenario of the testbed to the one plan that it is about."""
USUAL = {"gradient_buckets": 1, "zero_stages": 0, "tensor_parallel_degrees": 1}
"""Values that plans of other splits need in lists that name something else."""
LARGEST_SPREAD = 0.05
MOST_REPEATS = 3

Told = Callable[[str], None]


def measure_once(paths: Sequence[Path], told: Told) -> None:
    """Calibrate this machine and each model where that was not done; every scenario is checked first."""
    scenarios = [load_scenario(path) for path in paths]
    for path, scenario in zip(paths, scenarios, strict=True):
        try:
            check_runnable(scenario)
        except ScenarioError as error:
            raise ScenarioError(error.mistakes, error.source or str(path)) from error
    ranks = max(this_machine_ranks(scenario.cluster) for scenario in scenarios)
    if find_calibration(ranks)[0] is None:
        told(f"measuring this machine with up to {ranks} busy ranks")
        for note in calibration_notes(*calibrate(ranks)):
            told(note)
    for scenario in _by_graph(scenarios, ranks):
        told(f"measuring every task of {scenario.model.builtin or scenario.model.factory}")
        profile_scenario(scenario)


def _by_graph(scenarios: Sequence[Scenario], ranks: int) -> Iterator[Scenario]:
    """For each model that was not measured one scenario, with as many ranks of this machine as any of them keeps busy."""
    seen: set[Path] = set()
    for scenario in scenarios:
        path = profile_path(build_graph(scenario)[0])
        if path not in seen and not path.exists():
            cluster = scenario.cluster.model_copy(update={"kind": "this-machine", "ranks": ranks, "nodes": ()})
            yield scenario.model_copy(update={"cluster": cluster})
        seen.add(path)


def run_case(path: Path, steps: int) -> LinkCase:
    """The chosen plan of a scenario, simulated and run; again where the measured steps spread by more than LARGEST_SPREAD."""
    setting = prepare(load_scenario(path))
    best = make_plan(setting).best
    measurement, repeats = _run(setting, best, steps)
    slowest, fastest = _bandwidths(setting.cluster)
    return LinkCase(
        name=path.stem,
        plan=best.plan.describe(),
        ranks=len(best.plan.slots),
        slowest_bytes_per_s=slowest,
        fastest_bytes_per_s=fastest,
        simulated_step_s=best.step_s,
        measured_step_s=median(measurement.step_s),
        spread=relative_spread(measurement.step_s),
        step_count=len(measurement.step_s),
        repeats=repeats,
    )


def run_choices(path: Path, steps: int, count: int) -> Choice:
    """The first plans of a scenario whose search may split as it likes, each run."""
    scenario = load_scenario(path)
    free: dict[str, Any] = {name: SearchSpec.model_fields[name].default for name in SPLITS} | {"runner_ups": count - 1}
    free |= {name: tuple(sorted({value, *getattr(scenario.search, name)})) for name, value in USUAL.items()}
    setting = prepare(scenario.model_copy(update={"search": scenario.search.model_copy(update=free)}))
    search = make_plan(setting)
    listed = [search.best, *search.runner_ups][:count]
    measured = [median(_run(setting, candidate, steps)[0].step_s) for candidate in listed]
    return Choice(path.stem, tuple(one.plan.describe() for one in listed), tuple(one.step_s for one in listed), tuple(measured))


def _run(setting: Setting, candidate: Candidate, steps: int) -> tuple[Measurement, int]:
    """A run whose steps spread little, or else all steps of MOST_REPEATS runs, with their number."""
    file = PlanFile(candidate.plan, setting.scenario, setting.hashes, candidate.step_s)
    runs: list[Measurement] = []
    while len(runs) < MOST_REPEATS:
        with tempfile.TemporaryDirectory(prefix="chinchilla-trial-") as folder:
            runs.append(run_for_real(file, Path(folder), steps))
        if relative_spread(runs[-1].step_s) <= LARGEST_SPREAD:
            return runs[-1], len(runs)
    middle = sorted(runs, key=lambda run: run.median_step_s)[len(runs) // 2]
    return replace(middle, step_s=tuple(second for run in runs for second in run.step_s)), len(runs)


def _bandwidths(cluster: Cluster) -> tuple[float, float]:
    """Bandwidths of the narrowest and of the widest way between two slots."""
    ways = [cluster.bandwidth_bytes_per_s(a, b) for a, b in permutations(range(cluster.rank_count), 2)]
    return min(ways), max(ways)
