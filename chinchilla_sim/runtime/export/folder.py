"""One door to all forms."""

from __future__ import annotations

from pathlib import Path

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.plan_file import PlanFile


def export_folder(file: PlanFile, cluster: Cluster, form: str, folder: Path) -> tuple[str, ...]:
    """Write the folder of a plan for other machines; returns what a person still has to see to."""
    if form == "script":
        from chinchilla_sim.runtime.export.script import export_script

        return export_script(file, folder)
    from chinchilla_sim.runtime.export.forms import export_form

    return export_form(file, cluster, form, folder).notes
