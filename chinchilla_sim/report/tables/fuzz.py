"""Tables of what became of spoilt files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chinchilla_sim.report.table import Table
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.fuzz import Failure, Tally


def fuzz_table(tallies: Sequence[Tally]) -> Table:
    """Counts by parser and outcome."""
    rows: list[tuple[str, ...]] = []
    rows += [(t.parser.name, str(t.inputs), str(t.valid), str(t.refused), str(t.failed), format_seconds(t.slowest_s)) for t in tallies]
    sums = [str(sum(counts)) for counts in zip(*((t.inputs, t.valid, t.refused, t.failed) for t in tallies), strict=True)]
    rows.append(("all", *sums, format_seconds(max(t.slowest_s for t in tallies))))
    note = "valid: what was read can be used and stored; refused: a mistake with its place and cure; failed: anything else"
    return Table("Spoilt files", ("parser", "inputs", "valid", "refused", "failed", "slowest"), tuple(rows), note=note)


def failures_table(failures: Mapping[Path, tuple[str, Failure]]) -> Table:
    """What escaped, and the smallest file that does it."""
    rows = [(parser, one.error, one.place, str(one.count), str(path)) for path, (parser, one) in failures.items()]
    return Table("Failures", ("parser", "error", "place", "files", "smallest of them"), tuple(rows), text_columns=(0, 1, 2, 4))
