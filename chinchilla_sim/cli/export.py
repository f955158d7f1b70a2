"""`chinchilla export`: a plan for other machines, or for other frameworks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from chinchilla_sim.cli.app import RUN, AllowFactory, AsJson, Force, Output, app
from chinchilla_sim.cli.shared import load_plan_file, named
from chinchilla_sim.console import busy, log, print_json, writable_file, writable_folder
from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.setting import Setting

CONFIGURATIONS = ("megatron", "torchtitan", "deepspeed")


@app.command(group=RUN)
def export(
    plan: Path,
    *,
    to: Annotated[
        Literal["torchrun", "slurm", "kubernetes", "docker", "script", "megatron", "torchtitan", "deepspeed"], Parameter(name="--to")
    ],
    equal_layers: Annotated[bool, Parameter(negative=())] = False,
    output: Output = None,
    force: Force = False,
    allow_factory: AllowFactory = False,
    as_json: AsJson = False,
) -> None:
    """Write a folder that runs a plan on other machines, or a configuration of another framework; exit code 2 where that cannot express it.

    The folder needs torch and this package there; that of `script` needs torch alone: one readable Python file, with the
    initial weights and the data of the first epoch beside it. A configuration is one file; what it cannot say is refused or told.

    Parameters
    ----------
    plan
        A plan file (plan.json).
    to
        torchrun (a shell script for one or several nodes), slurm (a batch script), kubernetes (an Indexed Job), docker (an image), or
        script; megatron (a command line of Megatron-LM), torchtitan (a job file, TOML), or deepspeed (a JSON).
    equal_layers
        Of megatron and torchtitan: divide whole layers equally over the stages first, and say what that costs.
    output
        Folder to write to (default: NAME-TO, such as mnist_mlp-torchrun); of a configuration the file (default: NAME-megatron.sh).
    """
    from chinchilla_sim.given import check_feasible, open_plan

    if equal_layers and to not in CONFIGURATIONS:
        raise ScenarioError([Mistake("--equal-layers", f"is not for {to}, which takes any stages", "leave it out")])
    file = load_plan_file(plan, allow_factory)
    setting = open_plan(file, str(plan), force=force)
    check_feasible(setting, file, str(plan), force)
    if to in CONFIGURATIONS:
        _write_configuration(file, setting, to, equal_layers, output, as_json)
    else:
        _write_folder(file, setting, plan, to, output, as_json)


def _write_folder(file: PlanFile, setting: Setting, source: Path, to: str, output: Path | None, as_json: bool) -> None:
    from chinchilla_sim.running import check_exportable
    from chinchilla_sim.runtime.export.folder import export_folder

    with named(source):
        check_exportable(file)
    folder = writable_folder(output or Path(f"{file.scenario.name}-{to}"))
    with busy(f"writing {folder}"):
        notes = export_folder(file, setting.cluster, to, folder)
    written = sorted(str(path.relative_to(folder)) for path in folder.iterdir())
    if as_json:
        print_json({"folder": str(folder), "files": written, "notes": list(notes)})
    else:
        print(folder)
        for note in notes:
            log(note)


def _write_configuration(file: PlanFile, setting: Setting, to: str, equal_layers: bool, output: Path | None, as_json: bool) -> None:
    from collections import Counter

    from chinchilla_sim.interchange.expressible import Exportable
    from chinchilla_sim.interchange.forms import WRITERS, export_configuration

    target = writable_file(output or Path(f"{file.scenario.name}-{to}{WRITERS[to][0]}"), "--output")
    notes: list[str] = []
    if equal_layers:
        file, told = _with_equal_layers(file, setting)
        notes.append(told)
    width = max(Counter(map(setting.cluster.node_of, file.plan.slots)).values())
    made = export_configuration(Exportable(file, setting.graph, width), to)
    notes += made.notes
    target.write_text(made.text, encoding="utf-8")
    if as_json:
        print_json({"file": str(target), "notes": notes, "text": made.text})
        return
    print(target)
    for note in notes:
        log(note)


def _with_equal_layers(file: PlanFile, setting: Setting) -> tuple[PlanFile, str]:
    """The plan with equal layers, and what that makes of its step."""
    from chinchilla_sim.given import simulate_plan
    from chinchilla_sim.interchange.forms import with_equal_layers
    from chinchilla_sim.units import format_seconds

    equal = replace(file, plan=with_equal_layers(file.plan, setting.graph))
    before_s, after_s = (simulate_plan(setting, one).step_s for one in (file, equal))
    change = f"{format_seconds(after_s)} instead of {format_seconds(before_s)} ({after_s / before_s - 1:+.1%})"
    return equal, f"equal layers: a simulated step takes {change}"
