"""Figures as SVG text: the step as a Gantt chart, memory against capacity, step time of the alternatives.

How they come to look alike on any page is in `canvas.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from chinchilla_sim.planner.candidate import SearchResult
from chinchilla_sim.report.canvas import COLOR, INK, WIDTH_PT, finish, style
from chinchilla_sim.report.plans import listed_candidates
from chinchilla_sim.report.sketch import exchange_words
from chinchilla_sim.report.table import percent
from chinchilla_sim.report.trace import split_lanes
from chinchilla_sim.report.verdict import versus
from chinchilla_sim.timeline import STREAMS, Category, Span, Stream, Timeline
from chinchilla_sim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT_PT, RIGHT_PT = 60.0, 8.0
ROW_PT: dict[Stream, float] = {"compute": 18.0, "send": 9.0, "receive": 9.0, "collective": 9.0}
RANK_GAP_PT = 8.0
COLUMN_PT = 3.0  # a row with too many narrow spans is drawn as shares of columns this wide
NARROW_PT, MOST_NARROW, MOST_LANES = 2.0, 150, 4
MOST_RANKS, MOST_BARS = 16, 32
LABEL_PT = 7.0


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of one category, in points from the panel's left and top edge."""

    category: Category
    left: float
    right: float
    top: float
    bottom: float


def gantt_svg(simulated: Timeline, measured: Timeline | None = None) -> str:
    """Every rank's streams over one step; the measured step stands beneath the simulated one on the same time scale."""
    panels = [("simulated step", simulated)] + ([("measured step nearest the median", measured)] if measured else [])
    longest_s = max(timeline.makespan_s for _, timeline in panels) or 1.0
    heights = [_panel_height(timeline) for _, timeline in panels]
    with style():
        figure, tops = _stacked_figure(heights, header=24.0, between=24.0, footer=34.0)
        for index, ((name, timeline), height, top) in enumerate(zip(panels, heights, tops, strict=True)):
            axes = _panel(figure, top, height, longest_s)
            _draw_panel(axes, timeline, longest_s)
            shown = "" if timeline.rank_count <= MOST_RANKS else f" (the first {MOST_RANKS} of {timeline.rank_count} ranks)"
            heading = f"{name}: {format_seconds(timeline.makespan_s)}{exchange_words(timeline)}{shown}"
            figure.text(LEFT_PT / WIDTH_PT, 1 - (top - 6) / (figure.get_figheight() * 72), heading, weight="bold")
            axes.tick_params(labelbottom=index == len(panels) - 1)
        axes.set_xlabel(f"time since the first span ({_time_unit(longest_s)[0]})", labelpad=2)
        _legend(figure, {span.category for _, timeline in panels for span in timeline.spans})
        title = "Gantt chart of one step, simulated" + (" and measured" if measured else "")
        return finish(figure, title, ". ".join(_described(name, timeline) for name, timeline in panels) + ".")


def memory_svg(timeline: Timeline, capacities: Sequence[float]) -> str:
    """Peak memory of each rank as a bar, split into what it holds all the time and what comes on top, against its capacity."""
    peaks = {rank: timeline.peak_memory_bytes(rank) for rank in range(timeline.rank_count)}
    fullest = sorted(peaks, key=lambda rank: (-peaks[rank] / capacities[rank], rank))[:MOST_BARS]
    shown = sorted(fullest)
    # A capacity far beyond the bars would leave no room to read them: it is then told in words alone.
    near = max(peaks[rank] / capacities[rank] for rank in shown) >= 0.05
    limit = max(1.0, *(max(peaks[rank], capacities[rank] * near) for rank in shown))
    with style():
        figure, (top,) = _stacked_figure([15.0 * len(shown)], header=26.0, between=0.0, footer=4.0)
        axes = _panel(figure, top, 15.0 * len(shown), limit, right=210.0)
        axes.xaxis.set_visible(False)
        for row, rank in enumerate(shown):
            held = min((sample.held_bytes for sample in timeline.memory if sample.rank == rank), default=0.0)
            _bar(axes, 0, held, row, COLOR["forward"])
            _bar(axes, held, peaks[rank], row, COLOR["backward"])
            if near:
                axes.plot([capacities[rank]] * 2, [15 * row + 1, 15 * row + 13], color=INK, linewidth=1.5, clip_on=False)
            share = f"{format_bytes(peaks[rank])} of {format_bytes(capacities[rank])} ({percent(peaks[rank] / capacities[rank])})"
            _beside(axes, f"rank {rank}", 15 * row + 7.5)
            axes.annotate(share, (1, 15 * row + 7.5), (8, 0), ("axes fraction", "data"), textcoords="offset points", va="center_baseline")
        keys = [(COLOR["forward"], "held all the time"), (COLOR["backward"], "on top at the peak"), (INK, "capacity")]
        _keys(figure, keys if near else keys[:2])
        some = "" if len(shown) == len(peaks) else f"The {len(shown)} fullest of {len(peaks)} ranks. "
        text = "; ".join(f"rank {rank}: {format_bytes(peaks[rank])} of {format_bytes(capacities[rank])}" for rank in shown)
        return finish(figure, "Peak memory of each rank against its capacity", f"{some}{text}.")


def alternatives_svg(search: SearchResult) -> str:
    """Step time of the chosen plan, of the best plans of other splits, and of one rank alone."""
    best, listed = search.best, listed_candidates(search)[:MOST_BARS]
    longest_s = max(candidate.step_s for _, candidate in listed) or 1.0
    with style():
        figure, (top,) = _stacked_figure([30.0 * len(listed)], header=4.0, between=0.0, footer=4.0)
        axes = _panel(figure, top, 30.0 * len(listed), longest_s, left=2.0, right=130.0)
        axes.xaxis.set_visible(False)
        told = []
        for row, (name, candidate) in enumerate(listed):
            note = "chosen" if candidate is best else versus(candidate.step_s, best.step_s, "step_time")
            color = COLOR["forward"] if candidate is best else "#8a8f98"
            axes.add_patch(_rectangle(0, candidate.step_s, 30 * row + 13, 30 * row + 24, color))
            axes.text(0, 30 * row + 10, name, weight="bold" if candidate is best else "normal")
            value = f"{format_seconds(candidate.step_s)}, {note}"
            axes.annotate(value, (candidate.step_s, 30 * row + 18.5), (5, 0), textcoords="offset points", va="center")
            told.append(f"{name}: {value}")
        return finish(figure, "Step time of the alternatives", "; ".join(told) + ".")


def _panel_height(timeline: Timeline) -> float:
    rows = _rows(timeline)
    return sum(ROW_PT[stream] for _, stream in rows) + RANK_GAP_PT * max(0, len({rank for rank, _ in rows}) - 1)


def _rows(timeline: Timeline) -> list[tuple[int, Stream]]:
    """Rank and stream of each row: compute always, the others where anything moves."""
    used = {(span.rank, span.stream) for span in timeline.spans}
    ranks = range(min(timeline.rank_count, MOST_RANKS))
    return [(rank, stream) for rank in ranks for stream in STREAMS if stream == "compute" or (rank, stream) in used]


def _draw_panel(axes: Axes, timeline: Timeline, longest_s: float) -> None:
    scale = (WIDTH_PT - LEFT_PT - RIGHT_PT) / longest_s
    boxes: list[Box] = []
    y = 0.0
    for rank, stream in _rows(timeline):
        if stream == "compute" and rank:
            y += RANK_GAP_PT
        height = ROW_PT[stream] - 1
        axes.add_patch(_rectangle(0, timeline.makespan_s, y, y + height, INK, alpha=0.07))
        name = f"rank {rank}" if stream == "compute" else stream
        _beside(axes, name, y + height / 2, **({} if stream == "compute" else {"fontsize": LABEL_PT}))
        spans = timeline.spans_of(rank, stream)
        boxes += _row_boxes(spans, timeline.start_s, scale, y, height)
        if stream in ("compute", "collective"):
            _label_spans(axes, spans, timeline.start_s, scale, y + height / 2)
        y += ROW_PT[stream]
    for category, color in COLOR.items():
        path = _compound_path([box for box in boxes if box.category == category], scale)
        if path is not None:
            axes.add_patch(PathPatch(path, facecolor=color, edgecolor="none", clip_on=False))


def _row_boxes(spans: Sequence[Span], zero_s: float, scale: float, top: float, height: float) -> list[Box]:
    """One box per span, overlapping ones in lanes; a row too dense for that becomes shares of narrow columns."""
    lanes = split_lanes(spans)
    narrow = sum(span.duration_s * scale < NARROW_PT for span in spans)
    if len(lanes) > MOST_LANES or narrow > MOST_NARROW:
        return list(_share_boxes(spans, zero_s, scale, top, height))
    boxes = []
    for index, lane in enumerate(lanes):
        upper, lower = top + height * index / len(lanes), top + height * (index + 1) / len(lanes)
        for span in lane:
            width = span.duration_s * scale
            left = (span.start_s - zero_s) * scale
            boxes.append(Box(span.category, left, left + max(0.4, width - min(0.7, 0.15 * width)), upper, lower))
    return boxes


def _share_boxes(spans: Sequence[Span], zero_s: float, scale: float, top: float, height: float) -> Iterator[Box]:
    """Columns filled from below by each category's share of their time; equal neighbours become one box."""
    shares: list[dict[Category, float]] = []
    for span in spans:
        left, right = (span.start_s - zero_s) * scale / COLUMN_PT, (span.end_s - zero_s) * scale / COLUMN_PT
        shares += [{} for _ in range(int(right) + 1 - len(shares))]
        for column in range(int(left), int(right) + 1):
            covered = min(right, column + 1) - max(left, column)
            shares[column][span.category] = shares[column].get(span.category, 0.0) + covered
    stacks = [_stack(share) for share in shares]
    end = max(span.end_s - zero_s for span in spans) * scale
    first = 0
    for column in range(1, len(stacks) + 1):
        if column == len(stacks) or stacks[column] != stacks[first]:
            for category, low, high in stacks[first]:
                yield Box(category, first * COLUMN_PT, min(end, column * COLUMN_PT), top + height * (1 - high), top + height * (1 - low))
            first = column


def _stack(share: dict[Category, float]) -> tuple[tuple[Category, float, float], ...]:
    """Shares on top of each other in the palette's order, in twentieths; a column in which anything happens is never empty."""
    total = max(1.0, sum(share.values()))
    parts = {category: round(20 * share.get(category, 0.0) / total) for category in COLOR}
    if share and not any(parts.values()):
        parts[max(share, key=share.__getitem__)] = 1
    if sum(parts.values()) > 20:
        parts[max(parts, key=parts.__getitem__)] -= sum(parts.values()) - 20
    levels = list(accumulate(parts.values(), initial=0))
    return tuple((category, low / 20, high / 20) for category, (low, high) in zip(parts, pairwise(levels), strict=True) if high > low)


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


def _described(name: str, timeline: Timeline) -> str:
    busy = ", ".join(f"rank {rank} computes {percent(timeline.utilization(rank))}" for rank in range(min(timeline.rank_count, MOST_RANKS)))
    return f"{name.capitalize()}: {format_seconds(timeline.step_s)} on {timeline.rank_count} ranks: {busy} of it"


def _time_unit(longest_s: float) -> tuple[str, float]:
    """Unit of the time axis and how many seconds it has."""
    return next(((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if longest_s >= size), ("ns", 1e-9))


def _stacked_figure(heights: Sequence[float], header: float, between: float, footer: float) -> tuple[Figure, list[float]]:
    """A figure without background, and the top of each panel in points from its upper edge."""
    tops, y = [], header
    for height in heights:
        y += between
        tops.append(y)
        y += height
    figure = Figure(figsize=(WIDTH_PT / 72, (y + footer) / 72))
    figure.patch.set_visible(False)
    return figure, tops


def _panel(figure: Figure, top: float, height: float, longest: float, left: float = LEFT_PT, right: float = RIGHT_PT) -> Axes:
    """Axes whose y runs down in points and whose x runs from 0 to `longest`; ticks are in the unit of `_time_unit`."""
    total = figure.get_figheight() * 72
    axes = figure.add_axes((left / WIDTH_PT, 1 - (top + height) / total, (WIDTH_PT - left - right) / WIDTH_PT, height / total))
    axes.patch.set_visible(False)
    axes.set_xlim(0, longest)
    axes.set_ylim(height, 0)
    axes.yaxis.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _, second = _time_unit(longest)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / second:g}")
    axes.tick_params(length=0, pad=3)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def _rectangle(left: float, right: float, top: float, bottom: float, color: str, alpha: float = 1.0) -> Rectangle:
    return Rectangle((left, top), right - left, bottom - top, facecolor=color, edgecolor="none", alpha=alpha, clip_on=False)


def _bar(axes: Axes, left: float, right: float, row: int, color: str) -> None:
    axes.add_patch(_rectangle(left, right, 15 * row + 2, 15 * row + 12, color))


def _beside(axes: Axes, text: str, y: float, fontsize: float = 8.5) -> None:
    """Text to the left of a row."""
    axes.annotate(
        text, (0, y), (-8, 0), ("axes fraction", "data"), textcoords="offset points", ha="right", va="center_baseline", fontsize=fontsize
    )


def _legend(figure: Figure, used: set[Category]) -> None:
    _keys(figure, [(color, category) for category, color in COLOR.items() if category in used])


def _keys(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    """A line of colour keys at the top."""
    height = figure.get_figheight() * 72
    x = LEFT_PT
    for color, text in entries:
        width = 1.5 if color == INK else 9.0
        figure.add_artist(Rectangle((x / WIDTH_PT, 1 - 16 / height), width / WIDTH_PT, 9 / height, facecolor=color, edgecolor="none"))
        x += width + 4
        figure.text(x / WIDTH_PT, 1 - 14.5 / height, text)
        x += 5.2 * len(text) + 14
