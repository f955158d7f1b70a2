"""All plans of a folder, one behind the other in one process group: `python -m tests.runtime.play_plans FOLDER [ENGINE]`."""

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from chinchilla_sim.planner.plan_file import load_plan
from chinchilla_sim.runtime.answering.serving import make_run
from chinchilla_sim.runtime.engine.engines import Engine
from chinchilla_sim.runtime.worker import prepare_process


def main(folder: Path, engine: Engine = "chinchilla") -> None:
    """Every subfolder's plan.json; records land beside it."""
    prepare_process()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        for path in sorted(folder.glob("*/plan.json")):
            make_run(load_plan(path), path.parent, torch.device("cpu"), engine).run()
    except BaseException:
        (folder / f"rank{os.environ['RANK']}.error").write_text(f"{path.parent.name}:\n{traceback.format_exc()}")
        raise
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])  # type: ignore[arg-type]
