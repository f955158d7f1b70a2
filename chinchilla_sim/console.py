"""What the commands write: tables and JSON to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.selection.judge import Progress
    from chinchilla_sim.report.table import Table

INTERRUPTED = 130
"""Exit code behind Ctrl-C."""


def print_tables(*tables: Table) -> None:
    """Tables to stdout: framed on a terminal, plain text elsewhere."""
    from rich.console import Console

    from chinchilla_sim.report.table import to_rich, to_text

    console = Console()
    for table in tables:
        if console.is_terminal:
            console.print(to_rich(table))
        else:
            print(to_text(table))
        print()


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document to stdout."""
    print(json.dumps(_finite(value), indent=1, allow_nan=False))


def writable_file(file: Path, option: str) -> Path:
    """A file that can be written, in a folder that is made if need be; anything else is a mistake found before the work starts."""
    if file.is_dir():
        raise ScenarioError([Mistake(option, f"{file} is a folder", f"name a file in it, such as {file / 'out.json'}")])
    writable_folder(file.parent, option)
    return file


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON document to a file."""
    path.write_text(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def log(text: str) -> None:
    """A line to stderr."""
    print(text, file=sys.stderr, flush=True)


def tell_details() -> None:
    """From now on what the package's own loggers say (files read, the calibration in use, plans counted) goes to stderr too."""
    import logging

    class ToStderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log(self.format(record))

    logger = logging.getLogger("chinchilla_sim")
    logger.addHandler(ToStderr())
    logger.setLevel(logging.INFO)


class Interrupt:
    """Ctrl-C as a question: calling it tells whether the user asked to end with what there is so far."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """A block that looks at it now and then; a second Ctrl-C ends the block at once, as ever."""
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
            yield  # somebody else looks after it, or nobody wants it
            return
        signal.signal(signal.SIGINT, self._heed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _heed(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not by print: the main thread may be inside one.
        os.write(2, b"\ninterrupted: ending with what there is so far; Ctrl-C again ends at once\n")

    def leave(self) -> None:
        """End the command with the exit code of an interrupt, if there was one."""
        if self.asked:
            sys.exit(INTERRUPTED)


def writable_folder(folder: Path, option: str = "--output") -> Path:
    """The folder, made if need be; one that cannot be written is a mistake found before the work starts."""
    probe = folder / ".chinchilla-write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise ScenarioError([Mistake(option, f"cannot write to {folder}: {why}", "name another folder")]) from error
    return folder


@contextmanager
def busy(text: str, about_s: float | None = None) -> Iterator[None]:
    """A line on stderr while something without steps goes on: how long already, or how long still where it takes about so many seconds."""
    from rich.console import Console
    from rich.progress import Progress as ProgressBar
    from rich.progress import ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Clock(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(clock_words(task.elapsed or 0.0, about_s))

    columns = (SpinnerColumn(), TextColumn("{task.description}"), Clock())
    # Seldom: what is measured meanwhile shares the cores.
    with ProgressBar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        bar.add_task(text, total=None)
        yield


def clock_words(elapsed_s: float, about_s: float | None = None) -> str:
    """How long something goes on already, or still.

    >>> clock_words(75.0), clock_words(10.0, 40.0), clock_words(50.0, 40.0)
    ('1 min 15 s so far', 'about 30 s left', '50 s so far, longer than usual')
    """
    if about_s is None:
        return f"{spoken(elapsed_s)} so far"
    left_s = about_s - elapsed_s
    return f"about {spoken(left_s)} left" if left_s >= 1 else f"{spoken(elapsed_s)} so far, longer than usual"


def spoken(seconds: float) -> str:
    """A time as people say it, such as `2 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def searching(what: str = "searching splits") -> Iterator[Progress]:
    """A progress bar on stderr; call what it gives with (done, total), and how far from its bound the best so far is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    gap_column = TextColumn("{task.fields[gap]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), gap_column)
    with ProgressBar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("search", gap="")

        def show(done: int, total: int, gap: float | None = None) -> None:
            bar.update(task, completed=done, total=total, gap="" if gap is None else f"within {100 * gap:.1f} % of the bound")

        yield show


@contextmanager
def show_epochs(total: int, steps: int | None = None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A line per epoch on stderr, as the ranks report it, with the time that is left of all epochs or `steps`."""
    told: list[tuple[float, float]] = []

    def show(line: Mapping[str, Any]) -> None:
        metrics = "".join(f"  {name} {value:.4f}" for name, value in line.items() if name not in ("epoch", "steps", "epoch_s"))
        told.append((max(line["epoch"] / total, line["steps"] / steps if steps else 0.0), monotonic()))
        log(f"epoch {line['epoch']:>3}/{total}  {line['steps']} steps  {line['epoch_s']:.1f} s{metrics}{_left(told)}")

    log("starting the ranks")
    yield show


def _left(told: Sequence[tuple[float, float]]) -> str:
    """Words for the time left, from shares done and when; the first share may be that of a run before, so it tells no speed.

    >>> _left([(0.1, 5.0), (0.2, 7.0)]), _left([(0.1, 5.0)])
    ('  about 16 s left', '')
    """
    (first, first_s), (done, now_s) = told[0], told[-1]
    return f"  about {spoken((1 - done) * (now_s - first_s) / (done - first))} left" if first < done < 1 else ""
