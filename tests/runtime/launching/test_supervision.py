"""When a run starts again, when it ends, and what its user is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import RankLostError, RunError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.launching.supervision import MOST_RESTARTS, prepare_folder, supervise
from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, checkpoint_path, job_facts, newest_step, seal
from chinchilla_sim.runtime.record.heartbeat import Heartbeat
from chinchilla_sim.runtime.record.notes import note
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.schema import Scenario
from tests.runtime.test_run import make_plan

Check = Callable[[], None]


def save(folder: Path, step: int, job: JobSpec | None = None) -> None:
    """A checkpoint without contents."""
    path = checkpoint_path(folder / FOLDER, step)
    path.mkdir(parents=True)
    seal(path, {}, job_facts(job or JobSpec(global_batch_size=24)))


def move(folder: Path, step: int) -> None:
    """A rank that has made some steps."""
    beat = Heartbeat(folder, 0)
    beat.step = step
    beat.at("0F0")
    beat.close()


class Launches:
    """Plays launches: each does what its entry says, and counts."""

    def __init__(self, *entries: Callable[[], None]) -> None:
        self.entries, self.count = entries, 0

    def __call__(self, watch: Any, check: Check) -> None:
        self.count += 1
        self.entries[min(self.count, len(self.entries)) - 1]()


def lose(folder: Path, step: int, saved: int | None = None) -> Callable[[], None]:
    """A launch that loses a rank."""

    def play() -> None:
        move(folder, step)
        if saved is not None:
            save(folder, saved)
        raise RankLostError("a rank died")

    return play


def test_a_lost_rank_starts_the_run_again(tmp_path: Path) -> None:
    """From the newest checkpoint, and the user is told."""
    told: list[str] = []
    launches = Launches(lose(tmp_path, 8, saved=5), lambda: None)
    supervise(launches, tmp_path, 60, None, told.append)
    assert launches.count == 2 and "step 5" in told[0]


def test_restarts_end_without_progress(tmp_path: Path) -> None:
    """So many in a row without a new checkpoint are enough; a new one starts the count again."""
    launches = Launches(*(lose(tmp_path, 3, saved=step) for step in (2, 4, 6, 8, 10, 12)), lose(tmp_path, 3))
    with pytest.raises(RankLostError):
        supervise(launches, tmp_path, 60, None, lambda _: None)
    assert launches.count == 6 + MOST_RESTARTS


def test_a_rank_lost_in_its_first_step_ends_the_run(tmp_path: Path) -> None:
    """It would be lost again."""
    launches = Launches(lose(tmp_path, 0))
    with pytest.raises(RankLostError):
        supervise(launches, tmp_path, 60, None, lambda _: None)
    assert launches.count == 1


def test_an_error_of_the_job_is_not_tried_again(tmp_path: Path) -> None:
    """A traceback ends the run at once, whatever was saved."""

    def fail() -> None:
        save(tmp_path, 5)
        raise RunError("ZeroDivisionError")

    launches = Launches(fail)
    with pytest.raises(RunError, match="ZeroDivisionError"):
        supervise(launches, tmp_path, 60, None, lambda _: None)
    assert launches.count == 1


def test_notes_of_ranks_are_told_once(tmp_path: Path) -> None:
    """Also those that come with the end, and of a line that is being written nothing."""
    told: list[str] = []

    def launch(watch: Any, check: Check) -> None:
        note(tmp_path, "disk\nfull")
        check()
        note(tmp_path, "again")

    supervise(launch, tmp_path, 60, None, told.append)
    assert told == ["disk full", "again"]


def test_epochs_are_shown_once(tmp_path: Path) -> None:
    """A run that starts again repeats the lines of its epochs."""
    shown: list[int] = []
    attempts = iter((True, False))

    def launch(watch: Any, check: Check) -> None:
        for epoch in (1, 2) if next(attempts) else (1, 2, 3):
            watch({"epoch": epoch})
        if epoch == 2:
            lose(tmp_path, 5)()

    supervise(launch, tmp_path, 60, lambda line: shown.append(line["epoch"]), lambda _: None)
    assert shown == [1, 2, 3]


def test_a_run_that_is_not_resumed_keeps_the_checkpoints_of_the_one_before(own: Scenario, tmp_path: Path) -> None:
    """They are moved and the user is told where; a resumed run in the same folder goes on with them."""
    file, told = PlanFile(make_plan(own, 1, 1, 1), own), list[str]()
    folder = tmp_path / "run"
    save(folder, 5, own.job)
    prepare_folder(file, folder, folder, told.append)
    assert newest_step(folder / FOLDER) == 5 and not told
    prepare_folder(file, folder, None, told.append)
    assert newest_step(folder / FOLDER) == -1 and "checkpoints.previous" in told[0]
    with pytest.raises(RunError, match="nothing to resume"):
        prepare_folder(file, folder, folder, told.append)
