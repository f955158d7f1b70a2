"""gloo's threads ask the scheduler for short turns, so that messages do not wait until a thread that computes has used up its own.

Linux (EEVDF, since 6.12) lets a thread that wakes up go first where its slice is shorter than that of whoever runs; the cores that it
takes in all stay the same. On older kernels, and elsewhere, nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from contextlib import suppress
from pathlib import Path

NETWORK_THREADS = ("gloo_tcp_loop", "pt_gloo_runloop")
"""Names that torch 2.13 gives to what moves bytes and to what runs collectives."""
SLICE_NS = 100_000
"""The shortest that the kernel grants; the usual one is 1.4 to 3 ms."""

_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""sched_attr of sched_setattr(2): size, policy, flags, nice, priority, runtime (the slice), deadline, period."""


def hurry_network_threads() -> int:
    """Give the network threads that this process has now short slices; returns how many took them."""
    call = _SET_ATTRIBUTES.get(platform.machine())
    tasks = Path("/proc/self/task")
    if call is None or not tasks.is_dir():
        return 0
    return sum(_shorten(call, int(task.name)) for task in tasks.iterdir() if _name(task) in NETWORK_THREADS)


def _name(task: Path) -> str:
    # Threads come and go.
    with suppress(OSError):
        return (task / "comm").read_text().strip()
    return ""


def _shorten(call: int, thread: int) -> bool:
    with suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
        return bool(ctypes.CDLL(None, use_errno=True).syscall(call, thread, attributes, 0) == 0)
    return False
