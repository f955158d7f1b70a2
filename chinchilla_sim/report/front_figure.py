"""The Pareto front as a figure, whose points carry the numbers of the table's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Affine2D

from chinchilla_sim.planner.front import FrontPlan
from chinchilla_sim.report.canvas import COLOR, INK, WIDTH_PT, finish, style
from chinchilla_sim.report.front import shown_front
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import percent
from chinchilla_sim.units import format_joule, format_seconds, format_usd

HEIGHT_PT = 250.0
LEFT_PT, RIGHT_PT, TOP_PT, BOTTOM_PT = 92.0, 16.0, 12.0, 40.0
MUCH = 1.5
ROOM = 1.15
"""The axes go so much beyond the points, so that numbers beside them stay inside."""


def front_svg(study: Study) -> str:
    """Step time against price (or energy, or free memory); numbers are those of the table's rows."""
    members, axis = shown_front(study), _second_axis(study.search.front)
    places = [(member.step_s, axis.value(member)) for member in members]
    with style():
        height = HEIGHT_PT + TOP_PT + BOTTOM_PT
        figure = Figure(figsize=(WIDTH_PT / 72, height / 72))
        figure.patch.set_visible(False)
        box = (LEFT_PT / WIDTH_PT, BOTTOM_PT / height, (WIDTH_PT - LEFT_PT - RIGHT_PT) / WIDTH_PT, HEIGHT_PT / height)
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
        points, told = Affine2D().scale(1 / 72) + figure.dpi_scale_trans, []
        for number, (member, (x, y)) in enumerate(zip(members, places, strict=True), 1):
            chosen = member.candidate is study.search.best
            # Markers of matplotlib are references into <defs>, which finish() takes away.
            left, up = points.inverted().transform(axes.transData.transform((x, y))).tolist()
            color = COLOR["forward" if chosen else "backward"]
            figure.add_artist(Circle((left, up), 4.5 if chosen else 3.0, facecolor=color, edgecolor="none", transform=points))
            side = 1 if number % 2 else -1
            axes.annotate(
                str(number),
                (x, y),
                (0, 9 * side),
                textcoords="offset points",
                ha="center",
                va="center",
                weight="bold" if chosen else "normal",
            )
            text = f"{number}: {member.candidate.title}, {format_seconds(x)}, {axis.words(y)}, {percent(member.headroom)} free"
            told.append(text + (" (chosen)" if chosen else ""))
        return finish(figure, f"Trade-offs: time of a step against {axis.title}", "; ".join(told) + ".")


@dataclass(frozen=True, slots=True)
class _Axis:
    title: str
    value: Callable[[FrontPlan], float]
    words: Callable[[float], str]


def _second_axis(front: Sequence[FrontPlan]) -> _Axis:
    """Price where it is stated, else energy, else memory."""
    if all(member.step_usd is not None for member in front):
        return _Axis("price of a step", lambda member: member.step_usd or 0.0, format_usd)
    if all(member.step_joule is not None for member in front):
        return _Axis("energy of a step", lambda member: member.step_joule or 0.0, format_joule)
    return _Axis("memory left free", lambda member: member.headroom, percent)


def _scale(axes: Any, axis: Any, values: Sequence[float], words: Callable[[float], str]) -> None:
    """From a little below the least value to a little above the largest: logarithmic where they span much, from 0 where one is 0."""
    low, high = min(values), max(values)
    horizontal = axis is axes.xaxis
    scale, limit = (axes.set_xscale, axes.set_xlim) if horizontal else (axes.set_yscale, axes.set_ylim)
    limit(low / ROOM, high * ROOM or 1.0)
    if low > 0 and high > MUCH * low:
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high > 5 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: words(value))
    axes.tick_params(length=0, pad=3, which="both")
