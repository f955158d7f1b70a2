"""`chinchilla import`: configurations of other frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.app import FIRST_STEPS, AsJson, Output, Overrides, app
from chinchilla_sim.cli.shared import at_least
from chinchilla_sim.console import log, print_json, writable_file
from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.interchange.assemble import Imported


@app.command(name="import", group=FIRST_STEPS)
def import_configuration(
    *files: Path,
    device: str | None = None,
    count: int | None = None,
    devices_per_node: int | None = None,
    network: str | None = None,
    tokens: int | None = None,
    overrides: Overrides = None,
    output: Output = None,
    plan: Annotated[Path | None, Parameter(name="--plan")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a scenario from a Hugging Face config.json, the arguments of Megatron-LM, or a DeepSpeed JSON with one of these.

    Every value has a comment that says where it is from. Keys that are not used, values that a scenario cannot express and what had to be
    assumed are told on standard error, and in the scenario. Nothing is run or downloaded.

    Parameters
    ----------
    files
        One file with the model, and perhaps a DeepSpeed JSON. Megatron-LM's arguments may stand in a shell script.
    device
        What the job runs on, by its name in the catalogue (default: h100-sxm-80gb).
    count
        Devices in all (default: what the files say, else 8).
    devices_per_node
        Devices of a node (default: what the files say, else 8).
    network
        What joins the nodes: a link of the catalogue, or the bandwidth of a node such as "3200 Gbit/s" (default: 200 Gbit/s a device).
    tokens
        Length of a sample, which no config.json says (default: its positions, at most 4096).
    output
        File to write the scenario to (default: standard output).
    plan
        Write the very plan of Megatron-LM's arguments to this file (plan.json) too, for `simulate`; it needs --output.
    """
    from chinchilla_sim.interchange.assemble import Machines, import_files

    if not files:
        raise ScenarioError([Mistake("", "no file named", "chinchilla import config.json -o scenario.toml")])
    _check_options({"--count": count, "--devices-per-node": devices_per_node, "--tokens": tokens}, output, plan)
    machines = Machines(device, count, devices_per_node, network)
    imported = import_files(files, machines, tokens, overrides or (), str(output or "scenario.toml"))
    if plan:
        _write_exact_plan(imported, plan)
    if output:
        output.write_text(imported.text, encoding="utf-8")
    _show(imported, output, plan, as_json)


def _check_options(counts: Mapping[str, int | None], output: Path | None, plan: Path | None) -> None:
    """Counts of at least 1, and files that can be written."""
    if plan and not output:
        raise ScenarioError([Mistake("--plan", "needs the scenario in a file", "add -o scenario.toml")])
    for option, number in counts.items():
        if number is not None:
            at_least(option, number)
    for option, file in (("--output", output), ("--plan", plan)):
        if file:
            writable_file(file, option)


def _write_exact_plan(imported: Imported, file: Path) -> None:
    from chinchilla_sim.interchange.exact import exact_plan
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.setting import prepare

    setting = prepare(imported.scenario)
    counts, replicas_first = imported.parts[0].layer_counts, imported.parts[0].replicas_first
    chosen = exact_plan(setting.scenario, setting.graph, counts, replicas_first)
    PlanFile(chosen, setting.scenario, setting.hashes).save(file)


def _show(imported: Imported, output: Path | None, plan: Path | None, as_json: bool) -> None:
    if as_json:
        written = {"scenario": str(output) if output else None, "plan": str(plan) if plan else None, "toml": imported.text}
        print_json(written | imported.to_dict())
        return
    print(output or imported.text, end="\n" if output else "")
    _tell(imported)


def _tell(imported: Imported) -> None:
    """Parameters, and all that a person should look at."""
    if imported.parameter_count:
        log(f"the model has {imported.parameter_count:,} parameters")
    for one in imported.assumed:
        log(f"assumed: {one}")
    for one in imported.warnings:
        log(f"not expressed: {one}")
    for parts in imported.parts:
        if parts.ignored:
            log(f"not used of {parts.source}: {', '.join(parts.ignored)}")
