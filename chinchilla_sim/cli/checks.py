"""Commands about the tool itself: is it right, how fast is it, what does this machine do, what may a scenario say?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.accuracy import calibrate_accuracy, only_with_accuracy
from chinchilla_sim.cli.app import AsJson, Output, Overrides, app, bench, validate
from chinchilla_sim.cli.shared import CALIBRATION_S, calibrate_tasks, process_count, seconds_of, watching_others
from chinchilla_sim.console import Interrupt, busy, log, print_json, print_tables, searching, writable_folder
from chinchilla_sim.errors import Mistake, ScenarioError


@validate.command(name="network")
def validate_network(cases: Path, *, as_json: AsJson = False) -> None:
    """Play SimGrid's network cases and compare every finish time; exit 1 where one differs by more than 1e-6.

    Parameters
    ----------
    cases
        Folder of cases (*.json): platform, tasks, and SimGrid's finish times under `fair` sharing.
    """
    from chinchilla_sim.report.tables.accuracy import network_table
    from chinchilla_sim.validation.simgrid import check_cases

    results = check_cases(cases)
    if as_json:
        print_json({"cases": [{"case": result.case, "worst_relative_error": result.worst_relative_error} for result in results]})
    else:
        print_tables(network_table(results))
    if not all(result.passed for result in results):
        sys.exit(1)


@validate.command(name="planner")
def validate_planner(answers: Path, *, budget: str = "30s", as_json: AsJson = False) -> None:
    """Solve planning problems that other planners solved, in their own cost models; exit 1 where a known plan is better than ours.

    Parameters
    ----------
    answers
        A file of known answers (JSON lines), or a folder of them; graphs are named relative to the folder above the file.
    budget
        CPU time for a problem whose optimum cannot be proven sooner (stages that are not contiguous).
    """
    from chinchilla_sim.report.tables.known import known_answers_tables
    from chinchilla_sim.validation.known_answers import check_known_answers

    budget_s = seconds_of("--budget", budget)
    with searching("solving problems") as progress:
        results = check_known_answers(answers, budget_s, progress)
    if as_json:
        print_json({"problems": [result.to_dict() for result in results]})
    else:
        print_tables(*known_answers_tables(results))
    if not all(result.reached for result in results):
        sys.exit(1)


@validate.command(name="published")
def validate_published(
    rows: Path, *, output: Output = None, calibrate: int | None = None, jobs: int | None = None, as_json: AsJson = False
) -> None:
    """Simulate training steps that others measured, and print how far off the simulator is, per source.

    Parameters
    ----------
    rows
        CSV in the columns of measured_training_steps.csv: model, hardware, plan and measured step of each row.
    output
        Write one line per row: id, simulated_step_s, p5_s, p95_s, simulated_peak_memory_bytes, fits, not_predicted_because.
    calibrate
        Fit six constants to so many random rows of each source with at least twice as many, and score them on the others.
    jobs
        Processes that share the rows (default: one for each core).
    """
    from chinchilla_sim.report.tables.accuracy import fits_table, ledger_dict, ledger_tables
    from chinchilla_sim.validation.fitting import fit_sources
    from chinchilla_sim.validation.ledger import ledger, predict_rows, regret, write_predictions

    if output:
        writable_folder(output.parent)
    interrupt = Interrupt()
    with searching("simulating rows") as progress, interrupt.heeded():
        predicted = predict_rows(rows, progress, interrupt, process_count(jobs))
    if output:
        write_predictions(predicted, output)
    lines, lost = ledger(predicted), regret(predicted)
    fits = []
    if calibrate and not interrupt.asked:
        with busy(f"fitting constants to {calibrate} rows of each source"):
            fits = fit_sources(predicted, calibrate)
    if as_json:
        print_json(ledger_dict(predicted, lines, lost, fits))
    else:
        print_tables(*ledger_tables(predicted, lines, lost), *([fits_table(fits)] if fits else []))
    interrupt.leave()


@validate.command(name="kernels")
def validate_kernels(products: Path, *, device: str = "a100-sxm-80gb", precision: str = "bf16", as_json: AsJson = False) -> None:
    """Compare measured matrix products with the catalogue's curve of a device, and fit a new one, scored on products left out.

    Parameters
    ----------
    products
        CSV with columns m, n, k, latency_ms.
    device
        Device of the catalogue that they were measured on.
    precision
        fp32, fp16 or bf16: which peak counts.
    """
    from chinchilla_sim.report.tables.accuracy import kernels_dict, kernels_table
    from chinchilla_sim.validation.kernels import check_kernels

    with busy("fitting"):
        result = check_kernels(products, device, precision)
    if as_json:
        print_json(kernels_dict(result))
    else:
        print_tables(kernels_table(result))


@validate.command(name="collectives")
def validate_collectives(table: Path, *, device: str = "a100-sxm-80gb", network: str | None = None, as_json: AsJson = False) -> None:
    """Compare measured collectives with the simulator's seconds, by operation and ranks, and score thinned tables on sizes left out.

    Parameters
    ----------
    table
        CSV with columns op_name, num_gpus, message_size_elems_fp16, latency_ms (one node), or those of collectives.csv.
    device
        Device of the catalogue that a table of one node was measured on.
    network
        What a node's network interface carries ("800 Gbit/s"), for rows over several nodes.
    """
    from chinchilla_sim.report.tables.accuracy import collectives_dict, collectives_tables
    from chinchilla_sim.units import parse_bandwidth
    from chinchilla_sim.validation.collectives import check_collectives

    try:
        network_bytes_per_s = parse_bandwidth(network) if network else None
    except ValueError as error:
        raise ScenarioError([Mistake("--network", str(error), "give a bandwidth")]) from error
    with busy("thinning tables"):
        result = check_collectives(table, device, network_bytes_per_s)
    if as_json:
        print_json(collectives_dict(result))
    else:
        print_tables(*collectives_tables(result))


@validate.command(name="schedules")
def validate_schedules(profiles: Path, *, as_json: AsJson = False) -> None:
    """Simulate profiled pipeline stages under the schedules that they were measured with, and print the error of each.

    Parameters
    ----------
    profiles
        CSV of profiled stages (columns of pipeline_stage_profiles.csv: milliseconds of F, B, W and transfer, schedule, measured step).
    """
    from chinchilla_sim.report.tables.accuracy import schedules_dict, schedules_tables
    from chinchilla_sim.validation.zero_bubble import check_profiles

    with busy("simulating profiled stages"):
        results = check_profiles(profiles)
    if as_json:
        print_json(schedules_dict(results))
    else:
        print_tables(*schedules_tables(results))


@app.command
def calibrate(
    scenario: Path | None = None,
    *,
    ranks: int | None = None,
    accuracy: Annotated[bool, Parameter(negative=())] = False,
    seeds: int | None = None,
    steps: int | None = None,
    replicas: int | None = None,
    output: Output = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine (products, memory, number formats, messages and collectives of local ranks) and store the result.

    With --accuracy measure instead what the codecs, local steps, late gradients and variants that a scenario lists cost in accuracy, and
    how many more steps they need.

    Parameters
    ----------
    scenario
        Measure every task of this scenario's model instead, forward and backward, at several microbatch sizes, with as many
        busy ranks as the scenario has; planner and simulator then use these times for it on this machine.
    ranks
        Ranks that will be busy at once (default: one per core).
    accuracy
        Train and evaluate short runs of the scenario's job, as it is and with each such choice of [search], from the same seeds;
        search.max_accuracy_drop and objective time_to_accuracy use the result. Runs that are stored are not made again: an interrupted
        measurement goes on, and more --seeds add to it.
    seeds
        With --accuracy: seeds, from job.seed on (default 5, at least 3); more narrow the intervals.
    steps
        With --accuracy: steps of a run (default: those of the job, at most 400).
    replicas
        With --accuracy: replicas among which each batch is divided, whose gradients pass the codec (default 2; all in this process).
    output
        With --accuracy: keep the result in this file, for search.accuracy_table (default: beside the calibrations of this machine).
    """
    if accuracy:
        calibrate_accuracy(scenario, overrides, seeds, steps, replicas, output, as_json)
        return
    only_with_accuracy({"--seeds": seeds, "--steps": steps, "--replicas": replicas, "--output": output})
    if scenario:
        calibrate_tasks(scenario, overrides, ranks, as_json)
        return
    _calibrate_machine(ranks, as_json)


def _calibrate_machine(ranks: int | None, as_json: bool) -> None:
    from chinchilla_sim.cluster.calibration import core_count, stale_entries
    from chinchilla_sim.report.tables.machine import calibration_table
    from chinchilla_sim.workflow import calibrate as measure

    with watching_others() as others, busy("measuring this machine", CALIBRATION_S):
        calibration, path = measure(ranks or core_count())
    for reason in stale_entries(calibration.key):
        log(f"stale calibration: {reason}")
    if as_json:
        print_json(others | calibration.to_dict())
    else:
        print_tables(calibration_table(calibration))
        log(f"stored in {path}")


@bench.command(name="simulator")
def bench_simulator(*, as_json: AsJson = False) -> None:
    """Measure how fast the three evaluators are here: SimPy engine, replay, closed form; and flows, and a step of 3,072 GPUs."""
    from chinchilla_sim.report.tables.machine import figures_dict, speed_table
    from chinchilla_sim.simulator.benchmark import measure_simulator

    figures = []
    with busy("measuring the simulator", 20.0):
        for figure in measure_simulator():
            figures.append(figure)
    if as_json:
        print_json(figures_dict(figures))
    else:
        print_tables(speed_table(figures))


@bench.command(name="planner")
def bench_planner(*, most_devices: int = 16384, as_json: AsJson = False) -> None:
    """Measure how long planning takes here from 8 to 16,384 devices, and how many configurations are screened in a second.

    Parameters
    ----------
    most_devices
        Leave out larger clusters.
    """
    from chinchilla_sim.report.tables.machine import figures_dict, speed_table
    from chinchilla_sim.validation.planning_speed import measure_planning

    figures = []
    with busy("planning", 120.0):
        for figure in measure_planning(most_devices):
            figures.append(figure)
    if as_json:
        print_json(figures_dict(figures))
    else:
        print_tables(speed_table(figures, "Speed of planning on this machine"))


@bench.command(name="recorder")
def bench_recorder(*, as_json: AsJson = False) -> None:
    """Measure by how much recording every action slows a step of small ones here: the same steps with and without, in turns."""
    from chinchilla_sim.report.tables.machine import figures_dict, speed_table
    from chinchilla_sim.runtime.benchmark.recording_cost import measure_recorder

    with busy("running steps in turns", 10.0):
        figures = list(measure_recorder())
    if as_json:
        print_json(figures_dict(figures))
    else:
        print_tables(speed_table(figures, "What recording costs on this machine"))


@bench.command(name="ledger")
def bench_ledger(
    rows: Path, *, leave_one_out: Annotated[bool, Parameter(negative=())] = False, jobs: int | None = None, as_json: AsJson = False
) -> None:
    """Score the simulator on published training steps; with --leave-one-out also on sources that its constants have not seen.

    Parameters
    ----------
    rows
        CSV in the columns of measured_training_steps.csv.
    leave_one_out
        For each source fit constants and intervals to all others, and score them on it (five minutes for 2,800 rows).
    jobs
        Processes that share the rows (default: one for each core).
    """
    from chinchilla_sim.report.tables.accuracy import ledger_dict, ledger_tables
    from chinchilla_sim.report.tables.reasons import left_out_dict, left_out_table
    from chinchilla_sim.validation.ledger import ledger, predict_rows, regret
    from chinchilla_sim.validation.left_out import leave_one_out as score_left_out

    interrupt = Interrupt()
    with searching("simulating rows") as progress, interrupt.heeded():
        predicted = predict_rows(rows, progress, interrupt, process_count(jobs))
    lines, lost = ledger(predicted), regret(predicted)
    leave_one_out = leave_one_out and not interrupt.asked
    if leave_one_out:
        with searching("fitting without one source") as progress:
            results = score_left_out(predicted, progress=progress)
    if as_json:
        print_json(ledger_dict(predicted, lines, lost) | ({"leave_one_out": left_out_dict(results)} if leave_one_out else {}))
    else:
        print_tables(*ledger_tables(predicted, lines, lost), *([left_out_table(results)] if leave_one_out else []))
    interrupt.leave()


@app.command
def catalogue(name: str | None = None, *, as_json: AsJson = False) -> None:
    """List the devices, links and backends that a scenario may name, each with its figures, source and date; or show one in full.

    Parameters
    ----------
    name
        Show all that the catalogue says about this entry.
    """
    from chinchilla_sim.cluster.catalogue import KINDS, entries, find_entries
    from chinchilla_sim.report.tables.catalogue import catalogue_dict, catalogue_tables, entry_tables

    if name is not None:
        found = find_entries(name)
        if as_json:
            print_json(catalogue_dict({kind: {name: entry} for kind, entry in found.items()}))
        else:
            print_tables(*entry_tables(name, found))
        return
    listed = {kind: entries(kind) for kind in KINDS}
    if as_json:
        print_json(catalogue_dict(listed))
    else:
        print_tables(*catalogue_tables(listed))


@app.command
def schema(*, markdown: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Print the JSON schema of scenario files; editors complete from it.

    Parameters
    ----------
    markdown
        Print the same for people: a page with every key, and the example scenarios (scenarios/README.md).
    """
    if not markdown:
        from chinchilla_sim.scenario.load import json_schema

        print_json(json_schema())
        return
    from chinchilla_sim.examples import SUFFIX, example_folder, list_examples
    from chinchilla_sim.report.tables.reference import reference_page

    folder = example_folder()
    places = ((one.name if (folder / one.name).is_dir() else f"{one.name}{SUFFIX}", one.line) for one in list_examples())
    print(reference_page(places), end="")
