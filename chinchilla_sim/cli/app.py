"""The application, the options that commands share, and its exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from chinchilla_sim.console import INTERRUPTED, log, print_json, tell_details
from chinchilla_sim.errors import ChinchillaError, Mistake, ScenarioError

EXIT_CODES = (
    "Exit codes: 0 done; 1 no feasible plan, a given plan that does not fit into memory or breaks a limit of its scenario (simulate and "
    "explain show it all the same, what runs or exports it asks for --force), a run or a check that failed; 2 bad input; 130 interrupted "
    "(Ctrl-C), with what there was so far. Results go to stdout, progress and messages to stderr. With --json stdout is one JSON document, "
    'also where it has to say "status": "infeasible", "bad input" or "failed".'
)

FIRST_STEPS, DECIDE = Group("First steps", sort_key=1), Group("Which plan?", sort_key=2)
RUN, CHECK, OTHER = Group("For real", sort_key=3), Group("Is it true?", sort_key=4), Group("Other", sort_key=5)
"""What `chinchilla --help` lists together."""

app = App(
    name="chinchilla",
    # A file list has no option that empties it.
    default_parameter=Parameter(negative_iterable=()),
    help="Split and compress a neural network over several devices: plan, simulate, run, and check the prediction.",
    help_epilogue=EXIT_CODES,
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Install completion of commands and options for this shell (bash, zsh, fish, powershell).")
for flag in ("--help", "--version", "--install-completion"):
    app[flag].group = OTHER
validate = App(name="validate", group=CHECK, help="Compare simulation with measurements: of a run here, or of others in files.")
app.command(validate)
bench = App(
    name="bench",
    group=CHECK,
    help="Run series of measurements here: speed of chinchilla itself, emulated clusters, random kills, spoilt files.",
)
app.command(bench)

Overrides = Annotated[
    list[str] | None, Parameter(name="--set", help="Replace a value of the scenario, such as job.global_batch_size=128.", negative=())
]
AsJson = Annotated[bool, Parameter(name="--json", help="Print one JSON document instead of tables.", negative=())]
Force = Annotated[
    bool,
    Parameter(
        name="--force",
        help="Use a plan although its graph, catalogue or calibration has changed; run or export it although it is not feasible.",
        negative=(),
    ),
]
AllowFactory = Annotated[
    bool,
    Parameter(name="--allow-factory", help="Import the Python function that a plan names although it was not made here.", negative=()),
]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
Tokens = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]
Verbose = Annotated[
    bool,
    Parameter(name=["--verbose", "-v"], negative=(), help="Tell more on stderr: files read, the calibration in use, plans counted."),
]


@app.meta.default
def launch(*tokens: Tokens, verbose: Verbose = False) -> None:
    """What stands before, between and behind all commands."""
    if verbose:
        tell_details()
    app(tokens, exit_on_error=False)


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of the `chinchilla` command, which takes the words behind it on the command line."""
    given = sys.argv[1:] if words is None else words
    try:
        app.meta(given, exit_on_error=False)
    except CycloptsError as usage:
        # Cyclopts has told it on stderr.
        _end(ScenarioError([Mistake("", str(usage), "see --help")]), given)
    except ChinchillaError as error:
        log(str(error))
        _end(error, given)
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); the interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        log("interrupted")
        sys.exit(INTERRUPTED)


def _end(error: ChinchillaError, words: Sequence[str]) -> NoReturn:
    """Leave with the exit code of an error; with --json it stands on stdout too, in place of a result."""
    if "--json" in words:
        print_json(error.to_dict())
    sys.exit(error.exit_code)
