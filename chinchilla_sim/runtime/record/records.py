"""Records of all ranks on the machine of the first one, which writes the report: machines do not share folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist


def record_path(folder: Path, process: int) -> Path:
    """What a process of the run recorded."""
    return folder / f"rank{process}.json"


def share_records(folder: Path) -> None:
    """Every process calls this when its record is written; those that the first cannot see are sent to it."""
    process, count = dist.get_rank(), dist.get_world_size()
    missing: list[Any] = [None]
    if process == 0:
        missing = [[other for other in range(count) if not record_path(folder, other).exists()]]
    dist.broadcast_object_list(missing, src=0)
    if not missing[0]:
        return
    text = record_path(folder, process).read_text() if process in missing[0] else None
    gathered: list[str | None] | None = [None] * count if process == 0 else None
    dist.gather_object(text, gathered, dst=0)
    for other, received in enumerate(gathered or ()):
        if received is not None:
            record_path(folder, other).write_text(received)
