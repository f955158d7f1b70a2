"""The command line: every command is a plain function whose docstring is its help; heavy imports are inside.

Results go to stdout or a named file, logs to stderr. Exit codes: 0 done, 1 no feasible plan or a run failed,
2 bad input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from chinchilla_sim.console import busy, log, print_json, print_tables, save_json, searching, show_epochs, writable_folder
from chinchilla_sim.errors import ChinchillaError, Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.planner.search import SearchResult
    from chinchilla_sim.workflow import Setting

app = App(
    name="chinchilla",
    help="Split and compress a neural network over several devices: plan, simulate, run, and check the prediction.",
)
validate = App(name="validate", help="Compare simulation with reality.")
app.command(validate)
bench = App(name="bench", help="Measure how fast chinchilla itself is.")
app.command(bench)

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
        log(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); the interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        log("interrupted")
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
        writable_folder(output.parent)
    setting, search = _plan(scenario, overrides)
    file = plan_file(setting, search)
    if output:
        file.save(output)
    if as_json:
        print_json(search_dict(study_of(setting, search)) | {"plan": file.to_dict()})
    else:
        _print_plan(setting, search)
        if output:
            log(f"plan written to {output}")


@app.command
def simulate(
    *plans: Path,
    overrides: Overrides = None,
    program: Path | None = None,
    trace: Path | None = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Simulate one step of given plans, also on another cluster, and compare them in one table.

    With [disturbances] in the scenario (jitter, stragglers, links that slow down, traffic, failures) a second table tells the
    spread of the step time and the goodput.

    Parameters
    ----------
    plans
        Plan files (plan.json).
    program
        Play the rows of this CSV (passes in PyTorch's notation, one row per rank of a replica) instead of the plan's schedule.
    trace
        Write a Chrome trace of all of them (for ui.perfetto.dev): spans, what every idle moment waits for, and the critical path.
    """
    from chinchilla_sim.report.listing import disturbed_dict, disturbed_table, simulated_dict, simulated_table
    from chinchilla_sim.report.trace import chrome_trace
    from chinchilla_sim.workflow import disturb_plan, open_plan, simulate_plan, with_program

    if not plans:
        raise ScenarioError([Mistake("", "no plan named", "chinchilla simulate PLAN.json")])
    rows, disturbed = [], []
    for path in plans:
        file = _load_plan(path)
        if program:
            file = with_program(file, program)
        # Values that are set on purpose need no hash: the graph's still counts.
        setting = open_plan(file, str(path), overrides or (), force)
        candidate = simulate_plan(setting, file)
        rows.append((str(path), candidate))
        disturbed.append((str(path), disturb_plan(setting, file.plan, candidate.step_s)))
    if trace:
        save_json(trace, chrome_trace({name: candidate.timeline for name, candidate in rows}))
    robust = [(name, found.spread, found.goodput) for name, found in disturbed if found]
    if as_json:
        spreads = {name: disturbed_dict(spread, goodput) for name, spread, goodput in robust}
        print_json({"plans": [{"plan": name} | simulated_dict(candidate) | spreads.get(name, {}) for name, candidate in rows]})
    else:
        print_tables(simulated_table(rows), *([disturbed_table(robust)] if robust else []))


@app.command
def schedule(
    name: str,
    *,
    ranks: int = 4,
    microbatches: int = 8,
    stages_per_rank: int | None = None,
    seconds: tuple[float, float, float] = (1.0, 1.0, 1.0),
    transfer: float = 0.0,
    as_csv: Annotated[bool, Parameter(name="--csv", help="Print the rows as CSV in PyTorch's notation.", negative=())] = False,
    as_json: AsJson = False,
) -> None:
    """Draw a pipeline schedule: the passes of every rank, how long they idle, and how many microbatches they hold.

    Parameters
    ----------
    name
        1f1b, gpipe, interleaved-1f1b, looped-bfs, zb-h1, zb-h2, interleaved-zb, zb-1p, zb-2p, zb-v, dualpipe-v, forward; or a CSV
        of rows in PyTorch's notation.
    stages_per_rank
        Stages on each rank (default: 2 where the schedule has several).
    seconds
        Of one microbatch on one rank: forward, gradient of the input, gradient of the weights.
    transfer
        Seconds from rank to rank.
    """
    from chinchilla_sim.report.listing import schedule_dict, schedule_table
    from chinchilla_sim.report.sketch import sketch
    from chinchilla_sim.simulator.drawing import draw_schedule

    drawn = draw_schedule(name, ranks, stages_per_rank, microbatches, seconds, transfer)
    if as_csv:
        print("\n".join(",".join(row.split()) for row in drawn.rows))
    elif as_json:
        print_json(schedule_dict(drawn))
    else:
        print_tables(schedule_table(drawn))
        print(sketch(drawn.timeline))


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
    folder = writable_folder(output or Path("reports") / setting.scenario.name / "run")
    candidate = simulate_plan(setting, file)
    (folder / "measurement.json").unlink(missing_ok=True)
    with show_epochs(file.scenario.job.epochs) as watch:
        measurement = run_for_real(file, folder, steps, watch)
    comparison = compare(candidate.timeline, measurement)
    save_json(folder / "measurement.json", measurement.to_dict())
    if as_json:
        summary = {"plan": file.to_dict(), **comparison.to_dict(), **measurement.metrics, "weights": measurement.weights}
        print_json(summary)
    else:
        print_tables(comparison_table(comparison), categories_table(comparison), metrics_table(measurement))
        log(f"weights, metrics and measurement are in {folder}; `chinchilla report` shows them")


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
        print_json(comparison.to_dict())
    else:
        print_tables(comparison_table(comparison), categories_table(comparison))


@validate.command(name="network")
def validate_network(cases: Path, *, as_json: AsJson = False) -> None:
    """Play SimGrid's network cases and compare every finish time; exit 1 where one differs by more than 1e-6.

    Parameters
    ----------
    cases
        Folder of cases (*.json): platform, tasks, and SimGrid's finish times under `fair` sharing.
    """
    from chinchilla_sim.report.listing import network_table
    from chinchilla_sim.validation.simgrid import check_cases

    results = check_cases(cases)
    if as_json:
        print_json({"cases": [{"case": result.case, "worst_relative_error": result.worst_relative_error} for result in results]})
    else:
        print_tables(network_table(results))
    if not all(result.passed for result in results):
        sys.exit(1)


@validate.command(name="schedules")
def validate_schedules(profiles: Path, *, as_json: AsJson = False) -> None:
    """Simulate profiled pipeline stages under the schedules that they were measured with, and print the error of each.

    Parameters
    ----------
    profiles
        CSV of profiled stages (columns of pipeline_stage_profiles.csv: milliseconds of F, B, W and transfer, schedule, measured step).
    """
    from chinchilla_sim.report.listing import schedules_dict, schedules_tables
    from chinchilla_sim.validation.zero_bubble import check_profiles

    with busy("simulating profiled stages"):
        results = check_profiles(profiles)
    if as_json:
        print_json(schedules_dict(results))
    else:
        print_tables(*schedules_tables(results))


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
    from chinchilla_sim.workflow import plan_file, simulate_plan, study_of

    scenario_name = _load(source, overrides).name
    folder = writable_folder(output or Path("reports") / scenario_name)
    setting, search = _plan(source, overrides)
    file = plan_file(setting, search)
    measurement = _measurement_of(folder / "run", file)
    study = study_of(setting, search, measurement)
    timelines = {"simulated": simulate_plan(setting, file).timeline} | ({"measured": measurement.timeline} if measurement else {})
    result = search_dict(study) | {"plan": file.to_dict()}
    file.save(folder / "plan.json")
    (folder / "report.html").write_text(render_page(study), encoding="utf-8")
    (folder / "summary.txt").write_text(summary_text(study), encoding="utf-8")
    save_json(folder / "trace.json", chrome_trace(timelines))
    save_json(folder / "report.json", result)
    if as_json:
        print_json(result)
    else:
        print(folder / "report.html")


@app.command
def calibrate(scenario: Path | None = None, *, ranks: int | None = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Measure this machine (products, memory, messages and collectives of local ranks) and store the result.

    Parameters
    ----------
    scenario
        Measure every task of this scenario's model instead, forward and backward, at several microbatch sizes, with as many
        busy ranks as the scenario has; planner and simulator then use these times for it on this machine.
    ranks
        Ranks that will be busy at once (default: one per core).
    """
    from chinchilla_sim.cluster.calibration import core_count, stale_entries
    from chinchilla_sim.report.listing import calibration_table
    from chinchilla_sim.workflow import calibrate as measure

    if scenario:
        _calibrate_tasks(scenario, overrides, ranks, as_json)
        return
    with busy("measuring this machine (about 20 s)"):
        calibration, path = measure(ranks or core_count())
    for reason in stale_entries(calibration.key):
        log(f"stale calibration: {reason}")
    if as_json:
        print_json(calibration.to_dict())
    else:
        print_tables(calibration_table(calibration))
        log(f"stored in {path}")


@bench.command(name="simulator")
def bench_simulator(*, as_json: AsJson = False) -> None:
    """Measure how fast the three evaluators are here: SimPy engine, replay, closed form; and flows, and a step of 3,072 GPUs."""
    from chinchilla_sim.report.listing import speed_table
    from chinchilla_sim.simulator.benchmark import measure_simulator

    figures = []
    with busy("measuring the simulator (about 20 s)"):
        for figure in measure_simulator():
            figures.append(figure)
    if as_json:
        print_json(
            {"figures": [{"name": f.name, "value": f.value, "unit": f.unit, "target": f.target, "reached": f.reached} for f in figures]}
        )
    else:
        print_tables(speed_table(figures))


@app.command
def schema() -> None:
    """Print the JSON schema of scenario files; editors complete from it."""
    from chinchilla_sim.scenario.load import json_schema

    print_json(json_schema())


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
        log(note)
    with searching() as progress:
        return setting, make_plan(setting, progress)


def _plan_to_run(source: Path, overrides: list[str] | None, force: bool, quiet: bool) -> tuple[PlanFile, Setting]:
    """The plan to run and its setting; this machine is calibrated first where it was not."""
    from chinchilla_sim.workflow import ensure_calibration, make_plan, open_plan, plan_file, prepare

    is_plan = source.suffix == ".json"
    if is_plan and overrides:
        raise ScenarioError([Mistake("--set", "a plan is run as it is", "set values when planning")])
    file = _load_plan(source) if is_plan else None
    scenario = file.scenario if file else _load(source, overrides)
    with busy("measuring this machine (about 20 s, once)"):
        for note in ensure_calibration(scenario):
            log(note)
    if file:
        return file, open_plan(file, str(source), force=force)
    setting = prepare(scenario)
    with searching() as progress:
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
    print_tables(candidates_table(search, setting.scenario.search.objective), ranks_table(search.best, setting.cluster), cost_table(study))
    print(sketch(search.best.timeline), "", *study.explanation, sep="\n")


def _calibrate_tasks(scenario: Path, overrides: list[str] | None, ranks: int | None, as_json: bool) -> None:
    """Measure the tasks of a scenario's model."""
    from chinchilla_sim.report.listing import profile_table
    from chinchilla_sim.scenario.load import load_scenario
    from chinchilla_sim.workflow import profile_scenario

    loaded = load_scenario(scenario, [*(overrides or ()), *([f"cluster.ranks={ranks}"] if ranks else ())])
    if loaded.cluster.kind != "this-machine":
        cure = 'set cluster.kind = "this-machine"; other machines are described by the catalogue'
        raise ScenarioError([Mistake("cluster.kind", "only this machine's tasks can be measured here", cure)], str(scenario))
    with busy("measuring every task of the model"):
        profile, path = profile_scenario(loaded)
    if as_json:
        print_json(profile.to_dict())
    else:
        print_tables(profile_table(profile))
        log(f"stored in {path}")


if __name__ == "__main__":
    main()
