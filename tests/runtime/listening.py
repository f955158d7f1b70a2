"""A rank that writes which addresses its run listens at: `python -m tests.runtime.listening FOLDER`."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist


def listening(pids: set[int]) -> list[str]:
    """Addresses, in hexadecimal as the kernel writes them, at which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue  # closed meanwhile
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and f"socket:[{cells[9]}]" in inodes:
                found.append(cells[1].split(":")[0])
    return found


def main(folder: Path) -> None:
    """Rank 0 tells about all ranks and their launcher."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    pids: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())
    if dist.get_rank() == 0:
        (folder / "listening.json").write_text(json.dumps(listening({*pids, os.getppid()})))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
