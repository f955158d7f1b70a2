"""The same six steps as the command line, from Python.

    load_scenario -> find_plans -> simulate -> run -> compare -> show

>>> from chinchilla_sim import find_plans, load_scenario, show, simulate
>>> scenario = load_scenario("scenarios/seed_four_nodes.toml", ["search.minimum_ranks=2"])
>>> best, *others = find_plans(scenario)
>>> best
FoundPlan('2 stages, 2 microbatches of 32, 1f1b, activations int8', step_s=0.004023)

The same plan on another network, and drawn (in a notebook as a figure):

>>> faster = simulate(best, {**scenario.to_dict()["cluster"], "network": {"bandwidth": "10 GB/s", "latency": "10 us"}})
>>> faster.step_s < best.step_s
True
>>> print(show(faster).text.splitlines()[0])
one step, 1.10 ms

`run(best, steps=100)` measures it, where the scenario is of this machine, and `compare(best, measured)` says how far off that was.
Nothing is printed; what commands tell of their input is in `FoundPlan.notes`, and more in the loggers of this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from chinchilla_sim.console import save_json
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.given import open_plan, simulate_plan
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile, load_plan
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.running import judge_run, run_for_real, simulate_fully
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.load import load_scenario, parse_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import Setting, prepare
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.validation.compare import Comparison, Measurement
from chinchilla_sim.validation.compare import compare as compare_timelines
from chinchilla_sim.workflow import make_best_plan

__all__ = ["FoundPlan", "Shown", "compare", "find_plans", "load_scenario", "run", "show", "simulate"]

AnyCluster = ClusterSpec | Scenario | Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class FoundPlan:
    """A plan with what is predicted of it; `setting` is the scenario that it answers, with graph, cluster and calibration.

    `lower_bound_s` is what no plan of the stated space can beat.
    """

    candidate: Candidate
    setting: Setting
    lower_bound_s: float

    @property
    def plan(self) -> Plan:
        """All that is decided."""
        return self.candidate.plan

    @property
    def timeline(self) -> Timeline:
        """The simulated step."""
        return self.candidate.timeline

    @property
    def step_s(self) -> float:
        """Simulated seconds of a step."""
        return self.candidate.step_s

    @property
    def objective(self) -> float:
        """What was minimised: seconds, USD or joule of a step, or as the scenario asks."""
        return self.candidate.objective

    @property
    def peak_memory_bytes(self) -> float:
        """Simulated peak of the fullest rank."""
        return max(self.timeline.peak_memory_bytes(rank) for rank in range(self.timeline.rank_count))

    @property
    def notes(self) -> tuple[str, ...]:
        """What commands tell of the input, such as a missing calibration."""
        return self.setting.notes

    @property
    def file(self) -> PlanFile:
        """The plan as plan.json holds it."""
        return PlanFile(self.plan, self.setting.scenario, self.setting.hashes, self.step_s)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write plan.json, which `simulate`, `run` and the commands read."""
        self.file.save(Path(path))

    def __str__(self) -> str:
        return self.candidate.title

    def __repr__(self) -> str:
        return f"FoundPlan({self.candidate.title!r}, step_s={self.step_s:.4g})"


def find_plans(scenario: Scenario | str | os.PathLike[str], *, time_limit_s: float | None = None) -> tuple[FoundPlan, ...]:
    """The best plan of a scenario (or its file), then the best of other splits; NoFeasiblePlanError says what stands in the way."""
    loaded = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    first = prepare(loaded)
    setting, search = make_best_plan(first, time_limit_s=time_limit_s)
    listed = (search.best, *search.runner_ups)
    return tuple(FoundPlan(one, _setting_of(one, setting, search), search.lower_bound_s) for one in listed)


def _setting_of(candidate: Candidate, setting: Setting, search: SearchResult) -> Setting:
    """The setting of the variant of the model that a plan is for."""
    if candidate.variant == search.best.variant:
        return setting
    scenario = setting.scenario
    variants = {one.describe(): one for one in (type(scenario.model.compression)(), *scenario.search.variants)}
    model = scenario.model.model_copy(update={"compression": variants[candidate.variant]})
    return prepare(scenario.model_copy(update={"model": model}), setting.calibration)


def simulate(plan: FoundPlan | PlanFile | str | os.PathLike[str], cluster: AnyCluster | None = None) -> Timeline:
    """The simulated step of a plan, on its own cluster or another one: a ClusterSpec, a scenario's, or tables as in a scenario file.

    Idle time has its causes in `waits`. ScenarioError where the plan needs more ranks than the cluster has.
    """
    file = _file_of(plan)
    source = str(plan) if isinstance(plan, str | os.PathLike) else "plan"
    if cluster is not None:
        file = replace(file, scenario=_on_cluster(file.scenario, cluster))
    # Another cluster is meant to differ from what the plan was made for.
    setting = open_plan(file, source, force=cluster is not None or isinstance(plan, FoundPlan))
    return simulate_plan(setting, file).timeline


def _on_cluster(scenario: Scenario, cluster: AnyCluster) -> Scenario:
    if isinstance(cluster, Mapping):
        return parse_scenario({**scenario.to_dict(), "cluster": dict(cluster)}, "cluster")
    spec = cluster.cluster if isinstance(cluster, Scenario) else cluster
    return scenario.model_copy(update={"cluster": spec})


def run(
    plan: FoundPlan | PlanFile | str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    steps: int | None = None,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Measurement:
    """Run a plan for real, and what was measured; weights, metrics and measurement stay in the folder (default: reports/NAME/run).

    `watch` is called with the metrics of every epoch. ScenarioError where it cannot run on this machine, RunError where it fails.
    """
    file = _file_of(plan)
    place = Path(folder) if folder is not None else Path("reports") / file.scenario.name / "run"
    place.mkdir(parents=True, exist_ok=True)
    (place / "measurement.json").unlink(missing_ok=True)
    measurement = run_for_real(file, place, steps, watch)
    save_json(place / "measurement.json", measurement.to_dict())
    return measurement


def compare(simulated: Timeline | FoundPlan, measured: Measurement) -> Comparison:
    """How far a simulated step was off, by category and rank; for a found plan also by cause."""
    if isinstance(simulated, FoundPlan):
        return judge_run(simulated.setting, simulate_fully(simulated.setting, simulated.plan), measured)
    return compare_timelines(simulated, measured)


class Shown:
    """Something to look at: text in a terminal, a figure in a notebook."""

    def __init__(self, text: str, timelines: Sequence[Timeline] = ()) -> None:
        self.text, self._timelines = text, tuple(timelines)

    def __repr__(self) -> str:
        return self.text

    def svg(self) -> str | None:
        """The figure as SVG; None where there is nothing but text."""
        if not self._timelines:
            return None
        from chinchilla_sim.report.drawing.gantt import draw_gantt

        return draw_gantt(*self._timelines).svg()

    def _repr_svg_(self) -> str | None:
        return self.svg()

    def _repr_html_(self) -> str:
        # Inside a page the figure takes the page's own text colour, which may be light.
        svg = self.svg()
        return f'<div style="max-width: 60em">{svg}</div>' if svg else f"<pre>{escape(self.text)}</pre>"


def show(what: Timeline | FoundPlan | Measurement | Comparison, measured: Measurement | Timeline | None = None) -> Shown:
    """A step drawn as a Gantt chart, with the measured one beneath it if given; a comparison as tables."""
    from chinchilla_sim.report.sketch import sketch

    if isinstance(what, Comparison):
        from chinchilla_sim.report.table import to_text
        from chinchilla_sim.report.tables.measured import attribution_table, comparison_table

        return Shown("\n\n".join(map(to_text, (comparison_table(what), *attribution_table(what)))))
    timelines = [one if isinstance(one, Timeline) else one.timeline for one in (what, measured) if one is not None]
    return Shown("\n\n".join(map(sketch, timelines)), timelines)


def _file_of(plan: FoundPlan | PlanFile | str | os.PathLike[str]) -> PlanFile:
    if isinstance(plan, FoundPlan):
        return plan.file
    if isinstance(plan, PlanFile):
        return plan
    if isinstance(plan, str | os.PathLike):
        return load_plan(Path(plan))
    raise ScenarioError([Mistake("plan", f"is a {type(plan).__name__}", "give one of find_plans(...), or the path of a plan.json")])
