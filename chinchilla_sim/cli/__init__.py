"""The command line: every command is a plain function whose docstring is its help; heavy imports are inside.

Results go to stdout or a named file, logs to stderr. Exit codes: 0 done, 1 no feasible plan or a run failed,
2 bad input, 130 interrupted.
"""

from chinchilla_sim.cli import (
    budget,
    checks,
    codecs,
    engines,
    export,
    first,
    fuzz,
    imports,
    kills,
    payoffs,
    plans,
    report,
    runs,
    testbed,
    trials,
    validate_run,
    variants,
)
from chinchilla_sim.cli.app import app, main

__all__ = [
    "app",
    "budget",
    "checks",
    "codecs",
    "engines",
    "export",
    "first",
    "fuzz",
    "imports",
    "kills",
    "main",
    "payoffs",
    "plans",
    "report",
    "runs",
    "testbed",
    "trials",
    "validate_run",
    "variants",
]
