"""`chinchilla bench compression`: the best plans with and without compression, simulated and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.app import AsJson, Output, bench
from chinchilla_sim.cli.shared import at_least, named
from chinchilla_sim.cli.trials import FEWEST_STEPS, scenario_files
from chinchilla_sim.console import log, print_json, print_tables, writable_file


@bench.command(name="compression")
def bench_compression(
    scenarios: list[Path],
    *,
    output: Output = None,
    steps: int = 45,
    no_run: Annotated[bool, Parameter(negative=())] = False,
    as_json: AsJson = False,
) -> None:
    """Plan every scenario with and without compression, run both plans in turns on emulated nodes (Linux, root), and print whether it pays.

    Compression is all that [search] allows within its max_accuracy_drop: codecs of gradients and activations, local steps, late gradients.

    Parameters
    ----------
    scenarios
        Scenario files, or folders of them.
    output
        JSON, one row per scenario; a killed run goes on behind the rows that are there.
    steps
        Optimizer steps of each run.
    no_run
        Simulate only; scenarios whose nodes this machine does not emulate are never run.
    """
    from chinchilla_sim.payoffs import can_run, weigh
    from chinchilla_sim.report.tables.payoffs import payoffs_dict, payoffs_table
    from chinchilla_sim.trials import measure_once
    from chinchilla_sim.validation.payoffs import read_payoffs, write_payoffs

    at_least("--steps", steps, FEWEST_STEPS + 5)
    paths = scenario_files(scenarios)
    runnable = [] if no_run else [path for path in paths if can_run(path)]
    if runnable:
        measure_once(runnable, log)
    payoffs = read_payoffs(writable_file(output, "--output")) if output else []
    done = {payoff.name for payoff in payoffs}
    for path in paths:
        if path.stem in done:
            continue
        with named(path):
            payoffs.append(weigh(path, steps if path in runnable else None, log))
        if output:
            write_payoffs(payoffs, output)
    if as_json:
        print_json(payoffs_dict(payoffs))
    else:
        print_tables(payoffs_table(payoffs))
