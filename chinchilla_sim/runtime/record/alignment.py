"""What ranks recorded on clocks of their own, brought onto the clock of the first rank (`clock.py` says how clocks are read)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Shift = Callable[[Any], Any]


def align(record: dict[str, Any]) -> dict[str, Any]:
    """A rank's record with all its times on the first rank's clock; the same where its `clock` was never ahead."""
    readings = [(float(local_s), float(offset_s)) for local_s, offset_s, _ in record.get("clock", ())]
    if not any(offset_s for _, offset_s in readings):
        return record

    def shift(time_s: float | None) -> float | None:
        return None if time_s is None else time_s - offset_at(readings, time_s)

    return record | {
        "intervals": [(shift(start_s), shift(end_s)) for start_s, end_s in record["intervals"]],
        "steps": [_align_step(step, shift) for step in record["steps"]],
    }


def offset_at(readings: Sequence[tuple[float, float]], local_s: float) -> float:
    """How far a clock was ahead at a moment of its own, from its first and last reading.

    >>> offset_at([(0.0, 1.0), (100.0, 2.0)], 50.0)
    1.5
    """
    (first_s, first_offset_s), (last_s, last_offset_s) = readings[0], readings[-1]
    if last_s <= first_s:
        return first_offset_s
    return first_offset_s + (last_offset_s - first_offset_s) * (local_s - first_s) / (last_s - first_s)


def _align_step(step: dict[str, Any], shift: Shift) -> dict[str, Any]:
    """Rows as `Recorder.to_dict` writes them: keys of four, then label and times."""
    return {
        "compute": [[label, category, shift(start_s), shift(end_s), *sent] for label, category, start_s, end_s, *sent in step["compute"]],
        "sends": [[*row[:5], shift(row[5]), *row[6:]] for row in step["sends"]],
        "receives": [[*row[:5], *map(shift, row[5:])] for row in step["receives"]],
        "collectives": [[*row[:5], shift(row[5]), shift(row[6]), row[7], *map(shift, row[8:])] for row in step["collectives"]],
    }
