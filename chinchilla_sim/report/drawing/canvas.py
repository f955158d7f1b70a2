"""What all figures share: colours, text, panels, and SVG that is finished for a page.

They are drawn for a page of either brightness: no background, text in `currentColor`, shapes in mid tones of Okabe & Ito's
palette, which people with any colour vision can tell apart. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from chinchilla_sim.timeline import Category

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOR: dict[Category, str] = {
    "input": "#7f7f7f",
    "forward": "#0072b2",
    "backward": "#e69f00",
    "codec": "#cc79a7",
    "optimizer": "#009e73",
    "transfer": "#56b4e9",
    "collective": "#d55e00",
}
GREY = "#8a8f98"
INK = "#010203"  # stands for currentColor until the SVG is finished
WIDTH_PT, NARROW_PT = 560.0, 320.0
LEFT_PT, RIGHT_PT = 78.0, 8.0
LETTER_PT, KEY_LETTER_PT = 5.2, 4.8
"""About the width of a letter of the default size: at most, and in short words."""
PNG_DPI = 192
SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True, eq=False)
class Drawing:
    """A finished figure, what it shows in a few words, and what it says in sentences."""

    figure: Figure
    title: str
    description: str

    def svg(self) -> str:
        """A part of a page."""
        with style():
            return finish(self.figure, self.title, self.description)

    def png(self) -> bytes:
        """A picture on white."""
        buffer = io.BytesIO()
        with style():
            self.figure.patch.set_visible(True)
            self.figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
            self.figure.patch.set_visible(False)
        return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults, whatever the user's own are, with our few changes."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "chinchilla_sim",
                "font.family": "sans-serif",
                "font.sans-serif": ["DejaVu Sans"],
                "font.size": 8.5,
                "text.parse_math": False,
                "path.simplify": False,
                **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
            }
        )
        yield


def finish(figure: Figure, title: str, description: str) -> str:
    """Stable, accessible SVG that can stand inside a page: no ids, no styles of its own, numbers to a hundredth of a point."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}defs" or child.tag.endswith("metadata"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        for name in ("id", "clip-path"):
            element.attrib.pop(name, None)
        for name in {"d", "x", "y", "transform", "width", "height", "viewBox"}.intersection(element.keys()):
            element.set(name, re.sub(r"-?\d+\.\d{3,}", _hundredth, element.attrib[name]))
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag)
        element.text = text
        root.insert(index, element)
    root.attrib = {
        "xmlns": SVG.strip("{}"),
        "viewBox": root.attrib["viewBox"],
        # The page shows it on a telephone without scrolling, and elsewhere with letters of the same size as the others.
        **({"class": "narrow"} if _width_pt(figure) < WIDTH_PT else {}),
        "role": "img",
        "aria-label": title,
        "stroke-linejoin": "round",
    }
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui")


def _hundredth(number: re.Match[str]) -> str:
    return f"{round(float(number[0]), 2) + 0.0:g}"  # + 0.0 turns -0.0 into 0.0


def _width_pt(figure: Figure) -> float:
    return float(figure.get_figwidth()) * 72


def stacked_figure(
    heights: Sequence[float], header: float, between: float, footer: float, width: float = WIDTH_PT
) -> tuple[Figure, list[float]]:
    """A figure without background, and the top of each panel in points from its upper edge."""
    tops, y = [], header
    for height in heights:
        y += between
        tops.append(y)
        y += height
    figure = Figure(figsize=(width / 72, (y + footer) / 72))
    figure.patch.set_visible(False)
    return figure, tops


def panel(figure: Figure, top: float, height: float, longest: float, left: float = LEFT_PT, right: float = RIGHT_PT) -> Axes:
    """Axes whose y runs down in points and whose x runs from 0 to `longest`; ticks are in the unit of `time_unit`."""
    total, width = figure.get_figheight() * 72, _width_pt(figure)
    axes = figure.add_axes((left / width, 1 - (top + height) / total, (width - left - right) / width, height / total))
    axes.patch.set_visible(False)
    axes.set_xlim(0, longest)
    axes.set_ylim(height, 0)
    axes.yaxis.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _, second = time_unit(longest)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / second:g}")
    axes.tick_params(length=0, pad=3)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.5)
    axes.set_axisbelow(True)
    return axes


def time_unit(longest_s: float) -> tuple[str, float]:
    """Unit of a time axis and how many seconds it has."""
    return next(((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if longest_s >= size), ("ns", 1e-9))


def rectangle(left: float, right: float, top: float, bottom: float, color: str, alpha: float = 1.0) -> Rectangle:
    """A filled rectangle by its edges."""
    return Rectangle((left, top), right - left, bottom - top, facecolor=color, edgecolor="none", alpha=alpha, clip_on=False)


def beside(axes: Axes, text: str, y: float, fontsize: float = 8.5) -> None:
    """Text to the left of a row."""
    axes.annotate(
        text, (0, y), (-8, 0), ("axes fraction", "data"), textcoords="offset points", ha="right", va="center_baseline", fontsize=fontsize
    )


def show_keys(figure: Figure, entries: Sequence[tuple[str, str]], down: float = 0.0, left: float = LEFT_PT) -> None:
    """A line of colour keys at the top, or so many points below it."""
    height, whole = figure.get_figheight() * 72, _width_pt(figure)
    x = left
    for color, text in entries:
        width = 1.5 if color == INK else 9.0
        patch = Rectangle((x / whole, 1 - (16 + down) / height), width / whole, 9 / height, facecolor=color, edgecolor="none")
        figure.add_artist(patch)
        x += width + 4
        figure.text(x / whole, 1 - (14.5 + down) / height, text)
        x += KEY_LETTER_PT * len(text) + 14
