"""What several commands do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_sim.console import Interrupt, busy, log, print_json, print_tables, searching
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.planner.selection.candidate import SearchResult
    from chinchilla_sim.setting import Setting

CALIBRATION_S = 40.0
"""About how long a calibration takes."""


def load_scenario_file(path: Path, overrides: list[str] | None) -> Any:
    from chinchilla_sim.scenario.load import load_scenario

    return load_scenario(path, overrides or ())


def seconds_of(option: str, text: str) -> float:
    """Seconds of an option such as "30s"."""
    from chinchilla_sim.units import parse_seconds

    try:
        return parse_seconds(text)
    except ValueError as error:
        raise ScenarioError([Mistake(option, f"{text!r} is no time", 'write a number with a unit, such as "30s"')]) from error


def at_least(option: str, count: int, least: int = 1) -> None:
    """A ScenarioError for an option that counts too few."""
    if count < least:
        raise ScenarioError([Mistake(option, f"must be at least {least}, not {count}", f"write for example {option} {max(4, least)}")])


def process_count(jobs: int | None) -> int:
    """Processes for --jobs: as many as there are cores unless told."""
    from chinchilla_sim.cluster.calibration import core_count

    if jobs is not None:
        at_least("--jobs", jobs)
    return jobs or core_count()


@contextmanager
def infeasible_as_json(as_json: bool, what: str) -> Iterator[None]:
    """An answer that there is none, as one JSON document beside the message; `what` is missing in it."""
    try:
        yield
    except NoFeasiblePlanError as answer:
        if as_json:
            why = {"constraint": answer.constraint, "shortfall": answer.shortfall, "cure": answer.cure}
            print_json({what: None, "status": "infeasible", **why})
        raise


def load_plan_file(path: Path, allow_factory: bool = False) -> PlanFile:
    """A plan file whose factory, if it names one, may be imported."""
    from chinchilla_sim.planner.plan_file import load_plan

    return load_plan(path).allow_factory(allow_factory, str(path))


@contextmanager
def named(source: Path) -> Iterator[None]:
    """Mistakes that are found after a file has been read, such as an unknown device, are told with its name too."""
    try:
        yield
    except ScenarioError as error:
        raise ScenarioError(error.mistakes, error.source or str(source)) from error


def find_plan(
    path: Path,
    overrides: list[str] | None,
    time_limit_s: float | None = None,
    front: bool = False,
    interrupt: Interrupt | None = None,
) -> tuple[Setting, SearchResult]:
    """The best plan of a scenario file; an `interrupt` ends the search with the best plan so far."""
    from chinchilla_sim.setting import prepare
    from chinchilla_sim.workflow import make_best_plan

    with named(path):
        setting = prepare(load_scenario_file(path, overrides))
    for note in setting.notes:
        log(note)
    with named(path), searching() as progress, interrupt.heeded() if interrupt else nullcontext():
        return make_best_plan(setting, progress, time_limit_s, front, interrupt)


def plan_to_run(
    source: Path, overrides: list[str] | None, force: bool, quiet: bool, allow_factory: bool = False
) -> tuple[PlanFile, Setting]:
    """The plan to run and its setting; this machine is calibrated first where it was not."""
    from chinchilla_sim.running import check_runnable
    from chinchilla_sim.setting import prepare
    from chinchilla_sim.workflow import ensure_calibration, make_best_plan, open_plan, plan_file

    is_plan = source.suffix == ".json"
    if is_plan and overrides:
        raise ScenarioError([Mistake("--set", "a plan is run as it is", "set values when planning")])
    file = load_plan_file(source, allow_factory) if is_plan else None
    scenario = file.scenario if file else load_scenario_file(source, overrides)
    with named(source):
        check_runnable(scenario)
    with busy("measuring this machine, once", CALIBRATION_S):
        for note in ensure_calibration(scenario):
            log(note)
    if file:
        return file, open_plan(file, str(source), force=force)
    with named(source):
        setting = prepare(scenario)
    with named(source), searching() as progress:
        setting, search = make_best_plan(setting, progress)
    if not quiet:
        print_plan(setting, search)
    return plan_file(setting, search), setting


def run_to_resume(folder: Path | None, overrides: list[str] | None, allow_factory: bool = False) -> tuple[PlanFile, Setting]:
    """The plan of an interrupted run and its setting, with some values of its scenario replaced, such as job.epochs."""
    from dataclasses import replace

    from chinchilla_sim.running import check_runnable
    from chinchilla_sim.workflow import open_plan

    if folder is None:
        raise ScenarioError([Mistake("source", "is missing", "name a scenario or a plan, or --resume FOLDER of a run")])
    source = folder / "plan.json"
    file = load_plan_file(source, allow_factory)
    # The same run goes on: what it was planned from may have changed.
    setting = open_plan(file, str(source), overrides or (), force=True)
    with named(source):
        check_runnable(setting.scenario)
    return replace(file, scenario=setting.scenario), setting


def measurement_of(folder: Path, file: PlanFile) -> Any:
    """What was measured for the same plan, or None."""
    from chinchilla_sim.validation.compare import Measurement

    try:
        same = load_plan_file(folder / "plan.json").plan == file.plan
        return Measurement.from_dict(json.loads((folder / "measurement.json").read_text())) if same else None
    except (OSError, ValueError, KeyError, TypeError, ScenarioError):
        return None


def print_plan(setting: Setting, search: SearchResult) -> None:
    from chinchilla_sim.report.sketch import sketch
    from chinchilla_sim.report.tables.cost import cost_table
    from chinchilla_sim.report.tables.plans import candidates_table, ranks_table
    from chinchilla_sim.report.tables.serving import serving_tables
    from chinchilla_sim.workflow import study_of

    study = study_of(setting, search)
    first = candidates_table(search, setting.scenario.search.objective), *serving_tables(search)
    print_tables(*first, ranks_table(search.best, setting.cluster), cost_table(study))
    print(sketch(search.best.timeline), "", *study.explanation, sep="\n")


def calibrate_tasks(scenario: Path, overrides: list[str] | None, ranks: int | None, as_json: bool) -> None:
    """Measure the tasks of a scenario's model."""
    from chinchilla_sim.cluster.build import this_machine_ranks
    from chinchilla_sim.report.tables.machine import profile_table
    from chinchilla_sim.scenario.load import load_scenario
    from chinchilla_sim.workflow import profile_scenario

    loaded = load_scenario(scenario, [*(overrides or ()), *([f"cluster.ranks={ranks}"] if ranks else ())])
    if not this_machine_ranks(loaded.cluster):
        cure = 'set cluster.kind = "this-machine"; other machines are described by the catalogue'
        raise ScenarioError([Mistake("cluster.kind", "only this machine's tasks can be measured here", cure)], str(scenario))
    with watching_others() as others, busy("measuring every task of the model"):
        profile, path = profile_scenario(loaded)
    if as_json:
        print_json(profile.to_dict() | others)
    else:
        print_tables(profile_table(profile))
        log(f"stored in {path}")


@contextmanager
def watching_others() -> Iterator[dict[str, float | None]]:
    """Warn before and after a measurement where other programs keep this machine busy; filled with what they took, in cores."""
    from chinchilla_sim.cluster.other_load import OtherLoad, load_warning, other_load

    before = other_load()
    told: dict[str, float | None] = {"other_cores_before": before}
    if warning := load_warning(before, "are busy with other programs"):
        log(warning)
    others = OtherLoad()
    yield told
    told["other_cores"] = others.cores()
    if warning := load_warning(told["other_cores"], "were busy with other programs while this was measured"):
        log(warning)
