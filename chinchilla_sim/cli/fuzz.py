"""`chinchilla bench fuzz`: does any file make a parser fall over?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.app import AsJson, Output, bench
from chinchilla_sim.cli.shared import at_least
from chinchilla_sim.console import print_json, print_tables, searching, writable_folder


@bench.command(name="fuzz")
def bench_fuzz(
    *,
    inputs: int = 10_000,
    seed: int = 0,
    parser: Annotated[list[str] | None, Parameter(negative=())] = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Read spoilt files of every kind; exit 1 where one is neither read nor refused with a mistake that says what is wrong.

    Scenarios, plans, graphs of five formats, configurations of other frameworks, accuracy tables, calibrations and programs. The same seed
    makes the same files.

    Parameters
    ----------
    inputs
        Files, as many of each kind.
    seed
        Seed of all changes.
    parser
        Only this kind, such as "plan" or "graph piper"; may be given several times.
    output
        Folder for the smallest file of each failure (default: fuzz-failures; made only where there is one).
    """
    from chinchilla_sim.report.tables.fuzz import failures_table, fuzz_table
    from chinchilla_sim.validation.fuzz import fuzz

    at_least("--inputs", inputs)
    with searching("reading spoilt files") as progress:
        tallies = fuzz(inputs, seed, parser or (), progress)
    folder = output or Path("fuzz-failures")
    failures = {}
    for tally in tallies:
        for number, failure in enumerate(tally.found.values()):
            path = writable_folder(folder) / f"{tally.parser.name.replace(' ', '-')}-{number}{tally.parser.suffix}"
            path.write_bytes(failure.content)
            failures[path] = (tally.parser.name, failure)
    if as_json:
        print_json({"parsers": [tally.to_dict() for tally in tallies], "saved": [str(path) for path in failures]})
    else:
        print_tables(fuzz_table(tallies), *([failures_table(failures)] if failures else []))
    if failures:
        sys.exit(1)
