"""What the commands write: tables and JSON to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.judge import Progress
    from chinchilla_sim.report.table import Table


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


def writable_folder(folder: Path, option: str = "--output") -> Path:
    """The folder, made if need be; one that cannot be written is a mistake found before the work starts."""
    probe = folder / ".chinchilla-write-test"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ScenarioError([Mistake(option, f"cannot write to {folder}: {error.strerror}", "name another folder")]) from error
    return folder


@contextmanager
def busy(text: str) -> Iterator[None]:
    """A spinner on stderr while something without steps goes on."""
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


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
def show_epochs(total: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A line per epoch on stderr, as the ranks report it."""

    def show(line: Mapping[str, Any]) -> None:
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in line.items() if name not in ("epoch", "steps", "epoch_s"))
        log(f"epoch {line['epoch']:>3}/{total}  {line['steps']} steps  {line['epoch_s']:.1f} s  {metrics}")

    log("starting the ranks")
    yield show
