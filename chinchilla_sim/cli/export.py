"""`chinchilla export`: a plan for other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from chinchilla_sim.cli.app import AllowFactory, AsJson, Force, Output, app
from chinchilla_sim.cli.shared import load_plan_file
from chinchilla_sim.console import busy, log, print_json, writable_folder


@app.command
def export(
    plan: Path,
    *,
    to: Annotated[Literal["torchrun", "slurm", "kubernetes", "docker", "script"], Parameter(name="--to")],
    output: Output = None,
    force: Force = False,
    allow_factory: AllowFactory = False,
    as_json: AsJson = False,
) -> None:
    """Write a folder that runs a plan on other machines; exit code 2 where the form cannot express the plan.

    The folder needs torch and this package there; that of `script` needs torch alone: one readable Python file, with the
    initial weights and the data of the first epoch beside it.

    Parameters
    ----------
    plan
        A plan file (plan.json).
    to
        torchrun (a shell script for one or several nodes), slurm (a batch script), kubernetes (an Indexed Job), docker (an image), or
        script.
    output
        Folder to write to (default: NAME-TO, such as mnist_mlp-torchrun).
    """
    from chinchilla_sim.running import check_exportable
    from chinchilla_sim.runtime.export.folder import export_folder
    from chinchilla_sim.workflow import open_plan

    file = load_plan_file(plan, allow_factory)
    setting = open_plan(file, str(plan), force=force)
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
