"""Records of all ranks on the machine of the first one, which writes the report: machines share neither folders nor clocks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

from chinchilla_sim.runtime.recorder import shift_record

ROUNDS = 20


def record_path(folder: Path, process: int) -> Path:
    """What a process of the run recorded."""
    return folder / f"rank{process}.json"


def share_records(folder: Path) -> None:
    """Every process calls this when its record is written; those that the first cannot see are sent to it.

    Times of another clock are put on the first process's, as good as half the quickest round trip between the two.
    """
    process, count = dist.get_rank(), dist.get_world_size()
    clocks: list[str] = [""] * count
    dist.all_gather_object(clocks, _clock())
    missing: list[Any] = [None]
    if process == 0:
        missing = [[other for other in range(count) if not record_path(folder, other).exists()]]
    dist.broadcast_object_list(missing, src=0)
    if not missing[0] and len(set(clocks)) == 1:
        return
    group = dist.new_group(backend="gloo")
    behind_s = 0.0
    for other in range(1, count):
        if clocks[other] != clocks[0] and process in (0, other):
            behind_s = _seconds_behind(other, group)
    record = json.loads(record_path(folder, process).read_text())
    text = json.dumps(shift_record(record, behind_s)) if process else None
    gathered: list[str | None] | None = [None] * count if process == 0 else None
    dist.gather_object(text, gathered, dst=0, group=group)
    for other, received in enumerate(gathered or ()):
        if received is not None:
            record_path(folder, other).write_text(received)


def _clock() -> str:
    """Name of the monotonic clock that this process reads: one for each start of a machine and time namespace."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/time")
    except OSError:
        return f"unknown {os.getpid()}"


def _seconds_behind(other: int, group: Any) -> float:
    """On the other process: by how much its clock is behind that of process 0, by the quickest of some round trips; 0 on process 0."""
    time = torch.zeros(1, dtype=torch.float64)
    found: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        if dist.get_rank() == 0:
            dist.recv(time, src=other, group=group)
            dist.send(torch.tensor([monotonic()], dtype=torch.float64), dst=other, group=group)
        else:
            sent_s = monotonic()
            dist.send(time, dst=0, group=group)
            dist.recv(time, src=0, group=group)
            came_s = monotonic()
            found.append((came_s - sent_s, float(time) - (sent_s + came_s) / 2))
    return min(found)[1] if found else 0.0
