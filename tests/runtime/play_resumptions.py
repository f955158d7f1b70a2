"""Runs and their continuations, all in one process group: `python -m tests.runtime.play_resumptions FOLDER`.

A subfolder's plan.json is run to its end (records in `whole`) and once more from its newest checkpoint (`again`); with an after.json
that plan goes on from there (`after`). Where there is a `fill_at`, the disk of its checkpoints is full from that step on.
"""

import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from chinchilla_sim.planner.plan_file import load_plan
from chinchilla_sim.runtime.rank.training import RankRun
from chinchilla_sim.runtime.record.checkpoint_files import RESUME_FILE
from chinchilla_sim.runtime.worker import prepare_process

CPU = torch.device("cpu")


def main(root: Path) -> None:
    """Play everything."""
    prepare_process()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        for folder in sorted(path.parent for path in root.glob("*/plan.json")):
            play(folder)
    except BaseException:
        (root / f"rank{os.environ['RANK']}.error").write_text(f"{folder.name}:\n{traceback.format_exc()}")
        raise
    dist.destroy_process_group()


def play(folder: Path) -> None:
    """One subfolder."""
    file = load_plan(folder / "plan.json")
    run = RankRun(file, folder, CPU)
    if (folder / "fill_at").exists():
        run.checkpoints.before_step = fill_disk(run)  # type: ignore[method-assign]
    run.run()
    keep(folder, "whole")
    RankRun(file, folder, CPU).run()
    keep(folder, "again")
    if (folder / "after.json").exists():
        after = folder / "after"
        after.mkdir(exist_ok=True)
        (after / RESUME_FILE).write_text(json.dumps({"checkpoints": str(folder / "checkpoints")}))
        RankRun(load_plan(folder / "after.json"), after, CPU).run()


def keep(folder: Path, name: str) -> None:
    """Copy what a run left, before the next one writes over it."""
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / name).mkdir()
        for path in [*folder.glob("rank*.json"), *folder.glob("weights.pt"), *folder.glob("metrics.jsonl")]:
            shutil.copy(path, folder / name)
    dist.barrier()


def fill_disk(run: RankRun) -> Callable[..., float]:
    """`before_step` with a disk that somebody else fills."""
    before_step, at = run.checkpoints.before_step, int((run.folder / "fill_at").read_text())

    def wrapped(*arguments: Any) -> float:
        if run.steps == at:
            run.checkpoints.finish()
            dist.barrier()
            if dist.get_rank() == 0:
                with contextlib.suppress(OSError), (run.checkpoints.root / "filler").open("wb", buffering=0) as file:
                    while file.write(b"0" * 256):
                        pass
            dist.barrier()
        return before_step(*arguments)

    return wrapped


if __name__ == "__main__":
    main(Path(sys.argv[1]))
