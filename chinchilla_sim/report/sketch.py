"""A step drawn in plain text, one line per rank, for terminals and README files."""

from __future__ import annotations

from chinchilla_sim.timeline import Category, Timeline
from chinchilla_sim.units import format_seconds

LETTER: dict[Category, str] = {
    "input": "i",
    "forward": "F",
    "backward": "B",
    "codec": "c",
    "optimizer": "O",
    "transfer": "~",
    "collective": "=",
}
LEGEND = (
    "F forward  B backward  c codec  O optimizer  ~ waits for a message on the wire  = waits for a collective  . waits for another rank"
)
LARGEST_RANK_COUNT = 16


def sketch(timeline: Timeline, width: int = 100) -> str:
    """Each column shows what the rank did in most of its time; computation hides communication behind it.

    >>> from chinchilla_sim.timeline import Span
    >>> print(sketch(Timeline(1, (Span(0, "compute", "forward", "0F0", 0, 1), Span(0, "compute", "backward", "0B0", 2, 4))), 8))
    one step, 4.00 s
    rank 0  FF..BBBB
    F forward  B backward  c codec  O optimizer  ~ waits for a message on the wire  = waits for a collective  . waits for another rank
    """
    shown = min(timeline.rank_count, LARGEST_RANK_COUNT)
    digits = len(str(shown - 1))
    lines = [f"rank {rank:>{digits}}  {_row(timeline, rank, width)}" for rank in range(shown)]
    if shown < timeline.rank_count:
        lines.append(f"(and {timeline.rank_count - shown} more ranks)")
    heading = f"one step, {format_seconds(timeline.makespan_s)}{exchange_words(timeline)}"
    return "\n".join([heading, *lines, LEGEND])


def exchange_words(timeline: Timeline) -> str:
    """Which step is drawn, where only some exchange."""
    if timeline.local_steps == 1:
        return ""
    return f" (of {timeline.local_steps} the one that exchanges; {format_seconds(timeline.step_s)} on average)"


def _row(timeline: Timeline, rank: int, width: int) -> str:
    computation = _columns(timeline, rank, width, ("compute",))
    communication = _columns(timeline, rank, width, ("receive", "collective"))
    return "".join(letter if letter != "." else behind for letter, behind in zip(computation, communication, strict=True))


def _columns(timeline: Timeline, rank: int, width: int, streams: tuple[str, ...]) -> str:
    """The category that fills most of each column, `.` where more than half of it is empty."""
    column_s = timeline.makespan_s / width if timeline.makespan_s else 1.0
    filled: list[dict[str, float]] = [{} for _ in range(width)]
    for span in timeline.spans_of(rank):
        if span.stream not in streams:
            continue
        start, end = (span.start_s - timeline.start_s) / column_s, (span.end_s - timeline.start_s) / column_s
        for column in range(int(start), min(width, int(end) + 1)):
            share = min(end, column + 1) - max(start, column)
            letter = LETTER[span.category]
            filled[column][letter] = filled[column].get(letter, 0.0) + max(0.0, share)
    return "".join(_fullest(shares) for shares in filled)


def _fullest(shares: dict[str, float]) -> str:
    letter, share = max(shares.items(), key=lambda item: item[1], default=(".", 0.0))
    return letter if share > 0.5 - 1e-9 and sum(shares.values()) >= 0.5 else "."
