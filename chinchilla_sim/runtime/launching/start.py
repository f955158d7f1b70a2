"""A rank of a run over several nodes: `python -m chinchilla_sim.runtime.launching.start MODULE ARGUMENTS`, started by torchrun.

torchrun numbers ranks node by node; a plan may deal them out otherwise. Here the rank takes the number that the plan gives it, and
its node's share of the cores, before the module runs; what every module imports first is not slowed down by that.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

PROCESSES_VARIABLE = "CHINCHILLA_PROCESSES"
"""Numbers of the node's processes in the run, in the order of their local ranks."""

CGROUPS_VARIABLE = "CHINCHILLA_CGROUPS"
"""Folders of the cgroups of the node's devices, where they have less than a core."""

CORES_VARIABLE = "CHINCHILLA_CORES"
"""The core of this machine that each of an emulated node's devices runs on."""


def main(module: str) -> None:
    """Run the module as this rank's main program."""
    import torch.distributed
    import torch.export  # noqa: F401

    processes = os.environ[PROCESSES_VARIABLE].split(",")
    local = int(os.environ["LOCAL_RANK"])
    os.environ["RANK"] = processes[local]
    cgroups = os.environ.get(CGROUPS_VARIABLE)
    if cgroups:
        Path(cgroups.split(os.pathsep)[local], "cgroup.procs").write_text(str(os.getpid()))
    cores = os.environ.get(CORES_VARIABLE)
    if cores:
        # A quota is handed out core by core: a second thread elsewhere would find none left.
        os.sched_setaffinity(0, {int(cores.split(",")[local])})
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
