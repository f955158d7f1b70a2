"""Commands about several machines: emulated ones, and this one's part of a run over real ones."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from cyclopts import App

from chinchilla_sim.cli.app import RUN, AsJson, Overrides, app
from chinchilla_sim.cli.shared import load_plan_file, load_scenario_file, named
from chinchilla_sim.console import log, print_json, print_tables, save_json, show_epochs, writable_folder
from chinchilla_sim.errors import Mistake, ScenarioError

testbed = App(name="testbed", group=RUN, help="Emulate a scenario's nodes and links on this machine (Linux, root).")
app.command(testbed)


@testbed.command
def up(scenario: Path, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Set up a scenario's nodes and links, say how to enter them, and stay until Ctrl-C; then count what went over the links.

    Every node is a network namespace; `chinchilla run` needs none of this, it sets up its own.

    Parameters
    ----------
    scenario
        A scenario whose nodes all have device = "this-machine".
    """
    from chinchilla_sim.report.tables.testbed import hosts_table, traffic_table
    from chinchilla_sim.runtime.emulated.testbed import open_testbed

    spec = load_scenario_file(scenario, overrides).cluster
    with named(scenario), open_testbed(spec) as bed:
        hosts = [host.to_dict() for host in bed.hosts.values()]
        if as_json:
            # Stdout is one document, which comes at the end.
            for host in bed.hosts.values():
                log(f"{host.name}: ip netns exec {host.namespace} bash")
        else:
            print_tables(hosts_table(hosts))
        sys.stdout.flush()
        ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        log("Ctrl-C removes it all")
        signal.sigwait(ends)
        traffic = bed.traffic()
    if as_json:
        print_json({"guardian": bed.guardian, "nodes": hosts, "traffic": traffic.to_dict()})
    else:
        print_tables(traffic_table(traffic.to_dict()))


@testbed.command
def down(*, as_json: AsJson = False) -> None:
    """Remove nodes of testbeds whose own process was killed; those that run are left alone."""
    from chinchilla_sim.runtime.emulated.testbed import remove_leftovers

    removed = remove_leftovers()
    if as_json:
        print_json({"removed": removed})
    else:
        print("\n".join(removed) if removed else "nothing was left behind")


def run_this_node(
    source: Path | None,
    rendezvous: str,
    node_rank: int | None,
    output: Path | None,
    steps: int | None,
    force: bool,
    allow_factory: bool,
    as_json: bool,
) -> None:
    """This machine's part of `chinchilla run PLAN --rendezvous HOST:PORT --node-rank N`; node 0 compares and reports."""
    from chinchilla_sim.running import join_for_real
    from chinchilla_sim.runtime.launching.rendezvous import parse_rendezvous

    if source is None or source.suffix != ".json":
        cure = "plan first (`chinchilla plan SCENARIO -o plan.json`) and give the same file to all nodes"
        raise ScenarioError([Mistake("", "machines run a plan together, not a scenario", cure)], str(source or "--rendezvous"))
    if node_rank is None:
        raise ScenarioError([Mistake("--node-rank", "is missing for --rendezvous", "number the nodes from 0, which is at HOST")])
    meeting = parse_rendezvous(rendezvous, node_rank)
    file = load_plan_file(source, allow_factory)
    # Node 0 compares in the end; others may have been calibrated otherwise.
    simulated = _simulated(file, source, force) if node_rank == 0 else None
    folder = writable_folder(output or Path("reports") / file.scenario.name / "run")
    (folder / "measurement.json").unlink(missing_ok=True)
    with named(source), show_epochs(file.scenario.job.epochs) as watch:
        measurement = join_for_real(file, folder, meeting, steps, watch)
    if measurement is None or simulated is None:
        log(f"the ranks of node {node_rank} are done; node 0 has the report")
        return
    save_json(folder / "measurement.json", measurement.to_dict())
    _print_comparison(file, simulated, measurement, as_json)
    log(f"weights, metrics and measurement are in {folder}")


def _simulated(file: Any, source: Path, force: bool) -> Any:
    """The simulated step of a plan that may be run."""
    from chinchilla_sim.given import check_feasible, open_plan, simulate_plan

    setting = open_plan(file, str(source), force=force)
    check_feasible(setting, file, str(source), force)
    return simulate_plan(setting, file).timeline


def _print_comparison(file: Any, simulated: Any, measurement: Any, as_json: bool) -> None:
    from chinchilla_sim.report.tables.measured import categories_table, comparison_table, metrics_table
    from chinchilla_sim.validation.compare import compare

    comparison = compare(simulated, measurement)
    if as_json:
        print_json({"plan": file.to_dict(), **comparison.to_dict(), **measurement.metrics, "weights": measurement.weights})
    else:
        print_tables(comparison_table(comparison), categories_table(comparison), metrics_table(measurement))
