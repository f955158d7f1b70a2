"""The forms in which torchrun starts the ranks: by hand, by Slurm, by Kubernetes, in a container."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import requires, version
from importlib.resources import files
from math import ceil
from pathlib import Path

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.export.bundle import Bundle, bundle, quoted, write
from chinchilla_sim.runtime.export.machines import Machines, machines_of, number_by_node
from chinchilla_sim.runtime.launching.launch import RANK_ENVIRONMENT
from chinchilla_sim.units import format_seconds

LAUNCHER = "chinchilla_sim.runtime.launching.agent"
ONE_NODE_ONLY = "GLOO_SOCKET_IFNAME"
DEFAULT_HOURS = 1
CONFIG_MAP_LIMIT_BYTES = 1_000_000
"""Kubernetes keeps at most 1 MiB in a ConfigMap."""


@dataclass(frozen=True)
class _Export:
    """A form under way."""

    bundle: Bundle
    machines: Machines
    summary: str

    @property
    def node_count(self) -> int:
        return len(self.machines.names)

    @property
    def gpus(self) -> int:
        """GPUs of each node; 0 where ranks compute on cores."""
        return max(self.machines.rank_counts) if self.machines.accelerated else 0

    def write(self, template: str, name: str, executable: bool = False, **values: object) -> None:
        write(self.bundle, template, name, executable, summary=self.summary, node_count=self.node_count, **values)


def export_form(file: PlanFile, cluster: Cluster, form: str, folder: Path) -> Bundle:
    """Write the folder of one form; a ScenarioError where the form cannot express the plan."""
    file = replace(file, plan=number_by_node(file.plan, cluster))
    machines = machines_of(file.plan, cluster)
    if form in ("slurm", "kubernetes") and not machines.alike:
        nodes = ", ".join(f"{name}: {count} x {device}" for name, count, device in _rows(machines))
        what = f"{form} starts the same on every node, and this plan's differ ({nodes})"
        raise ScenarioError([Mistake("--to", what, "export --to torchrun, which has its own number of ranks for every node")])
    made = bundle(file, folder)
    made_of = _Export(made, machines, f"{made.name}: {file.plan.describe()}")
    _write_runner(made_of)
    _FORMS[form](made_of)
    _write_readme(made_of, form)
    return made


def _rows(machines: Machines) -> list[tuple[str, int, str]]:
    """Name, ranks and device of every node."""
    return [(name, count, device.name) for name, count, device in zip(machines.names, machines.rank_counts, machines.devices, strict=True)]


def _write_runner(export: _Export) -> None:
    environment = {key: value for key, value in RANK_ENVIRONMENT.items() if key != ONE_NODE_ONLY}
    nodes = [shlex.quote(name) for name in export.machines.names]
    counts = export.machines.rank_counts
    export.write("run.sh.jinja", "run.sh", True, nodes=nodes, rank_counts=counts, environment=environment, launcher=LAUNCHER)


def _write_slurm(export: _Export) -> None:
    time, note = _time_limit(export.bundle.file)
    ranks = max(export.machines.rank_counts)
    export.write("job.sbatch.jinja", "job.sbatch", True, ranks=ranks, gpus=export.gpus, time=time, time_note=note)


def _time_limit(file: PlanFile) -> tuple[str, str]:
    """Slurm's time limit: twice what was simulated and ten minutes, where the number of steps is known."""
    steps = file.scenario.job.total_steps
    if file.simulated_step_s is None or steps is None:
        return f"{DEFAULT_HOURS:02d}:00:00", "The number of steps follows from the data: set --time to what they take."
    minutes = ceil(2 * steps * file.simulated_step_s / 60) + 10
    note = f"--time is ten minutes and twice the {steps} steps of {format_seconds(file.simulated_step_s)} that were simulated."
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00", note


def _write_kubernetes(export: _Export) -> None:
    plan = (export.bundle.folder / "plan.json").read_text(encoding="utf-8")
    if len(plan.encode()) > CONFIG_MAP_LIMIT_BYTES:
        what = f"the plan has {len(plan.encode())} bytes, a ConfigMap holds {CONFIG_MAP_LIMIT_BYTES}"
        raise ScenarioError([Mistake("--to", what, "export --to docker, whose image holds the plan")])
    ranks = max(export.machines.rank_counts)
    export.write("job.yaml.jinja", "job.yaml", plan=quoted(plan), ranks=ranks, gpus=export.gpus)
    _write_docker(export)


def _write_docker(export: _Export) -> None:
    """An image of this package as it is installed here: no registry has to know it."""
    package = Path(str(files("chinchilla_sim")))
    target, unwanted = export.bundle.folder / package.name, shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, target, dirs_exist_ok=True, ignore=unwanted)
    needed = [need for need in requires("chinchilla-sim") or () if "extra ==" not in need]
    (export.bundle.folder / "requirements.txt").write_text("\n".join(needed) + "\n")
    export.write("Dockerfile.jinja", "Dockerfile")


def _write_readme(export: _Export, form: str) -> None:
    name, nodes = export.bundle.name, export.node_count
    by_hand = "./run.sh" if nodes == 1 else "On every node: ./run.sh NODE_RANK HOST:PORT, where HOST is node 0 as the others reach it."
    run = f"docker run --rm {name}" if nodes == 1 else f"docker run --rm --network host {name} NODE_RANK HOST:PORT, on every node"
    start: Mapping[str, str] = {
        "torchrun": by_hand,
        "slurm": "sbatch job.sbatch, in this folder, which every node must see.",
        "kubernetes": f"docker build -t {name} . (push it, and name it in job.yaml as the cluster pulls it); kubectl apply -f job.yaml",
        "docker": f"docker build -t {name} . && {run}",
    }
    machines = _rows(export.machines)
    notes, installed = export.bundle.notes, version("chinchilla-sim")
    export.write("README.txt.jinja", "README.txt", form=form, start=start[form], machines=machines, notes=notes, version=installed)


_FORMS: Mapping[str, Callable[[_Export], None]] = {
    "torchrun": lambda _: None,
    "slurm": _write_slurm,
    "kubernetes": _write_kubernetes,
    "docker": _write_docker,
}
