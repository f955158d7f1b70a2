"""`chinchilla bench kills`: is anything lost when processes of a run are killed?"""

from __future__ import annotations

import sys
from pathlib import Path

from chinchilla_sim.cli.app import AsJson, bench
from chinchilla_sim.cli.shared import at_least, load_plan_file
from chinchilla_sim.console import print_json, print_tables, searching


@bench.command(name="kills")
def bench_kills(plan: Path | None = None, *, times: int = 10, seed: int = 0, as_json: AsJson = False) -> None:
    """Kill a rank, the launcher or the command of real runs at random moments; exit 1 where a loss or weight differs in one bit at the end.

    Parameters
    ----------
    plan
        Plan file of a job that saves checkpoints (default: a small network: replicas, a pipeline, ZeRO 2, tensor parallel).
    times
        Runs that lose a process.
    seed
        Seed of moments and victims.
    """
    import tempfile

    from chinchilla_sim.report.tables.kills import kills_table
    from chinchilla_sim.runtime.benchmark.kills import Kill, measure_kills, small_plans

    at_least("--times", times)
    files = [load_plan_file(plan)] if plan else small_plans()
    results: dict[str, list[Kill]] = {}
    with tempfile.TemporaryDirectory(prefix="chinchilla-kills-") as folder, searching("killing") as progress:
        for number, file in enumerate(files):
            share = times // len(files) + (number < times % len(files))
            found = results.setdefault(file.plan.describe(), [])
            for kill in measure_kills(file, share, seed + number, Path(folder) / str(number)) if share else ():
                found.append(kill)
                progress(sum(map(len, results.values())), times)
    if as_json:
        print_json({"plans": [{"plan": name, "kills": [kill.to_dict() for kill in kills]} for name, kills in results.items()]})
    else:
        print_tables(*(kills_table(name, kills) for name, kills in results.items()))
    if not all(kill.harmless for kills in results.values() for kill in kills):
        sys.exit(1)
