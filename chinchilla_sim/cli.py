"""The command line: every command is a plain function whose docstring is its help; heavy imports are inside.

Results go to stdout or a named file, logs to stderr. Exit codes: 0 done, 1 no feasible plan or a run failed,
2 bad input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from chinchilla_sim.errors import ChinchillaError, Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.planner.search import SearchResult
    from chinchilla_sim.report.table import Table
    from chinchilla_sim.workflow import Setting

app = App(
    name="chinchilla",
    help="Split and compress a neural network over several devices: plan, simulate, run, and check the prediction.",
)
validate = App(name="validate", help="Compare simulation with reality.")
app.command(validate)

Overrides = Annotated[
    list[str] | None, Parameter(name="--set", help="Replace a value of the scenario, such as job.global_batch_size=128.", negative=())
]
AsJson = Annotated[bool, Parameter(name="--json", help="Print one JSON document instead of tables.", negative=())]
Force = Annotated[bool, Parameter(name="--force", help="Use a plan although its graph, catalogue or calibration has changed.", negative=())]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]

VALIDATION_STEPS = 200


def main() -> None:
    """Entry point of the `chinchilla` command."""
    try:
        app(exit_on_error=False)
    except CycloptsError:
        sys.exit(2)
    except ChinchillaError as error:
        _log(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _log("interrupted")
        sys.exit(130)


@app.command
def plan(scenario: Path, *, overrides: Overrides = None, output: Output = None, as_json: AsJson = False) -> None:
    """Find the best split of a scenario's job over its machines and say why it wins.

    Parameters
    ----------
    scenario
        A scenario file (TOML).
    output
        Write the chosen plan to this file (plan.json), which `simulate`, `run` and `validate run` read.
    """
    from chinchilla_sim.report.table import search_dict
    from chinchilla_sim.workflow import plan_file, study_of

    if output:
        _writable(output.parent)
    setting, search = _plan(scenario, overrides)
    file = plan_file(setting, search)
    if output:
        file.save(output)
    if as_json:
        _print_json(search_dict(study_of(setting, search)) | {"plan": file.to_dict()})
    else:
        _print_plan(setting, search)
        if output:
            _log(f"plan written to {output}")


@app.command
def simulate(*plans: Path, overrides: Overrides = None, as_json: AsJson = False, force: Force = False) -> None:
    """Simulate one step of given plans, also on another cluster, and compare them in one table.

    Parameters
    ----------
    plans
        Plan files (plan.json).
    """
    from chinchilla_sim.report.listing import simulated_dict, simulated_table
    from chinchilla_sim.workflow import open_plan, simulate_plan

    if not plans:
        raise ScenarioError([Mistake("", "no plan named", "chinchilla simulate PLAN.json")])
    rows = []
    for path in plans:
        file = _load_plan(path)
        # Values that are set on purpose need no hash: the graph's still counts.
        setting = open_plan(file, str(path), overrides or (), force)
        rows.append((str(path), simulate_plan(setting, file)))
    if as_json:
        _print_json({"plans": [{"plan": name} | simulated_dict(candidate) for name, candidate in rows]})
    else:
        _print_tables(simulated_table(rows))


@app.command
def run(
    source: Path,
    *,
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
    force: Force = False,
    steps: int | None = None,
) -> None:
    """Plan, simulate and run a job for real on this machine, and compare prediction and measurement.

    Parameters
    ----------
    source
        A scenario (TOML), or a plan (JSON) that is run as it is.
    output
        Folder for plan.json, weights.pt, metrics.jsonl and measurement.json (default: reports/NAME/run).
    steps
        Stop after so many optimizer steps.
    """
    from chinchilla_sim.report.table import categories_table, comparison_table, metrics_table
    from chinchilla_sim.validation.compare import compare
    from chinchilla_sim.workflow import run_for_real, simulate_plan

    file, setting = _plan_to_run(source, overrides, force, as_json)
    folder = _writable(output or Path("reports") / setting.scenario.name / "run")
    candidate = simulate_plan(setting, file)
    (folder / "measurement.json").unlink(missing_ok=True)
    with _epochs(file.scenario.job.epochs) as watch:
        measurement = run_for_real(file, folder, steps, watch)
    comparison = compare(candidate.timeline, measurement)
    _save_json(folder / "measurement.json", measurement.to_dict())
    if as_json:
        summary = {"plan": file.to_dict(), **comparison.to_dict(), **measurement.metrics, "weights": measurement.weights}
        _print_json(summary)
    else:
        _print_tables(comparison_table(comparison), categories_table(comparison), metrics_table(measurement))
        _log(f"weights, metrics and measurement are in {folder}; `chinchilla report` shows them")


@validate.command(name="run")
def validate_run(plan: Path, *, steps: int = VALIDATION_STEPS, as_json: AsJson = False, force: Force = False) -> None:
    """Run a plan again for some steps and print simulated against measured, with the spread of the measurement.

    Parameters
    ----------
    plan
        A plan file (plan.json).
    steps
        Optimizer steps to measure.
    """
    import tempfile

    from chinchilla_sim.report.table import categories_table, comparison_table
    from chinchilla_sim.validation.compare import compare
    from chinchilla_sim.workflow import open_plan, run_for_real, simulate_plan

    file = _load_plan(plan)
    setting = open_plan(file, str(plan), force=force)
    candidate = simulate_plan(setting, file)
    with tempfile.TemporaryDirectory(prefix="chinchilla-") as folder:
        comparison = compare(candidate.timeline, run_for_real(file, Path(folder), steps))
    if as_json:
        _print_json(comparison.to_dict())
    else:
        _print_tables(comparison_table(comparison), categories_table(comparison))


@app.command
def report(source: Path, *, overrides: Overrides = None, output: Output = None, as_json: AsJson = False) -> None:
    """Write one self-contained HTML page about a scenario, with a Chrome trace, a summary and JSON beside it.

    Parameters
    ----------
    source
        A scenario (TOML). What `chinchilla run` measured in the same folder is shown beside the simulation.
    output
        Folder to write to (default: reports/NAME).
    """
    from chinchilla_sim.report.page import render_page
    from chinchilla_sim.report.table import search_dict, summary_text
    from chinchilla_sim.report.trace import chrome_trace
    from chinchilla_sim.workflow import plan_file, study_of

    scenario_name = _load(source, overrides).name
    folder = _writable(output or Path("reports") / scenario_name)
    setting, search = _plan(source, overrides)
    file = plan_file(setting, search)
    measurement = _measurement_of(folder / "run", file)
    study = study_of(setting, search, measurement)
    timelines = {"simulated": search.best.timeline} | ({"measured": measurement.timeline} if measurement else {})
    result = search_dict(study) | {"plan": file.to_dict()}
    file.save(folder / "plan.json")
    (folder / "report.html").write_text(render_page(study), encoding="utf-8")
    (folder / "summary.txt").write_text(summary_text(study), encoding="utf-8")
    _save_json(folder / "trace.json", chrome_trace(timelines))
    _save_json(folder / "report.json", result)
    if as_json:
        _print_json(result)
    else:
        print(folder / "report.html")


@app.command
def calibrate(*, ranks: int | None = None, as_json: AsJson = False) -> None:
    """Measure this machine (products, memory, messages and collectives of local ranks) and store the result.

    Parameters
    ----------
    ranks
        Ranks that will be busy at once (default: one per core).
    """
    from chinchilla_sim.cluster.calibration import core_count, stale_entries
    from chinchilla_sim.report.listing import calibration_table
    from chinchilla_sim.workflow import calibrate as measure

    with _busy("measuring this machine (about 20 s)"):
        calibration, path = measure(ranks or core_count())
    for reason in stale_entries(calibration.key):
        _log(f"stale calibration: {reason}")
    if as_json:
        _print_json(calibration.to_dict())
    else:
        _print_tables(calibration_table(calibration))
        _log(f"stored in {path}")


@app.command
def schema() -> None:
    """Print the JSON schema of scenario files; editors complete from it."""
    from chinchilla_sim.scenario.load import json_schema

    _print_json(json_schema())


# What the commands share


def _load(path: Path, overrides: list[str] | None) -> Any:
    from chinchilla_sim.scenario.load import load_scenario

    return load_scenario(path, overrides or ())


def _load_plan(path: Path) -> PlanFile:
    from chinchilla_sim.planner.plan_file import load_plan

    return load_plan(path)


def _plan(path: Path, overrides: list[str] | None) -> tuple[Setting, SearchResult]:
    from chinchilla_sim.workflow import make_plan, prepare

    setting = prepare(_load(path, overrides))
    for note in setting.notes:
        _log(note)
    with _searching() as progress:
        return setting, make_plan(setting, progress)


def _plan_to_run(source: Path, overrides: list[str] | None, force: bool, quiet: bool) -> tuple[PlanFile, Setting]:
    """The plan to run and its setting; this machine is calibrated first where it was not."""
    from chinchilla_sim.workflow import ensure_calibration, make_plan, open_plan, plan_file, prepare

    is_plan = source.suffix == ".json"
    if is_plan and overrides:
        raise ScenarioError([Mistake("--set", "a plan is run as it is", "set values when planning")])
    file = _load_plan(source) if is_plan else None
    scenario = file.scenario if file else _load(source, overrides)
    with _busy("measuring this machine (about 20 s, once)"):
        for note in ensure_calibration(scenario):
            _log(note)
    if file:
        return file, open_plan(file, str(source), force=force)
    setting = prepare(scenario)
    with _searching() as progress:
        search = make_plan(setting, progress)
    if not quiet:
        _print_plan(setting, search)
    return plan_file(setting, search), setting


def _measurement_of(folder: Path, file: PlanFile) -> Any:
    """What was measured for the same plan, or None."""
    from chinchilla_sim.validation.compare import Measurement

    try:
        same = _load_plan(folder / "plan.json").plan == file.plan
        return Measurement.from_dict(json.loads((folder / "measurement.json").read_text())) if same else None
    except (OSError, ValueError, KeyError, TypeError, ScenarioError):
        return None


def _print_plan(setting: Setting, search: SearchResult) -> None:
    from chinchilla_sim.report.sketch import sketch
    from chinchilla_sim.report.table import candidates_table, cost_table, ranks_table
    from chinchilla_sim.workflow import study_of

    study = study_of(setting, search)
    _print_tables(candidates_table(search, setting.scenario.search.objective), ranks_table(search.best, setting.cluster), cost_table(study))
    print(sketch(search.best.timeline), "", *study.explanation, sep="\n")


def _print_tables(*tables: Table) -> None:
    from rich.console import Console

    from chinchilla_sim.report.table import to_rich, to_text

    console = Console()
    for table in tables:
        if console.is_terminal:
            console.print(to_rich(table))
        else:
            print(to_text(table))
        print()


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(_finite(value), indent=1, allow_nan=False))


def _save_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _writable(folder: Path) -> Path:
    """The folder, made if need be; one that cannot be written is a mistake found before the work starts."""
    probe = folder / ".chinchilla-write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ScenarioError([Mistake("--output", f"cannot write to {folder}: {error.strerror}", "name another folder")]) from error
    return folder


@contextmanager
def _busy(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextmanager
def _searching() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("searching splits"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("search")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _epochs(total: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A line per epoch on stderr, as the ranks report it."""

    def show(line: Mapping[str, Any]) -> None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in line.items() if name not in ("epoch", "steps", "epoch_s"))
        _log(f"epoch {line['epoch']:>3}/{total}  {line['steps']} steps  {line['epoch_s']:.1f} s  {metrics}")

    _log("starting the ranks")
    yield show


if __name__ == "__main__":
    main()
