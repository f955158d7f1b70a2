"""No process of a run outlives the one that started it. Imports nothing heavy, so that it comes into force at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def die_with_parent(with_signal: signal.Signals) -> None:
    """Let the kernel end this process when the one that started it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, with_signal)


def leave_if_orphaned(argument: str) -> None:
    """End this process where its launcher was dead before it could ask for the signal.

    Orphans belong to process 1; in a container that may be the launcher itself, whose command names `argument`.
    """
    if sys.platform == "linux" and os.getppid() == 1 and argument.encode() not in Path("/proc/1/cmdline").read_bytes():
        sys.exit("the launcher of this rank is dead")
