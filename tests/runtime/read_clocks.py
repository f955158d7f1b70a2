"""Ranks whose clocks differ read each other's: `python -m tests.runtime.read_clocks FOLDER`."""

import json
import sys
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path
from time import monotonic

import torch
import torch.distributed as dist

from chinchilla_sim.runtime.record.clock import clock_name, read_offset
from chinchilla_sim.runtime.worker import prepare_process

AHEAD_S = (0.0, 1000.0, -0.25)
"""How far the clocks of three ranks are ahead; the last two share a machine's name with nobody."""


def main(folder: Path) -> None:
    """Each rank writes its reading as it is, and one under a clock that runs ahead."""
    prepare_process()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, cpu = dist.get_rank(), torch.device("cpu")
    here = read_offset(clock_name(), cpu)
    ahead = read_offset(f"machine {rank}", cpu, lambda: monotonic() + AHEAD_S[rank])
    (folder / f"clock{rank}.json").write_text(json.dumps({"here": astuple(here), "ahead": astuple(ahead)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
