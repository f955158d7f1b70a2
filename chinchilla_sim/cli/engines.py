"""`chinchilla bench engines`: our interpreter against torch's own pipelining."""

from __future__ import annotations

from pathlib import Path

from chinchilla_sim.cli.app import AllowFactory, AsJson, Force, Overrides, bench
from chinchilla_sim.cli.shared import at_least, plan_to_run
from chinchilla_sim.console import busy, print_json, print_tables


@bench.command(name="engines")
def bench_engines(
    source: Path,
    *,
    rounds: int = 10,
    steps: int = 10,
    overrides: Overrides = None,
    force: Force = False,
    allow_factory: AllowFactory = False,
    as_json: AsJson = False,
) -> None:
    """Run a plan with our engine and with torch.distributed.pipelining, in turns within one launch, and print the ratio of medians.

    Exit code 2 where torch's pipelining cannot play the plan.

    Parameters
    ----------
    source
        A scenario (TOML), or a plan (plan.json).
    rounds
        Turns of each engine.
    steps
        Steps in each turn that count.
    """
    from chinchilla_sim.report.tables.engines import engines_table
    from chinchilla_sim.running import check_playable
    from chinchilla_sim.runtime.benchmark.engine_race import run_race
    from chinchilla_sim.runtime.engine.engines import check_engine

    at_least("--rounds", rounds)
    at_least("--steps", steps)
    file, _ = plan_to_run(source, overrides, force, as_json, allow_factory)
    check_playable(file)
    check_engine(file.plan, "torch")
    with busy("racing two engines"):
        race = run_race(file, rounds, steps)
    if as_json:
        print_json(race.to_dict())
    else:
        print_tables(engines_table(race))
