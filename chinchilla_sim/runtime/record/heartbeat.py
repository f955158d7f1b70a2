"""Where every rank is: a few bytes in the run's folder that each rank keeps up to date, at the cost of a copy in memory per action.

They can be read when the rank itself cannot answer any more. Whoever finds that no rank has moved for too long asks the ranks for their
stacks (SIGUSR1) and blames those that do not wait for others.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SIZE_BYTES = 128
ASK_S = 1.0
WAITING_FRAMES = ("/torch/distributed/", "/chinchilla_sim/runtime/")
_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)')


class Heartbeat:
    """Writes where this process is."""

    def __init__(self, folder: Path, process: int) -> None:
        path = heartbeat_path(folder, process)
        path.write_bytes(b" " * SIZE_BYTES)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE_BYTES)
        self._stacks = stack_path(folder, process).open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        self._start, self._count, self.step = f"{os.getpid()} ", 0, 0

    def at(self, label: str) -> None:
        """The process begins an action."""
        self._count += 1
        self._memory[:] = f"{self._start}{self._count} {self.step} {label}".encode()[:SIZE_BYTES].ljust(SIZE_BYTES)

    def close(self) -> None:
        """No stack is asked for any more."""
        faulthandler.unregister(signal.SIGUSR1)
        self._stacks.close()


def heartbeat_path(folder: Path, process: int) -> Path:
    """File of a process's heartbeat."""
    return folder / f"rank{process}.at"


def stack_path(folder: Path, process: int) -> Path:
    """File of a process's stacks."""
    return folder / f"rank{process}.stack"


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a process was last."""

    process: int
    pid: int
    step: int
    label: str

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped it."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        except (OSError, IndexError):
            return False

    def __str__(self) -> str:
        return f"step {self.step + 1} at {self.label}"


def read_whereabouts(folder: Path) -> list[Whereabouts]:
    """Of all processes that have begun, in order."""
    found = []
    for path in folder.glob("rank*.at"):
        words = path.read_bytes().decode(errors="replace").split(maxsplit=3)
        if len(words) == 4 and words[0].isdecimal() and words[2].isdecimal():
            process = int(path.stem.removeprefix("rank"))
            found.append(Whereabouts(process, int(words[0]), int(words[2]), words[3].strip()))
    return sorted(found, key=lambda one: one.process)


class Watchdog:
    """Notices that nothing moves."""

    def __init__(self, folder: Path, patience_s: float) -> None:
        self.folder, self.patience_s = folder, patience_s
        self._seen, self._since_s = dict[str, bytes](), time.monotonic()

    def moving(self) -> bool:
        """False once no process has begun an action for longer than the patience lasts."""
        now = {path.name: path.read_bytes() for path in self.folder.glob("rank*.at")}
        if now != self._seen or not now:
            self._seen, self._since_s = now, time.monotonic()
        return time.monotonic() - self._since_s < self.patience_s

    def explain(self) -> str:
        """Which process hangs, where, and what to do."""
        ranks = read_whereabouts(self.folder)
        places = _ask_for_stacks(self.folder, ranks)
        guilty = [one for one in ranks if one.stopped] or [one for one in ranks if not _waits(places[one.process])] or ranks
        lines = [f"no rank has moved for {self.patience_s:.0f} s"]
        for one in ranks:
            place = "stopped by a signal" if one.stopped else places[one.process] or "no stack"
            what = "hangs" if one in guilty else "waits"
            lines.append(f"rank {one.process} (pid {one.pid}) {what} in {one}: {place}")
        lines.append("resume with `chinchilla run --resume FOLDER`; if an action may take that long, raise job.timeout")
        return "\n".join(lines)


def _ask_for_stacks(folder: Path, ranks: Sequence[Whereabouts]) -> dict[int, str]:
    """The innermost frame of every process's main thread; "" where it does not answer."""
    for one in ranks:
        if not one.stopped:
            try:
                os.kill(one.pid, signal.SIGUSR1)
            except OSError:
                continue
    time.sleep(ASK_S)
    return {one.process: _innermost(stack_path(folder, one.process)) for one in ranks}


def _innermost(path: Path) -> str:
    """The first frame of the thread that took the signal: the main thread."""
    text = path.read_text(errors="replace") if path.exists() else ""
    _, _, current = text.rpartition("Current thread")
    frame = _FRAME.search(current)
    return f"{frame['file']}:{frame['line']} in {frame['function']}" if frame else ""


def _waits(place: str) -> bool:
    return any(folder in place for folder in WAITING_FRAMES)
