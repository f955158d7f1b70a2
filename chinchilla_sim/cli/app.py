"""The application, the options that commands share, and its exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from chinchilla_sim.console import log
from chinchilla_sim.errors import ChinchillaError

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
AllowFactory = Annotated[
    bool,
    Parameter(name="--allow-factory", help="Import the Python function that a plan names although it was not made here.", negative=()),
]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


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
