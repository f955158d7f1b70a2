"""`chinchilla run`: a plan for real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chinchilla_sim.cli.app import RUN, AllowFactory, AsJson, Force, Output, Overrides, app
from chinchilla_sim.cli.serving import answers_requests, serve
from chinchilla_sim.cli.shared import at_least, plan_to_run, run_to_resume
from chinchilla_sim.cli.testbed import run_this_node
from chinchilla_sim.console import log, print_json, print_tables, save_json, show_epochs, writable_folder

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.runtime.engine.engines import Engine
    from chinchilla_sim.setting import Setting
    from chinchilla_sim.validation.compare import Comparison, Measurement


@app.command(group=RUN)
def run(
    source: Path | None = None,
    *,
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
    force: Force = False,
    allow_factory: AllowFactory = False,
    steps: int | None = None,
    rendezvous: str | None = None,
    node_rank: int | None = None,
    engine: Literal["chinchilla", "torch"] = "chinchilla",
    resume: Path | None = None,
) -> None:
    """Plan, simulate and run a job for real on this machine, and compare prediction and measurement.

    A job with `arrival_rate` or `concurrency` answers requests: their latencies are compared instead of the step. Nodes with
    device = "this-machine" are emulated (Linux, root). Over several machines every one runs its own ranks of the same plan.
    A killed rank or launcher starts the run again from its newest checkpoint (job.checkpoint_interval); of a command that was killed
    itself --resume takes it up.

    Parameters
    ----------
    source
        A scenario (TOML), or a plan (JSON) that is run as it is. May be left out with --resume: then the same plan goes on.
    output
        Folder for plan.json, weights.pt (one ordinary state_dict), metrics.jsonl, measurement.json and checkpoints (default:
        reports/NAME/run, or the one resumed).
    steps
        Stop after so many optimizer steps, or after the requests of so many global batches.
    rendezvous
        HOST:PORT where the machines of a plan meet: an address of node 0 that all others reach. Trust the network: it is not encrypted.
    node_rank
        Which of the plan's nodes this machine is, in the order in which the plan uses them (default: the only one).
    engine
        What plays the plan: our interpreter, or torch.distributed.pipelining where that can.
    resume
        Folder of a run that was interrupted: go on from its newest checkpoint, also with another plan or number of ranks.
    """
    if steps is not None:
        at_least("--steps", steps)
    if rendezvous is not None:
        run_this_node(source, rendezvous, node_rank, output, steps, force, allow_factory, as_json)
        return
    file, setting = (
        plan_to_run(source, overrides, force, as_json, allow_factory) if source else run_to_resume(resume, overrides, allow_factory)
    )
    _play(file, setting, output or resume or Path("reports") / setting.scenario.name / "run", steps, engine, resume, as_json)


def _play(file: PlanFile, setting: Setting, folder: Path, steps: int | None, engine: Engine, resume: Path | None, as_json: bool) -> None:
    """Answer the requests of a plan, or make its steps, for real, and compare them with simulated ones."""
    from chinchilla_sim.running import judge_run, run_for_real, simulate_fully
    from chinchilla_sim.runtime.engine.engines import check_engine

    check_engine(file.plan, engine)
    writable_folder(folder)
    (folder / "measurement.json").unlink(missing_ok=True)
    if answers_requests(file):
        return serve(setting, file, folder, steps, as_json, keep=True)
    simulated = simulate_fully(setting, file.plan)
    with show_epochs(file.scenario.job.epochs, steps or file.scenario.job.total_steps) as watch, _telling_what_is_left(folder, as_json):
        measurement = run_for_real(file, folder, steps, watch, engine=engine, resume=resume, tell=log)
    comparison = judge_run(setting, simulated, measurement)
    save_json(folder / "measurement.json", measurement.to_dict())
    _print_run(file, folder, comparison, measurement, as_json)


def _print_run(file: PlanFile, folder: Path, comparison: Comparison, measurement: Measurement, as_json: bool) -> None:
    from chinchilla_sim.report.tables.measured import attribution_table, comparison_table, metrics_table

    if as_json:
        print_json({"plan": file.to_dict(), **comparison.to_dict(), **measurement.metrics, "weights": measurement.weights})
        return
    print_tables(comparison_table(comparison), *attribution_table(comparison), metrics_table(measurement))
    log(f"weights, metrics and measurement are in {folder}; `chinchilla report` shows them")


@contextmanager
def _telling_what_is_left(folder: Path, as_json: bool) -> Iterator[None]:
    """An interrupted run says what it has left in its folder, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, newest_step

        metrics = folder / "metrics.jsonl"
        epochs = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        step = newest_step(folder / FOLDER)
        if as_json:
            print_json({"status": "interrupted", "folder": str(folder), "epochs": epochs, "checkpoint_step": step if step >= 0 else None})
        done = f"weights.pt and metrics.jsonl of {len(epochs)} epochs are in {folder}" if epochs else "no epoch was over yet"
        again = f"`chinchilla run --resume {folder}` goes on from step {step}"
        log(f"{done}; {again if step >= 0 else 'there is no checkpoint to go on from yet (see job.checkpoint_interval)'}")
        raise
