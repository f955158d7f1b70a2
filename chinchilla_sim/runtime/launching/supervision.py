"""Keep a run alive: start it again when its processes are killed, end it when they hang, tell what its ranks have to say.

All processes are started again by the command, not by torchrun's agent: so the death of the agent itself is one more case
of the same, every start is as clean as the first, and a traceback in a rank's error file, which torchrun cannot tell from a kill, ends the
run at once. Ranks find the newest checkpoint by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from chinchilla_sim.errors import RankLostError, RunError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, RESUME_FILE, check_job, keep_previous, newest_step, require_whole
from chinchilla_sim.runtime.record.heartbeat import Watchdog, read_whereabouts
from chinchilla_sim.runtime.record.notes import NOTES, NoteReader, Tell

MOST_RESTARTS = 3
"""In a row, without a new checkpoint in between."""

CHECK_S = 1.0
LEFT_BEHIND = ("rank*.json", "rank*.error", "rank*.at", "rank*.stack")

Watch = Callable[[dict[str, Any]], None]
Launch = Callable[[Watch | None, Callable[[], None]], None]


def prepare_folder(file: PlanFile, folder: Path, resume: Path | None, tell: Tell) -> None:
    """Make a folder ready for a run, or for its continuation from the checkpoints in `resume`."""
    folder.mkdir(parents=True, exist_ok=True)
    if resume is not None:
        check_job(require_whole(resume / FOLDER), file.scenario.job)
    for pattern in (*LEFT_BEHIND, NOTES, RESUME_FILE, "metrics.jsonl"):
        for old in folder.glob(pattern):
            old.unlink()
    if resume is None or resume.resolve() != folder.resolve():
        kept = keep_previous(folder / FOLDER)
        if kept:
            tell(f"checkpoints of the run before are in {kept}")
    if resume is not None:
        (folder / RESUME_FILE).write_text(json.dumps({"checkpoints": str((resume / FOLDER).resolve())}))
    file.save(folder / "plan.json")


def supervise(launch: Launch, folder: Path, timeout_s: float, watch: Watch | None, tell: Tell) -> None:
    """Launch all ranks, again and again while they are killed from outside and checkpoints show progress.

    A rank that is lost before its first step was made would be lost again: that ends the run, as tracebacks do.
    """
    notes, restarts, newest = NoteReader(folder, tell), 0, newest_step(folder / FOLDER)
    fresh = _Fresh(watch)
    while True:
        guard = _Guard(folder, timeout_s, notes)
        try:
            launch(fresh if watch else None, guard.check)
            return
        except RankLostError as lost:
            before, newest = newest, newest_step(folder / FOLDER)
            restarts = 1 if newest > before else restarts + 1
            begun = any(one.step for one in read_whereabouts(folder))
            if restarts > MOST_RESTARTS or not (begun or newest >= 0 or restarts > 1):
                raise
            where = f"its checkpoint of step {newest}" if newest >= 0 else "its beginning"
            tell(f"WARNING: {str(lost).splitlines()[0].partition(';')[0]}; the run starts again from {where}")
        finally:
            notes.check()
        for pattern in LEFT_BEHIND:
            for old in folder.glob(pattern):
                old.unlink()


class _Fresh:
    """Passes on the metrics of every epoch once, although a run that starts again repeats some."""

    def __init__(self, watch: Watch | None) -> None:
        self.watch, self.epoch = watch, 0

    def __call__(self, line: dict[str, Any]) -> None:
        if self.watch and line["epoch"] > self.epoch:
            self.epoch = line["epoch"]
            self.watch(line)


class _Guard:
    """Looks after one launch, about once a second."""

    def __init__(self, folder: Path, timeout_s: float, notes: NoteReader) -> None:
        self.watchdog, self.notes = Watchdog(folder, timeout_s), notes
        self._next_s = 0.0

    def check(self) -> None:
        """Tell what is new; RunError where nothing moves any more."""
        if monotonic() < self._next_s:
            return
        self._next_s = monotonic() + CHECK_S
        self.notes.check()
        if not self.watchdog.moving():
            raise RunError(self.watchdog.explain())
