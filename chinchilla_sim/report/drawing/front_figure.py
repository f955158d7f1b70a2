"""The Pareto front as figures, whose points carry the numbers of the table's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Affine2D

from chinchilla_sim.planner.selection.front import FrontPlan
from chinchilla_sim.report.drawing.canvas import COLOR, INK, LETTER_PT, WIDTH_PT, Drawing, style
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import percent
from chinchilla_sim.report.tables.front import shown_front
from chinchilla_sim.units import format_joule, format_seconds, format_usd

HEIGHT_PT = 250.0
LEFT_PT, RIGHT_PT, TOP_PT, BOTTOM_PT = 92.0, 16.0, 12.0, 40.0
MUCH = 1.5
ROOM = 1.15
"""The axes go so much beyond the points, so that numbers beside them stay inside."""
NEAR_PT = 11.0
"""Numbers nearer to each other than this would cover each other."""
PLACES = ((0, 9), (0, -9), (9, 5), (-9, 5), (9, -6), (-9, -6), (0, 18), (0, -18))
PROPORTIONAL = 0.01
"""Axes whose ratio differs by less than this show the same picture twice."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What the step time is weighed against."""

    title: str
    value: Callable[[FrontPlan], float]
    words: Callable[[float], str]


PRICE = Axis("price of a step", lambda member: member.step_usd or 0.0, format_usd)
ENERGY = Axis("energy of a step", lambda member: member.step_joule or 0.0, format_joule)
RANKS = Axis("ranks in use", lambda member: float(len(member.candidate.plan.slots)), lambda value: f"{value:.0f}")
MEMORY = Axis("memory left free", lambda member: member.headroom, percent)


def draw_fronts(study: Study) -> list[Drawing]:
    """Step time against price, energy and ranks, as far as these are stated and differ; else against free memory."""
    members = shown_front(study)
    stated = [PRICE] * all(m.step_usd is not None for m in members) + [ENERGY] * all(m.step_joule is not None for m in members)
    axes: list[Axis] = []
    for axis in (*stated, RANKS):
        values = [axis.value(member) for member in members]
        if len(set(values)) > 1 and not any(_proportional(values, [one.value(member) for member in members]) for one in axes):
            axes.append(axis)
    return [draw_front(study, axis) for axis in axes or [MEMORY]]


def _proportional(values: Sequence[float], others: Sequence[float]) -> bool:
    ratios = [a / b if b else float("inf") for a, b in zip(values, others, strict=True)]
    return max(ratios) <= min(ratios) * (1 + PROPORTIONAL)


def draw_front(study: Study, axis: Axis) -> Drawing:
    """Step time against one of them; numbers are those of the table's rows."""
    members = shown_front(study)
    places = [(member.step_s, axis.value(member)) for member in members]
    with style():
        height = HEIGHT_PT + TOP_PT + BOTTOM_PT
        figure = Figure(figsize=(WIDTH_PT / 72, height / 72))
        figure.patch.set_visible(False)
        # Beside the title of the axis stand the words of its values, of which some are long.
        left_pt = max(LEFT_PT, 24 + LETTER_PT * max(len(axis.words(up)) for _, up in places))
        box = (left_pt / WIDTH_PT, BOTTOM_PT / height, (WIDTH_PT - left_pt - RIGHT_PT) / WIDTH_PT, HEIGHT_PT / height)
        axes = figure.add_axes(box)
        axes.patch.set_visible(False)
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(INK)
        for one, values, words in ((axes.xaxis, [x for x, _ in places], format_seconds), (axes.yaxis, [y for _, y in places], axis.words)):
            _scale(axes, one, values, words)
        axes.grid(color=INK, alpha=0.15, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("time of a step", labelpad=4)
        axes.set_ylabel(axis.title, labelpad=4)
        chosen = [member.candidate is study.search.best for member in members]
        _draw_points(figure, axes, places, chosen)
        told = []
        for number, (member, (x, y)) in enumerate(zip(members, places, strict=True), 1):
            text = f"{number}: {member.candidate.title}, {format_seconds(x)}, {axis.words(y)}, {percent(member.headroom)} free"
            told.append(text + (" (chosen)" if chosen[number - 1] else ""))
        return Drawing(figure, f"Trade-offs: time of a step against {axis.title}", "; ".join(told) + ".")


def _draw_points(figure: Figure, axes: Any, places: Sequence[tuple[float, float]], chosen: Sequence[bool]) -> None:
    """Points with their numbers beside them, each at the first place where it covers no other number or point."""
    points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    dots = [tuple(points.inverted().transform(axes.transData.transform(place)).tolist()) for place in places]
    taken = list(dots)
    for number, (place, (left, up), best) in enumerate(zip(places, dots, chosen, strict=True), 1):
        # Markers of matplotlib are references into <defs>, which finish() takes away.
        color = COLOR["forward" if best else "backward"]
        figure.add_artist(Circle((left, up), 4.5 if best else 3.0, facecolor=color, edgecolor="none", transform=points))
        aside = next((a for a in PLACES if _is_free((left + a[0], up + a[1]), taken, (left, up))), PLACES[0])
        taken.append((left + aside[0], up + aside[1]))
        style_of = {"ha": "center", "va": "center", "weight": "bold" if best else "normal"}
        axes.annotate(str(number), place, aside, textcoords="offset points", **style_of)


def _is_free(spot: tuple[float, float], taken: Sequence[tuple[float, ...]], own: tuple[float, float]) -> bool:
    return all(abs(spot[0] - x) >= NEAR_PT or abs(spot[1] - y) >= NEAR_PT - 2 for x, y in taken if (x, y) != own)


def _scale(axes: Any, axis: Any, values: Sequence[float], words: Callable[[float], str]) -> None:
    """From a little below the least value to a little above the largest: logarithmic where they span much, from 0 where one is 0."""
    low, high = min(values), max(values)
    horizontal = axis is axes.xaxis
    scale, limit = (axes.set_xscale, axes.set_xlim) if horizontal else (axes.set_yscale, axes.set_ylim)
    limit(low / ROOM, high * ROOM or 1.0)
    if low > 0 and high > MUCH * low:
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high > 5 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    if words is RANKS.words:
        counts = sorted({round(value) for value in values})
        axis.set_major_locator(FixedLocator(counts) if len(counts) <= 8 else MaxNLocator(integer=True))
    axis.set_major_formatter(lambda value, _: words(value))
    axes.tick_params(length=0, pad=3, which="both")
