"""One rank of a real run: `python -m chinchilla_sim.runtime.worker [--allow-factory] [--engine torch] RUN_FOLDER`, started by torchrun.

The folder holds plan.json; every rank writes `rank<R>.json` (what it recorded) or `rank<R>.error` (its traceback),
rank 0 writes metrics.jsonl and weights.pt. Where the folder holds checkpoints, the run goes on from the newest.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from argparse import ArgumentParser, Namespace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_sim.runtime.launching.parent import die_with_parent, leave_if_orphaned

if TYPE_CHECKING:
    import torch

    from chinchilla_sim.runtime.engine.engines import Engine

BEHIND_WATCHDOG_S = 60.0
"""How much longer a rank waits for another than the command, which can tell who hangs, waits for any of them."""


def main(folder: Path, allow_factory: bool = False, engine: Engine = "chinchilla") -> int:
    """Run this rank; the return value is the exit code."""
    # Before the imports, which take seconds.
    die_with_parent(signal.SIGKILL)
    leave_if_orphaned(str(folder))
    rank = int(os.environ["RANK"])
    try:
        _run(folder, allow_factory, engine)
    except BaseException:
        (folder / f"rank{rank}.error").write_text(traceback.format_exc())
        raise
    return 0


def _run(folder: Path, allow_factory: bool, engine: Engine) -> None:
    import torch.distributed as dist

    from chinchilla_sim.planner.plan_file import load_plan
    from chinchilla_sim.runtime.answering.serving import make_run
    from chinchilla_sim.runtime.launching.threads import order_network_threads
    from chinchilla_sim.runtime.record.records import share_records

    prepare_process()
    device, path = choose_device(), folder / "plan.json"
    file = load_plan(path).allow_factory(allow_factory, str(path))
    timeout = timedelta(seconds=file.scenario.job.timeout_s + BEHIND_WATCHDOG_S)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    run = make_run(file, folder, device, engine)
    order_network_threads()
    run.run()
    share_records(folder)
    dist.destroy_process_group()


def prepare_process() -> None:
    """What every process that computes does first.

    One thread per rank, on cores of its own where ranks compute on them; numbers too small for a normal float become 0 (moments of rarely
    used weights decay there, and arithmetic on them is slow); Linux ends the process with its launcher.
    """
    import torch

    from chinchilla_sim.runtime.launching.threads import keep_to_own_cores

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if choose_device().type == "cpu":
        keep_to_own_cores(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    die_with_parent(signal.SIGKILL)


def choose_device() -> torch.device:
    """A GPU of this process's own where the machine has enough, else the CPU."""
    import torch

    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device("cpu")


def _read_arguments() -> Namespace:
    parser = ArgumentParser(prog="python -m chinchilla_sim.runtime.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--allow-factory", action="store_true")
    parser.add_argument("--engine", choices=("chinchilla", "torch"), default="chinchilla")
    return parser.parse_args()


if __name__ == "__main__":
    given = _read_arguments()
    sys.exit(main(given.folder, given.allow_factory, given.engine))
