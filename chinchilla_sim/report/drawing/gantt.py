"""The step as a Gantt chart: what every rank does, and what it waits for while it does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from chinchilla_sim.report.alike import alike_ranks, group_name, picked
from chinchilla_sim.report.drawing.canvas import (
    COLOR,
    GREY,
    INK,
    LEFT_PT,
    RIGHT_PT,
    WIDTH_PT,
    Drawing,
    beside,
    panel,
    rectangle,
    show_keys,
    stacked_figure,
    style,
    time_unit,
)
from chinchilla_sim.report.drawing.trace import split_lanes
from chinchilla_sim.report.sketch import exchange_words
from chinchilla_sim.report.table import percent
from chinchilla_sim.report.tables.idle import WAITS
from chinchilla_sim.timeline import STREAMS, Span, Stream, Timeline, WaitKind
from chinchilla_sim.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_PT: dict[Stream, float] = {"compute": 18.0, "send": 9.0, "receive": 9.0, "collective": 9.0}
RANK_GAP_PT = 8.0
COLUMN_PT = 3.0  # a row with too many narrow spans is drawn as shares of columns this wide
NARROW_PT, MOST_NARROW, MOST_LANES = 2.0, 150, 4
MOST_ROWS = 16
LABEL_PT = 7.0
STRIP = 0.3
"""Height of a strip that tells why a rank is idle, as a share of its row."""
WAIT_COLOR: dict[WaitKind, str] = {
    "peer": GREY,
    "transfer": COLOR["transfer"],
    "collective": COLOR["collective"],
    "end": "#c3b9a0",
    "unknown": "#b0532f",
}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of one kind, in points from the panel's left and top edge."""

    kind: str
    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True, slots=True)
class _Piece:
    """An interval of one kind: a span, or a wait."""

    kind: str
    start_s: float
    end_s: float


def draw_gantt(simulated: Timeline, measured: Timeline | None = None) -> Drawing:
    """Every rank's streams over one step; the measured step stands beneath the simulated one on the same time scale.

    Of many ranks those that do the same share a row.
    """
    panels = [("simulated step", simulated)] + ([("measured step nearest the median", measured)] if measured else [])
    longest_s = max(timeline.makespan_s for _, timeline in panels) or 1.0
    groups = [picked(alike_ranks(timeline), MOST_ROWS) for _, timeline in panels]
    heights = [_panel_height(timeline, shown) for (_, timeline), shown in zip(panels, groups, strict=True)]
    waiting = sorted({wait.kind for _, timeline in panels for wait in timeline.waits}, key=list(WAITS).index)
    with style():
        figure, tops = stacked_figure(heights, header=24.0 + 15.0 * bool(waiting), between=24.0, footer=34.0)
        for index, ((name, timeline), shown, height, top) in enumerate(zip(panels, groups, heights, tops, strict=True)):
            axes = panel(figure, top, height, longest_s)
            _draw_panel(axes, timeline, shown, longest_s)
            words = exchange_words(timeline) + _ahead_words(timeline) + _shown_words(timeline, shown)
            heading = f"{name}: {format_seconds(timeline.period_s)}{words}"
            figure.text(LEFT_PT / WIDTH_PT, 1 - (top - 6) / (figure.get_figheight() * 72), heading, weight="bold")
            axes.tick_params(labelbottom=index == len(panels) - 1)
        axes.set_xlabel(f"time since the first span ({time_unit(longest_s)[0]})", labelpad=2)
        used = {span.category for _, timeline in panels for span in timeline.spans}
        show_keys(figure, [(color, category) for category, color in COLOR.items() if category in used])
        _wait_keys(figure, waiting)
        title = "Gantt chart of one step, simulated" + (" and measured" if measured else "")
        described = [_described(name, timeline, shown) for (name, timeline), shown in zip(panels, groups, strict=True)]
        return Drawing(figure, title, ". ".join(described) + ".")


def _ahead_words(timeline: Timeline) -> str:
    """What is drawn of a step while the one before has not ended, where a rank was ahead."""
    return f" (and {format_seconds(timeline.ahead_s)} beside the end of the step before)" if timeline.ahead_s else ""


def _shown_words(timeline: Timeline, shown: Sequence[Sequence[int]]) -> str:
    """How many ranks the rows stand for, where one stands for several."""
    counted = sum(map(len, shown))
    if len(shown) == timeline.rank_count:
        return ""
    if counted == timeline.rank_count:
        return f" ({counted} ranks; those that do the same share a row)"
    return f" ({len(shown)} rows of {len(alike_ranks(timeline))}; {timeline.rank_count} ranks)"


def _wait_keys(figure: Figure, kinds: Sequence[WaitKind]) -> None:
    """Colours of idle time, in a line of their own."""
    if kinds:
        height = figure.get_figheight() * 72
        figure.text(8.0 / WIDTH_PT, 1 - 29.5 / height, "idle, waits for:")
        show_keys(figure, [(WAIT_COLOR[kind], WAITS[kind]) for kind in kinds], down=15.0)


def _panel_height(timeline: Timeline, shown: Sequence[Sequence[int]]) -> float:
    return sum(ROW_PT[stream] for _, stream in _rows(timeline, shown)) + RANK_GAP_PT * max(0, len(shown) - 1)


def _rows(timeline: Timeline, shown: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], Stream]]:
    """Ranks and stream of each row: compute always, the others where anything moves."""
    used = {(span.rank, span.stream) for span in timeline.spans}
    played = [(ranks, timeline.played_by(ranks[0])) for ranks in shown]
    return [(ranks, stream) for ranks, rank in played for stream in STREAMS if stream == "compute" or (rank, stream) in used]


def _draw_panel(axes: Axes, timeline: Timeline, shown: Sequence[Sequence[int]], longest_s: float) -> None:
    scale = (WIDTH_PT - LEFT_PT - RIGHT_PT) / longest_s
    boxes: list[Box] = []
    strips: list[Box] = []
    y = 0.0
    for row, (ranks, stream) in enumerate(_rows(timeline, shown)):
        if stream == "compute" and row:
            y += RANK_GAP_PT
        height = ROW_PT[stream] - 1
        axes.add_patch(rectangle(0, timeline.makespan_s, y, y + height, INK, alpha=0.07))
        name = group_name(ranks) if stream == "compute" else stream
        beside(axes, name, y + height / 2, **({} if stream == "compute" else {"fontsize": LABEL_PT}))
        spans = timeline.spans_of(ranks[0], stream)
        boxes += _row_boxes(spans, timeline.start_s, scale, y, height)
        if stream == "compute":
            strips += _strip_boxes(timeline, ranks[0], scale, y, height)
        if stream in ("compute", "collective"):
            _label_spans(axes, spans, timeline.start_s, scale, y + height / 2)
        y += ROW_PT[stream]
    _fill(axes, boxes, COLOR.items(), scale)
    _fill(axes, strips, WAIT_COLOR.items(), scale)


def _fill(axes: Axes, boxes: Sequence[Box], palette: Iterable[tuple[str, str]], scale: float) -> None:
    for kind, color in palette:
        path = _compound_path([box for box in boxes if box.kind == kind], scale)
        if path is not None:
            axes.add_patch(PathPatch(path, facecolor=color, edgecolor="none", clip_on=False))


def _row_boxes(spans: Sequence[Span], zero_s: float, scale: float, top: float, height: float) -> list[Box]:
    """One box per span, overlapping ones in lanes; a row too dense for that becomes shares of narrow columns."""
    lanes = split_lanes(spans)
    narrow = sum(span.duration_s * scale < NARROW_PT for span in spans)
    if len(lanes) > MOST_LANES or narrow > MOST_NARROW:
        pieces = [_Piece(span.category, span.start_s - zero_s, span.end_s - zero_s) for span in spans]
        return list(_share_boxes(pieces, list(COLOR), scale, top, height))
    boxes = []
    for index, lane in enumerate(lanes):
        upper, lower = top + height * index / len(lanes), top + height * (index + 1) / len(lanes)
        for span in lane:
            width = span.duration_s * scale
            left = (span.start_s - zero_s) * scale
            boxes.append(Box(span.category, left, left + max(0.4, width - min(0.7, 0.15 * width)), upper, lower))
    return boxes


def _strip_boxes(timeline: Timeline, rank: int, scale: float, top: float, height: float) -> list[Box]:
    """A strip in every gap of the compute stream, in the colour of what is waited for; where there are too many, shares of columns."""
    own = timeline.played_by(rank)
    pieces = [_Piece(w.kind, w.start_s - timeline.start_s, w.end_s - timeline.start_s) for w in timeline.waits if w.rank == own]
    upper, lower = top + height * (1 - STRIP), top + height
    if sum((piece.end_s - piece.start_s) * scale < NARROW_PT for piece in pieces) > MOST_NARROW:
        return list(_share_boxes(pieces, list(WAITS), scale, upper, height * STRIP))
    return [Box(piece.kind, piece.start_s * scale, piece.end_s * scale, upper, lower) for piece in pieces]


def _share_boxes(pieces: Sequence[_Piece], order: Sequence[str], scale: float, top: float, height: float) -> Iterator[Box]:
    """Columns filled from below by each kind's share of their time; equal neighbours become one box."""
    shares: list[dict[str, float]] = []
    for piece in pieces:
        left, right = piece.start_s * scale / COLUMN_PT, piece.end_s * scale / COLUMN_PT
        shares += [{} for _ in range(int(right) + 1 - len(shares))]
        for column in range(int(left), int(right) + 1):
            covered = min(right, column + 1) - max(left, column)
            shares[column][piece.kind] = shares[column].get(piece.kind, 0.0) + covered
    stacks = [_stack(share, order) for share in shares]
    end = max(piece.end_s for piece in pieces) * scale
    first = 0
    for column in range(1, len(stacks) + 1):
        if column == len(stacks) or stacks[column] != stacks[first]:
            for kind, low, high in stacks[first]:
                yield Box(kind, first * COLUMN_PT, min(end, column * COLUMN_PT), top + height * (1 - high), top + height * (1 - low))
            first = column


def _stack(share: Mapping[str, float], order: Sequence[str]) -> tuple[tuple[str, float, float], ...]:
    """Shares on top of each other in the given order, in twentieths; a column in which anything happens is never empty."""
    total = max(1.0, sum(share.values()))
    parts = {kind: round(20 * share.get(kind, 0.0) / total) for kind in order}
    if share and not any(parts.values()):
        parts[max(share, key=share.__getitem__)] = 1
    if sum(parts.values()) > 20:
        parts[max(parts, key=parts.__getitem__)] -= sum(parts.values()) - 20
    levels = list(accumulate(parts.values(), initial=0))
    return tuple((kind, low / 20, high / 20) for kind, (low, high) in zip(parts, pairwise(levels), strict=True) if high > low)


def _compound_path(boxes: Sequence[Box], scale: float) -> Path | None:
    """All boxes of one colour as one path (thousands of single patches would make a heavy file)."""
    if not boxes:
        return None
    vertices, codes = [], []
    for box in boxes:
        left, right = box.left / scale, box.right / scale
        vertices += [(left, box.top), (right, box.top), (right, box.bottom), (left, box.bottom), (left, box.top)]
        codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(vertices, codes)


def _label_spans(axes: Axes, spans: Sequence[Span], zero_s: float, scale: float, middle: float) -> None:
    """The action inside each span that is wide enough for it."""
    for span in spans:
        if span.duration_s * scale > 0.68 * LABEL_PT * len(span.label) + 2:
            where = (span.start_s + span.end_s) / 2 - zero_s
            ink = "#ffffff" if span.category == "forward" else "#000000"
            axes.text(where, middle, span.label, fontsize=LABEL_PT, color=ink, ha="center", va="center_baseline")


def _described(name: str, timeline: Timeline, shown: Sequence[Sequence[int]]) -> str:
    busy = ", ".join(f"{group_name(ranks)} computes {percent(timeline.utilization(ranks[0]))}" for ranks in shown)
    return f"{name.capitalize()}: {format_seconds(timeline.step_s)} on {timeline.rank_count} ranks: {busy} of it"
