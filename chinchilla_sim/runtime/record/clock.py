"""One clock for all ranks: how far each rank's CLOCK_MONOTONIC is ahead of the first rank's.

Ranks on one machine read the same clock and need nothing. Others bounce a message off rank 0: where it left here at a,
was answered there at b, and was back at c, this clock is ahead by

    offset = (a + c) / 2 - b        off by (c - a) / 2 at most

and of several rounds the quickest counts. This is done at the start and at the end of a run, since clocks drift:
between both readings the offset is taken to change evenly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

ROUNDS = 16
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TIME_NAMESPACE = Path("/proc/self/ns/time")

Read = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Reading:
    """At `local_s` of a rank's own clock that was `offset_s` ahead of rank 0's, give or take `error_s`."""

    local_s: float
    offset_s: float
    error_s: float


def clock_name() -> str:
    """What ranks that read the same clock have in common: the boot of a machine, and its time namespace."""
    try:
        return f"{BOOT_ID.read_text().strip()} {os.readlink(TIME_NAMESPACE)}"
    except OSError:
        return f"unknown {os.getpid()}"


def read_offset(name: str, device: torch.device, read: Read = monotonic) -> Reading:
    """This rank's clock against rank 0's; all ranks of the default group call it at the same time, each with its clock's name.

    Messages are tensors on `device`.
    """
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, name)
    apart = [rank for rank, other in enumerate(names) if other != names[0]]
    reading = Reading(read(), 0.0, 0.0)
    for rank in apart:
        if dist.get_rank() == 0:
            _answer(rank, device, read)
        elif dist.get_rank() == rank:
            reading = _ask(device, read)
    return reading


def _ask(device: torch.device, read: Read) -> Reading:
    """Bounce messages off rank 0; the quickest round counts."""
    best = Reading(0.0, 0.0, float("inf"))
    ping, answer = torch.zeros(2, 1, dtype=torch.float64, device=device)
    for _ in range(ROUNDS):
        # Posted ahead: under rendezvous data leaves only when the receiver is ready.
        waiting = dist.irecv(answer, src=0)
        assert waiting is not None
        sent_s = read()
        dist.send(ping, dst=0)
        waiting.wait()
        back_s = read()
        if (back_s - sent_s) / 2 < best.error_s:
            middle_s = (sent_s + back_s) / 2
            best = Reading(middle_s, middle_s - float(answer[0]), (back_s - sent_s) / 2)
    return best


def _answer(rank: int, device: torch.device, read: Read) -> None:
    ping = torch.zeros(1, dtype=torch.float64, device=device)
    for _ in range(ROUNDS):
        dist.recv(ping, src=rank)
        dist.send(torch.tensor([read()], dtype=torch.float64, device=device), dst=rank)
