"""`chinchilla bench testbed`: many scenarios over emulated links, simulated and measured."""

from __future__ import annotations

from pathlib import Path

from chinchilla_sim.cli.app import AsJson, Output, bench
from chinchilla_sim.cli.shared import at_least
from chinchilla_sim.console import log, print_json, print_tables, writable_file
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
        CSV, one row per scenario; a killed run goes on behind the rows that are there.
    steps
        Optimizer steps of each run, of which the first few do not count.
    first
        Run the first so many plans of each scenario, and print by how much the planner's choice is slower than the best of them.
    """
    from chinchilla_sim.report.trials import cases_dict, cases_tables, choices_dict, choices_table
    from chinchilla_sim.trials import measure_once, run_case, run_choices
    from chinchilla_sim.validation.testbed_cases import read_cases, write_cases

    at_least("--steps", steps, FEWEST_STEPS + 5)
    at_least("--first", first)
    paths = scenario_files(scenarios)
    measure_once(paths, log)
    if first > 1:
        choices = []
        for path in paths:
            choices.append(run_choices(path, steps, first))
            log(f"{path.stem}: the first choice is {100 * choices[-1].regret:.1f} % slower than the best")
        if as_json:
            print_json(choices_dict(choices))
        else:
            print_tables(choices_table(choices))
        return
    cases = read_cases(writable_file(output, "--output")) if output else []
    done = {case.name for case in cases}
    for path in paths:
        if path.stem in done:
            continue
        case = run_case(path, steps)
        cases.append(case)
        log(f"{len(cases)}/{len(paths)} {case.name}: {100 * case.relative_error:+.1f} %")
        if output:
            write_cases(cases, output)
    if as_json:
        print_json(cases_dict(cases))
    else:
        print_tables(*cases_tables(cases))


def scenario_files(named: list[Path]) -> list[Path]:
    """Every file that is named, and those of folders; there is at least one."""
    found = [path for one in named for path in (sorted(one.glob("*.toml")) if one.is_dir() else [one])]
    if not found:
        raise ScenarioError([Mistake("", "holds no scenario (*.toml)", "name scenarios/testbed")], ", ".join(map(str, named)))
    return found
