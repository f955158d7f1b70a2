"""Where and when the threads of a rank run: on cores of its own, and gloo's threads soon, but never in the middle of one another.

Left to the scheduler, two ranks on two cores meet on one of them now and then, and a thread that wakes up is put where another rank
computes: a step of two replicas of a small network took 4.2 ms instead of 2.8, one of two stages 3.0 instead of 2.1 (medians of three
runs in turns, Linux 6.18). So each rank keeps to its share of the cores, as MPI's launchers have it.

gloo has a thread that moves bytes and threads that run collectives. The first only tries to lock a connection, and asks again at once
where another holds the lock: if it has pushed that thread off their core, it spins until the next tick of the scheduler (4 ms at 250 Hz)
while both ranks wait. As SCHED_BATCH they push nobody away when they wake up; with short slices they come first at every tick: an
all-reduce of 1.6 MB took 0.5 ms instead of 0.7 to 2.5, a step with overlapped buckets 17 ms instead of 22, messages between stages that
compute as long as before. What they take of the cores stays the same. Short slices need Linux 6.12 (EEVDF); where there are none, the
order stays the system's.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from chinchilla_sim.cluster.hosts import core_range

NETWORK_THREADS = ("gloo_tcp_loop", "pt_gloo_runloop")
"""Names that torch 2.13 gives to what moves bytes and to what runs collectives."""
SLICE_NS = 100_000
"""The shortest that the kernel grants; the usual one is 1.4 to 3 ms."""

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""What this process may run on before it keeps to its share."""

_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""sched_attr of sched_setattr(2): size, policy, flags, nice, priority, runtime (the slice), deadline, period."""


def keep_to_own_cores(local_rank: int, local_count: int) -> frozenset[int]:
    """Let this process, with its threads, run on its share of the cores that it was started on; returns that (none where nobody knows)."""
    if not CORES:
        return frozenset()
    share = own_cores(CORES, local_rank, local_count)
    for thread in _threads() or [0]:
        with suppress(OSError):
            os.sched_setaffinity(thread, share)
    return share


def own_cores(cores: Sequence[int], local_rank: int, local_count: int) -> frozenset[int]:
    """The cores of one of several ranks, neighbours together; with more ranks than cores some have the same one.

    >>> [sorted(own_cores(range(5), rank, 2)) for rank in range(2)], [sorted(own_cores([4, 6], rank, 3)) for rank in range(3)]
    ([[0, 1], [2, 3, 4]], [[4], [4], [6]])
    """
    return frozenset(cores[number] for number in core_range(len(cores), local_rank, local_count))


def order_network_threads() -> int:
    """Let the network threads that this process has now wait for their turn, which is short and comes soon; returns how many do."""
    call = _SET_ATTRIBUTES.get(platform.machine())
    if call is None or not has_slices(platform.release()):
        return 0
    return sum(_order(call, thread) for thread in _threads() if _name(thread) in NETWORK_THREADS)


def has_slices(release: str) -> bool:
    """Whether threads may ask a kernel of this release for slices of their own.

    >>> has_slices("6.18.44-fc-v657"), has_slices("6.8.0-45-generic"), has_slices("7.0.1")
    (True, False, True)
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= (6, 12)


def _threads() -> list[int]:
    """All threads of this process, where the system lists them."""
    tasks = Path("/proc/self/task")
    return [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else []


def _name(thread: int) -> str:
    # Threads come and go.
    with suppress(OSError):
        return Path(f"/proc/self/task/{thread}/comm").read_text().strip()
    return ""


def _order(call: int, thread: int) -> bool:
    with suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_BATCH, 0, nice, 0, SLICE_NS, 0, 0)
        return bool(ctypes.CDLL(None, use_errno=True).syscall(call, thread, attributes, 0) == 0)
    return False
