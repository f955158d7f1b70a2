"""A rank that sends bulk messages over gloo, or answers them: `bulk.py FOLDER`; rank 0 writes the seconds of each."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

VALUES, COUNT = 1_000_000, 3


def main(folder: Path) -> None:
    """Messages of 4 MB from rank 0 to rank 1, whose receives are posted ahead; every one is acknowledged."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    other = 1 - dist.get_rank()
    size = VALUES if dist.get_rank() else 1
    arriving = [torch.empty(size) for _ in range(COUNT)]
    works: list[Any] = [dist.irecv(tensor, src=other, tag=number) for number, tensor in enumerate(arriving)]
    dist.barrier()
    seconds = []
    for number, work in enumerate(works):
        start_s = time.monotonic()
        if dist.get_rank():
            work.wait()
            dist.send(torch.ones(1), dst=other, tag=number)
        else:
            dist.send(torch.full((VALUES,), float(number)), dst=other, tag=number)
            work.wait()
        seconds.append(time.monotonic() - start_s)
    assert dist.get_rank() == 0 or [float(tensor[-1]) for tensor in arriving] == [0.0, 1.0, 2.0]
    if dist.get_rank() == 0:
        (folder / "bulk.json").write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
