"""Simulated against measured steps of many scenarios on emulated nodes: rows, kept as CSV, and how far off they are by link."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median, quantiles

from chinchilla_sim.units import format_bandwidth

SLOW_BYTES_PER_S = 25e6
"""200 Mbit/s: up to here steps are bound by the links, beyond also by what communication takes of the cores."""


@dataclass(frozen=True, slots=True)
class LinkCase:
    """One scenario on the testbed: `spread` is (75th - 25th percentile) / median of its measured steps, over all `repeats`."""

    name: str
    plan: str
    ranks: int
    slowest_bytes_per_s: float
    fastest_bytes_per_s: float
    simulated_step_s: float
    measured_step_s: float
    spread: float
    step_count: int
    repeats: int

    @property
    def relative_error(self) -> float:
        """(simulated - measured) / measured: negative where the simulation is too fast."""
        return self.simulated_step_s / self.measured_step_s - 1.0

    @property
    def link(self) -> str:
        """Group by link, such as `200 Mbit/s` or `mixed`."""
        if self.slowest_bytes_per_s != self.fastest_bytes_per_s:
            return "one slow link"
        return format_bandwidth(self.slowest_bytes_per_s)


@dataclass(frozen=True)
class Choice:
    """The first plans of one scenario by simulated time, with what each measured."""

    name: str
    plans: tuple[str, ...]
    simulated_s: tuple[float, ...]
    measured_s: tuple[float, ...]

    @property
    def regret(self) -> float:
        """By how much the first choice is slower than the best of them, when measured."""
        return self.measured_s[0] / min(self.measured_s) - 1.0


@dataclass(frozen=True, slots=True)
class Spread:
    """How far off a group of cases is: median, 90th percentile and largest absolute relative error."""

    name: str
    count: int
    median: float
    p90: float
    worst: float


def spread_of(name: str, errors: Iterable[float]) -> Spread:
    """Statistics of some relative errors; there is at least one."""
    sizes = sorted(abs(error) for error in errors)
    p90 = quantiles(sizes, n=10, method="inclusive")[-1] if len(sizes) > 1 else sizes[0]
    return Spread(name, len(sizes), median(sizes), p90, sizes[-1])


def spreads(cases: Sequence[LinkCase]) -> list[Spread]:
    """All cases, those with links up to 200 Mbit/s, faster ones, and each kind of link; empty groups are left out."""
    groups = {
        "all": list(cases),
        "up to 200 Mbit/s": [case for case in cases if case.fastest_bytes_per_s <= SLOW_BYTES_PER_S],
        "faster": [case for case in cases if case.fastest_bytes_per_s > SLOW_BYTES_PER_S],
    }
    for case in cases:
        groups.setdefault(case.link, []).append(case)
    return [spread_of(name, (case.relative_error for case in members)) for name, members in groups.items() if members]


def read_cases(path: Path) -> list[LinkCase]:
    """Rows that an earlier run has written; none where there is no file."""
    if not path.exists():
        return []
    kinds = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        return [
            LinkCase(**{field.name: kinds[str(field.type)](row[field.name]) for field in fields(LinkCase)}) for row in csv.DictReader(file)
        ]


def write_cases(cases: Sequence[LinkCase], path: Path) -> None:
    """All rows in one move, so that a killed run leaves whole ones."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(LinkCase)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(case) for case in cases)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text.getvalue())
    partial.replace(path)


def relative_spread(step_s: Sequence[float]) -> float:
    """(75th - 25th percentile) / median of some seconds."""
    low, _, high = quantiles(step_s, n=4, method="inclusive")
    return (high - low) / median(step_s)
