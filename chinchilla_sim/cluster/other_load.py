"""How busy this machine's cores are with other programs' work, from the kernel's own counts (Linux).

    cores of others = (busy seconds of the cores that we may use - CPU seconds of this process and of its ended children) / elapsed

Busy is user, nice and system time, and what a hypervisor stole; interrupts are left out, since the kernel's work on our own messages is
among them. The counts are in hundredths of a second, so less than half a second tells nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from time import monotonic, sleep

STAT = Path("/proc/stat")
SAMPLE_S = 1.0
NOTICED_CORES = 0.2
"""From so much of a core on measured times are doubtful: a calibration beside another program was +38 % off instead of -8 %."""


class OtherLoad:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._start = _counts()
        self._start_s = monotonic()

    def cores(self) -> float | None:
        """Cores that others kept busy so far, on average; None where the system does not tell."""
        now, elapsed_s = _counts(), monotonic() - self._start_s
        if self._start is None or now is None or elapsed_s <= 0:
            return None
        busy_s, own_s = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, busy_s - own_s) / elapsed_s


def other_load(sample_s: float = SAMPLE_S) -> float | None:
    """Cores that others keep busy now, over a short sleep; None where the system does not tell."""
    watch = OtherLoad()
    sleep(sample_s)
    return watch.cores()


def load_warning(cores: float | None, when: str) -> str | None:
    """What to say of it, if it is enough to spoil a measurement.

    >>> load_warning(0.05, "now"), load_warning(None, "now")
    (None, None)
    >>> load_warning(0.9, "are busy with other programs")
    'WARNING: 0.90 cores are busy with other programs: times measured beside them come out too long; end them and measure again'
    """
    if cores is None or cores < NOTICED_CORES:
        return None
    return f"WARNING: {cores:.2f} cores {when}: times measured beside them come out too long; end them and measure again"


def _counts() -> tuple[float, float] | None:
    """Busy seconds of the cores that this process may use, and CPU seconds of this process with its ended children."""
    try:
        busy_s = busy_seconds(STAT.read_text().splitlines(), os.sched_getaffinity(0))
    except (OSError, AttributeError, ValueError, IndexError):
        return None
    own = os.times()
    return busy_s, own.user + own.system + own.children_user + own.children_system


def busy_seconds(lines: Iterable[str], cores: Iterable[int]) -> float:
    """Busy seconds of some cores, from the lines of /proc/stat.

    >>> busy_seconds(["cpu  9 9 9 9 9 9 9 9", "cpu0 100 20 30 999 5 7 9 50 0 0", "cpu1 7 0 0 1 0 0 0 0"], {0}) * os.sysconf("SC_CLK_TCK")
    200.0
    """
    names = {f"cpu{core}" for core in cores}
    rows = [fields[1:] for fields in map(str.split, lines) if fields and fields[0] in names]
    ticks = sum(int(user) + int(nice) + int(system) + int(steal) for user, nice, system, _, _, _, _, steal, *_ in rows)
    return ticks / os.sysconf("SC_CLK_TCK")
