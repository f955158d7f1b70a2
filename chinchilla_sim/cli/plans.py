"""Commands about a job: plan, explain, simulate, schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.accuracy import accuracy_of
from chinchilla_sim.cli.app import AllowFactory, AsJson, Force, Output, Overrides, app
from chinchilla_sim.cli.shared import at_least, find_plan, infeasible_as_json, load_plan_file, print_plan, process_count, seconds_of
from chinchilla_sim.console import Interrupt, busy, log, print_json, print_tables, save_json, searching, writable_file
from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.planner.selection.candidate import Candidate
    from chinchilla_sim.setting import Setting


@app.command
def plan(
    *scenarios: Path,
    overrides: Overrides = None,
    output: Output = None,
    time_limit: str | None = None,
    front: Annotated[bool, Parameter(negative=())] = False,
    jobs: int | None = None,
    scheduler: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Find the best split of a scenario's job over its machines, say why it wins, and how far from the best it can be at most.

    Ctrl-C ends the search with the best plan so far, which is printed and written; the exit code is then 130.
    Several scenarios are planned at once: one row each, in the order given. One that has no plan does not stop the others; the exit code
    is 2 if any file was wrong, else 1 if any has no plan.

    Parameters
    ----------
    scenarios
        Scenario files (TOML).
    output
        Write the chosen plan to this file (plan.json), which `simulate`, `run` and `validate run` read; of several scenarios, or
        with --scheduler, to this folder, each under the name of its scenario.
    time_limit
        Take the best plan found after this time, such as "30s". Without it the search ends by what it counts, the same on any machine.
    jobs
        Processes that plan several scenarios (default: one per core).
    scheduler
        Plan on the Dask cluster with this address, such as "tcp://10.0.0.1:8786" (see `dask scheduler`), not here.
    front
        Also list the trade-offs between time, price, energy and free memory: the plans of which none is better in everything.
    """
    if not scenarios:
        raise ScenarioError([Mistake("", "no scenario named", "chinchilla plan SCENARIO.toml")])
    processes = process_count(jobs)
    time_limit_s = None if time_limit is None else seconds_of("--time-limit", time_limit)
    if len(scenarios) == 1 and scheduler is None:
        _plan_one(scenarios[0], overrides, output, time_limit_s, front, as_json)
        return
    if front:
        raise ScenarioError([Mistake("--front", "is for one scenario, planned here", "plan the scenarios one by one")])
    from chinchilla_sim.cli.sweeps import plan_all

    plan_all(scenarios, overrides or (), output, time_limit_s, processes, scheduler, as_json)


def _plan_one(scenario: Path, overrides: Overrides, output: Path | None, time_limit_s: float | None, front: bool, as_json: bool) -> None:
    from time import monotonic

    from chinchilla_sim.report.pages.result import search_dict
    from chinchilla_sim.report.tables.front import front_dict, front_table
    from chinchilla_sim.workflow import plan_file, study_of

    if output:
        writable_file(output, "--output")
    started_s, interrupt = monotonic(), Interrupt()
    with infeasible_as_json(as_json, "plan"):
        setting, search = find_plan(scenario, overrides, time_limit_s, front, interrupt)
    search_s = monotonic() - started_s
    file = plan_file(setting, search)
    if output:
        file.save(output)
    if as_json:
        study = study_of(setting, search)
        print_json(search_dict(study) | {"plan": file.to_dict(), "search_s": search_s} | (front_dict(study) if front else {}))
    else:
        print_plan(setting, search)
        if front:
            print_tables(front_table(study_of(setting, search)))
        if output:
            log(f"plan written to {output}")
    interrupt.leave()


@app.command
def explain(
    plan: Path,
    *,
    instead: str | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    force: Force = False,
    allow_factory: AllowFactory = False,
) -> None:
    """Say what decides the step of a plan, and how much each input matters: link bandwidth x 2, flop/s + 10 %, latency / 2 and so on.

    The plan stays as it is; only its machines change. Exit code 1 where it does not fit into memory. With --instead: why not another one.

    Parameters
    ----------
    plan
        A plan file (plan.json), or a scenario (.toml), which is planned first.
    instead
        Compare with the best plan of another configuration, such as "dp=8,pp=1": time, memory and money; keys are dp, pp, tp, cp, ep,
        m (microbatches), zero, buckets, schedule, recompute, gradients and activations (codecs). Exit code 1 where it does not fit.
    """
    import sys

    from chinchilla_sim.report.tables.reasons import explanation_dict, explanation_sentence, explanation_tables
    from chinchilla_sim.simulator.sensitivity import explain_step
    from chinchilla_sim.workflow import open_plan, plan_file

    if plan.suffix == ".toml":
        setting, search = find_plan(plan, overrides)
        file = plan_file(setting, search)
    else:
        file = load_plan_file(plan, allow_factory)
        setting = open_plan(file, str(plan), overrides or (), force)
    if instead is not None:
        _explain_instead(setting, file, instead, as_json)
        return
    with busy("simulating with other inputs"):
        found = explain_step(setting.graph, setting.cluster, setting.scenario.job, file.plan, setting.profile)
    words, facts = accuracy_of(setting, file.plan, found.step_s)
    if as_json:
        print_json(explanation_dict(found) | facts)
    else:
        print(explanation_sentence(found), *words, "", sep="\n")
        print_tables(*explanation_tables(found))
    if found.headroom_bytes < 0:
        sys.exit(1)


def _explain_instead(setting: Setting, file: PlanFile, instead: str, as_json: bool) -> None:
    from chinchilla_sim.report.tables.reasons import instead_dict, instead_table
    from chinchilla_sim.workflow import plan_instead, simulate_plan

    chosen = simulate_plan(setting, file)
    with searching() as progress:
        other = plan_instead(setting, instead, progress)
    if as_json:
        print_json(instead_dict(chosen, other, setting.cluster, setting.scenario))
    else:
        print_tables(instead_table(chosen, other, setting.cluster, setting.scenario))


@app.command
def simulate(
    *plans: Path,
    overrides: Overrides = None,
    program: Path | None = None,
    trace: Path | None = None,
    as_json: AsJson = False,
    force: Force = False,
    allow_factory: AllowFactory = False,
) -> None:
    """Simulate one step of given plans, also on another cluster, and compare them in one table.

    Says where one does not fit into memory, or is beyond a limit of its scenario.
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
    from chinchilla_sim.report.drawing.trace import chrome_trace
    from chinchilla_sim.workflow import open_plan, simulate_plan, with_program

    if not plans:
        raise ScenarioError([Mistake("", "no plan named", "chinchilla simulate PLAN.json")])
    if trace:
        writable_file(trace, "--trace")
    rows: list[tuple[str, Candidate, Setting]] = []
    for path in plans:
        file = load_plan_file(path, allow_factory)
        if program:
            file = with_program(file, program)
        # Values that are set on purpose need no hash: the graph's still counts.
        setting = open_plan(file, str(path), overrides or (), force)
        rows.append((str(path), simulate_plan(setting, file), setting))
    if trace:
        save_json(trace, chrome_trace({name: candidate.timeline for name, candidate, _ in rows}))
    _print_simulated(rows, as_json)


def _print_simulated(rows: list[tuple[str, Candidate, Setting]], as_json: bool) -> None:
    from chinchilla_sim.report.remarks import remarks, remarks_dict
    from chinchilla_sim.report.tables.serving import requests_table
    from chinchilla_sim.report.tables.simulated import disturbed_dict, disturbed_table, memory_table, simulated_dict, simulated_table
    from chinchilla_sim.workflow import disturb_plan

    disturbed = [disturb_plan(setting, candidate.plan, candidate.step_s) for _, candidate, setting in rows]
    if as_json:
        told = [{"plan": name} | simulated_dict(candidate) for name, candidate, _ in rows]
        told = [one | remarks_dict(row[1], row[2].cluster, row[2].scenario) for one, row in zip(told, rows, strict=True)]
        spreads = [disturbed_dict(found.spread, found.goodput) if found else {} for found in disturbed]
        print_json({"plans": [one | spread for one, spread in zip(told, spreads, strict=True)]})
        return
    named = [(name, candidate) for name, candidate, _ in rows]
    memory = [memory_table(rows[0][1])] if len(rows) == 1 else []
    served = [requests_table(named)] if any(candidate.serving for _, candidate in named) else []
    robust = [(row[0], found.spread, found.goodput) for row, found in zip(rows, disturbed, strict=True) if found]
    print_tables(simulated_table(named), *served, *memory, *([disturbed_table(robust)] if robust else []))
    for name, candidate, setting in rows:
        for remark in remarks(candidate, setting.cluster, setting.scenario):
            print(f"{name}: {remark}")


@app.command
def schedule(
    name: str,
    *,
    ranks: int = 4,
    microbatches: int = 8,
    stages_per_rank: int | None = None,
    seconds: Annotated[tuple[float, float, float], Parameter(negative=())] = (1.0, 1.0, 1.0),
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
    ranks
        Ranks of the pipeline.
    microbatches
        Microbatches of a step.
    stages_per_rank
        Stages on each rank (default: 2 where the schedule has several).
    seconds
        Of one microbatch on one rank: forward, gradient of the input, gradient of the weights.
    transfer
        Seconds from rank to rank.
    """
    from chinchilla_sim.report.sketch import sketch
    from chinchilla_sim.report.tables.simulated import schedule_dict, schedule_table
    from chinchilla_sim.simulator.drawing import draw_schedule

    counts = {"--ranks": ranks, "--microbatches": microbatches, "--stages-per-rank": 1 if stages_per_rank is None else stages_per_rank}
    for option, count in counts.items():
        at_least(option, count)
    if min(*seconds, transfer) < 0 or not sum(seconds):
        raise ScenarioError([Mistake("--seconds, --transfer", "must not be negative, nor all 0", "write for example --seconds 1 1 1")])
    drawn = draw_schedule(name, ranks, stages_per_rank, microbatches, seconds, transfer)
    if as_csv:
        print("\n".join(",".join(row.split()) for row in drawn.rows))
    elif as_json:
        print_json(schedule_dict(drawn))
    else:
        print_tables(schedule_table(drawn))
        print(sketch(drawn.timeline))
