"""What all figures share: colours, text, and SVG that is finished for a page.

They are drawn for a page of either brightness: no background, text in `currentColor`, shapes in mid tones of Okabe & Ito's
palette, which people with any colour vision can tell apart. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from chinchilla_sim.timeline import Category

COLOR: dict[Category, str] = {
    "input": "#7f7f7f",
    "forward": "#0072b2",
    "backward": "#e69f00",
    "codec": "#cc79a7",
    "optimizer": "#009e73",
    "transfer": "#56b4e9",
    "collective": "#d55e00",
}
INK = "#010203"  # stands for currentColor until the SVG is finished
WIDTH_PT = 560.0
SVG = "{http://www.w3.org/2000/svg}"


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
        "role": "img",
        "aria-label": title,
        "stroke-linejoin": "round",
    }
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui")


def _hundredth(number: re.Match[str]) -> str:
    return f"{round(float(number[0]), 2) + 0.0:g}"  # + 0.0 turns -0.0 into 0.0
