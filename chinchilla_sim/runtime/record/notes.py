"""Lines that ranks have for the user while they run: written to the run's folder, told by the command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

NOTES = "notes.txt"

Tell = Callable[[str], None]


def tell_nobody(text: str) -> None:
    """For runs that nobody watches."""


def note(folder: Path, text: str) -> None:
    """Leave a line for the user; a full disk does not stop the run."""
    print(text, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError), (folder / NOTES).open("a") as file:
        file.write(text.replace("\n", " ") + "\n")


class NoteReader:
    """Tells every line once."""

    def __init__(self, folder: Path, tell: Tell) -> None:
        self.path, self.tell, self._seen = folder / NOTES, tell, 0

    def check(self) -> None:
        """Tell what is new."""
        if self.path.exists():
            text = self.path.read_text()
            lines = text[: text.rfind("\n") + 1].splitlines()  # without a line that is being written
            for line in lines[self._seen :]:
                self.tell(line)
            self._seen = len(lines)
