"""`chinchilla bench testbed`: many scenarios over emulated links, simulated and measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from chinchilla_sim.cli.app import AsJson, Output, bench
from chinchilla_sim.cli.shared import at_least
from chinchilla_sim.console import INTERRUPTED, log, print_json, print_tables, spoken, writable_file
from chinchilla_sim.errors import Mistake, ScenarioError

FEWEST_STEPS = 20


@bench.command(name="testbed")
def bench_testbed(scenarios: list[Path], *, output: Output = None, steps: int = 45, first: int = 1, as_json: AsJson = False) -> None:
    """Run every scenario on emulated nodes (Linux, root) and print how far simulated and measured steps are apart.

    This machine and every model are measured once, not for each scenario. Steps that spread by more than 5 % are measured again.

    Parameters
    ----------
    scenarios
        Scenario files, or folders of them.
    output
        CSV, one row per scenario; a killed or interrupted run goes on behind the rows that are there.
    steps
        Optimizer steps of each run, of which the first few do not count.
    first
        Run the first so many plans of each scenario, of any split, and print by how much the planner's choice is slower than the best.
    """
    from chinchilla_sim.trials import measure_once

    at_least("--steps", steps, FEWEST_STEPS + 5)
    at_least("--first", first)
    paths = scenario_files(scenarios)
    measure_once(paths, log)
    interrupted = _measure_choices(paths, steps, first, as_json) if first > 1 else _measure_cases(paths, steps, output, as_json)
    if interrupted:
        log("interrupted" + (f"; the same command goes on behind the rows of {output}" if output and first == 1 else ""))
        sys.exit(INTERRUPTED)


def _measure_cases(paths: Sequence[Path], steps: int, output: Path | None, as_json: bool) -> bool:
    """Run every scenario that is not in the file yet and print them all; whether that was interrupted."""
    from chinchilla_sim.report.tables.trials import cases_dict, cases_tables
    from chinchilla_sim.trials import run_case
    from chinchilla_sim.validation.testbed_cases import read_cases, write_cases

    cases = read_cases(writable_file(output, "--output")) if output else []
    done = {case.name for case in cases}
    left, interrupted = [path for path in paths if path.stem not in done], False
    begun_s = monotonic()
    try:
        for number, path in enumerate(left, start=1):
            cases.append(run_case(path, steps))
            left_s = (monotonic() - begun_s) / number * (len(left) - number)
            more = f"  about {spoken(left_s)} left" if number < len(left) else ""
            log(f"{len(cases)}/{len(paths)} {cases[-1].name}: {100 * cases[-1].relative_error:+.1f} %{more}")
            if output:
                write_cases(cases, output)
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        print_json(cases_dict(cases))
    elif cases:
        print_tables(*cases_tables(cases))
    return interrupted


def _measure_choices(paths: Sequence[Path], steps: int, first: int, as_json: bool) -> bool:
    """Run the first plans of every scenario and print which was the best; whether that was interrupted."""
    from chinchilla_sim.report.tables.trials import choices_dict, choices_table
    from chinchilla_sim.trials import run_choices

    choices, interrupted = [], False
    try:
        for path in paths:
            choices.append(run_choices(path, steps, first))
            log(f"{path.stem}: the first choice is {100 * choices[-1].regret:.1f} % slower than the best")
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        print_json(choices_dict(choices))
    elif choices:
        print_tables(choices_table(choices))
    return interrupted


def scenario_files(named: list[Path]) -> list[Path]:
    """Every file that is named, and those of folders; there is at least one."""
    found = [path for one in named for path in (sorted(one.glob("*.toml")) if one.is_dir() else [one])]
    if not found:
        raise ScenarioError([Mistake("", "holds no scenario (*.toml)", "name scenarios/testbed")], ", ".join(map(str, named)))
    return found
