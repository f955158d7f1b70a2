"""Tables of runs that lost a process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from chinchilla_sim.report.table import Table


class KilledRun(Protocol):
    """What is shown of one (`runtime.kills.Kill`)."""

    @property
    def victim(self) -> str:
        """Which process was killed."""

    @property
    def restarts(self) -> int:
        """How often the run started again by itself."""

    @property
    def resumptions(self) -> int:
        """How often it was resumed by hand."""

    @property
    def same_losses(self) -> bool:
        """Bitwise, against a run without trouble."""

    @property
    def same_weights(self) -> bool:
        """The same of the weights."""

    @property
    def left_processes(self) -> int:
        """Processes that were left."""


def kills_table(plan: str, kills: Sequence[KilledRun]) -> Table:
    """A line per kind of process, for the runs of one plan."""
    rows = []
    for victim in sorted({kill.victim for kill in kills}):
        group = [kill for kill in kills if kill.victim == victim]
        counts = (
            len(group),
            sum(kill.same_losses for kill in group),
            sum(kill.same_weights for kill in group),
            sum(kill.restarts for kill in group),
            sum(kill.resumptions for kill in group),
            sum(kill.left_processes for kill in group),
        )
        rows.append((victim, *map(str, counts)))
    headers = ("killed", "runs", "same losses", "same weights", "restarts", "resumed", "processes left")
    return Table(f"kill -9 at random moments: {plan}", headers, tuple(rows), note="same: bit for bit as in a run without trouble")
