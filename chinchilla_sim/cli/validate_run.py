"""Run a plan and see how far off its simulation was, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.app import AllowFactory, AsJson, Force, Output, validate
from chinchilla_sim.cli.serving import answers_requests, serve
from chinchilla_sim.cli.shared import at_least, load_plan_file
from chinchilla_sim.console import busy, log, print_json, print_tables, save_json, writable_folder

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.validation.compare import Comparison, Measurement
    from chinchilla_sim.validation.recalibrate import Simulated

VALIDATION_STEPS = 200
START_S = 8.0
"""About how long ranks take to start."""


@validate.command(name="run")
def validate_run(
    plan: Path,
    *,
    steps: int = VALIDATION_STEPS,
    output: Output = None,
    recalibrate: Annotated[bool, Parameter(negative=())] = False,
    as_json: AsJson = False,
    force: Force = False,
    allow_factory: AllowFactory = False,
) -> None:
    """Run a plan again for some steps and print simulated against measured: the step, its error by cause, and the memory of each rank.

    Parameters
    ----------
    plan
        A plan file (plan.json).
    steps
        Optimizer steps to measure, or global batches of requests.
    output
        Write comparison.html to this folder, with the Gantt charts of both steps on one time scale, and comparison.json.
    recalibrate
        Keep what the run taught about this model on this machine: later predictions of this and other plans of it are corrected by that.
    """
    import tempfile

    from chinchilla_sim.given import check_feasible, open_plan
    from chinchilla_sim.report.tables.measured import attribution_table, categories_table, comparison_table, peaks_table
    from chinchilla_sim.running import judge_run, learn_from_run, run_for_real, simulate_fully

    at_least("--steps", steps)
    folder = writable_folder(output) if output else None
    file = load_plan_file(plan, allow_factory)
    setting = open_plan(file, str(plan), force=force)
    check_feasible(setting, file, str(plan), force)
    if answers_requests(file):
        with tempfile.TemporaryDirectory(prefix="chinchilla-") as run_folder:
            return serve(setting, file, Path(run_folder), steps, as_json)
    simulated = simulate_fully(setting, file.plan)
    about_s = START_S + steps * simulated.timeline.step_s
    with tempfile.TemporaryDirectory(prefix="chinchilla-") as run_folder, busy(f"running {steps} steps", about_s):
        measurement = run_for_real(file, Path(run_folder), steps, count_memory=True)
    comparison = judge_run(setting, simulated, measurement)
    if folder:
        _write(folder, file, simulated, measurement, comparison)
    if recalibrate:
        log(f"stored what the run taught in {learn_from_run(setting, simulated, measurement)}; plans made from now on use it")
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_tables(comparison_table(comparison), *attribution_table(comparison), categories_table(comparison), *peaks_table(comparison))


def _write(folder: Path, file: PlanFile, simulated: Simulated, measurement: Measurement, comparison: Comparison) -> None:
    from chinchilla_sim.report.pages.run_page import render_run_page

    title = f"{file.scenario.name}: {file.plan.describe()}"
    page = render_run_page(title, simulated.timeline, measurement.timeline, comparison)
    (folder / "comparison.html").write_text(page)
    save_json(folder / "comparison.json", comparison.to_dict() | {"measurement": measurement.to_dict()})
    log(f"charts are in {folder / 'comparison.html'}")
