"""The plan drawn over the cluster: nodes under their switches, what their devices run, and who talks to whom.

One row per vertex (equal ones share it, `cluster_tree.py`): its name, its devices as cells in the colour of their stage, what passes its
link in a step. Arcs on the right join rows whose devices talk to each other, the thicker the more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.patches import PathPatch
from matplotlib.path import Path

from chinchilla_sim.report.drawing.canvas import COLOR, GREY, INK, WIDTH_PT, Drawing, panel, rectangle, stacked_figure, style
from chinchilla_sim.report.drawing.cluster_tree import Branch, ClusterTree
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import percent, shorten
from chinchilla_sim.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_PT, INDENT_PT, CELL_PT = 34.0, 14.0, 13.0
CELLS_PT, WORDS_PT, ARCS_PT = 128.0, 244.0, 384.0
"""From the left: where cells, words about links, and arcs begin."""
MOST_CELLS, MOST_ARCS = 8, 12
THICKEST_PT, THINNEST_PT = 7.0, 0.8
REACH_PT, SAMPLES = 92.0, 48
SMALL, BOLD_PT = 7.0, 6.6
"""Size of small letters; width of a bold one of the default size, at most."""
STAGE_COLOR = ("#56b4e9", "#e69f00", "#2fb58b", "#cc79a7", "#d9cf3c", "#e08a4f", "#8fb8de", "#b3b3b3")
"""Black can be read on all of them; the ninth stage has the first colour again."""


@dataclass(frozen=True, slots=True)
class Arc:
    """What two rows send each other in a step."""

    upper: int
    lower: int
    down_bytes: float
    up_bytes: float

    @property
    def bytes(self) -> float:
        """Both ways."""
        return self.down_bytes + self.up_bytes


def draw_cluster(study: Study) -> Drawing:
    """Nodes, links and messages of the chosen plan."""
    tree = ClusterTree(study.cluster, study.plan, study.traffic, study.search.best.step_s)
    rows = tree.branches().rows()
    arcs, own_bytes = _arcs(tree, rows)
    with style():
        figure, (top,) = stacked_figure([ROW_PT * len(rows)], header=22.0, between=0.0, footer=6.0)
        axes = panel(figure, top, ROW_PT * len(rows), WIDTH_PT, left=0.0, right=0.0)
        axes.xaxis.set_visible(False)
        for x, words in (
            (0.0, "network and nodes"),
            (CELLS_PT, "devices and stages"),
            (WORDS_PT, "its link, in a step"),
            (ARCS_PT, "who talks to whom"),
        ):
            axes.text(x, -8, words, fontsize=SMALL, alpha=0.75)
        _draw_trunk(axes, rows)
        for at, branch in enumerate(rows):
            _draw_row(axes, tree, branch, at, own_bytes[at])
        _draw_arcs(axes, arcs)
        told = [_told(tree, branch, own_bytes[at]) for at, branch in enumerate(rows)]
        told += [f"{_name(rows[arc.upper])} and {_name(rows[arc.lower])} send each other {format_bytes(arc.bytes)}" for arc in arcs]
        return Drawing(figure, "The plan over the cluster", ". ".join(told) + ".")


def _arcs(tree: ClusterTree, rows: Sequence[Branch]) -> tuple[list[Arc], list[float]]:
    """Bytes between rows, the largest first, and between devices of one row."""
    row_of = {slot: at for at, branch in enumerate(rows) for slots in branch.slots for slot in slots}
    sums: dict[tuple[int, int], float] = {}
    for (source, target), size in tree.between.items():
        ends = row_of[source], row_of[target]
        sums[ends] = sums.get(ends, 0.0) + size
    own = [sums.get((at, at), 0.0) for at in range(len(rows))]
    pairs = {(min(ends), max(ends)) for ends in sums if ends[0] != ends[1]}
    arcs = [Arc(a, b, sums.get((a, b), 0.0), sums.get((b, a), 0.0)) for a, b in pairs]
    return sorted(arcs, key=lambda arc: (-arc.bytes, arc.upper, arc.lower))[:MOST_ARCS], own


def _draw_trunk(axes: Axes, rows: Sequence[Branch]) -> None:
    """The lines from every row to the one above it in the tree, the thicker the more of the step their link is busy."""
    last: dict[int, int] = {}
    for at, branch in enumerate(rows):
        last[branch.depth] = at
        if not branch.depth:
            continue
        parent, x = last[branch.depth - 1], INDENT_PT * (branch.depth - 1) + 5
        y = ROW_PT * at + 11
        width = THINNEST_PT + (THICKEST_PT - THINNEST_PT) * min(1.0, branch.load.busy_share)
        start = ROW_PT * parent + (29 if _count_words(rows[parent]) else 18)
        axes.plot([x, x], [start, y], color=INK, linewidth=THINNEST_PT, alpha=0.4, clip_on=False)
        color = COLOR["collective"] if branch.load.busy_share >= 0.5 else COLOR["forward"] if branch.load.busy_share else GREY
        axes.plot([x, x + INDENT_PT - 4], [y, y], color=color, linewidth=width, solid_capstyle="butt", clip_on=False)


def _draw_row(axes: Axes, tree: ClusterTree, branch: Branch, at: int, own_bytes: float) -> None:
    """Name, devices, and what passes the link."""
    x, y = INDENT_PT * branch.depth + 2, ROW_PT * at
    room = int((CELLS_PT - x - 6) / BOLD_PT) if branch.slots[0] else 60
    axes.text(x, y + 11, _cut(_name(branch), room), weight="bold", va="center_baseline")
    number = _count_words(branch)
    axes.text(x, y + 23, number, fontsize=SMALL, va="center_baseline", alpha=0.8)
    _draw_cells(axes, tree, branch, y)
    for line, words in enumerate(_link_words(branch, own_bytes)):
        axes.text(WORDS_PT, y + 9 + 10 * line, words, fontsize=SMALL, va="center_baseline")


def _draw_cells(axes: Axes, tree: ClusterTree, branch: Branch, y: float) -> None:
    """One cell per device of a node; what differs between the nodes of a row has no number."""
    first = branch.slots[0]
    for place, slot in enumerate(first[:MOST_CELLS]):
        left = CELLS_PT + CELL_PT * place
        stages = tree.stages.get(slot)
        if stages is None:
            axes.add_patch(rectangle(left, left + CELL_PT - 1.5, y + 4, y + 15, INK, alpha=0.1))
            continue
        same = all(tree.stages.get(slots[place]) == stages for slots in branch.slots)
        axes.add_patch(rectangle(left, left + CELL_PT - 1.5, y + 4, y + 15, STAGE_COLOR[stages[0] % len(STAGE_COLOR)] if same else GREY))
        if same and len(stages) == 1:
            axes.text(
                left + CELL_PT / 2 - 0.75, y + 9.5, str(stages[0]), fontsize=SMALL, color="#000000", ha="center", va="center_baseline"
            )
    words = _stage_words(tree, branch)
    if first:
        axes.text(CELLS_PT, y + 23, _cut(words, 27), fontsize=SMALL, va="center_baseline", alpha=0.8)


def _stage_words(tree: ClusterTree, branch: Branch) -> str:
    """What the devices of a row run."""
    runs = [tree.stages.get(slot) for slots in branch.slots for slot in slots]
    stages = sorted({stage for held in runs if held for stage in held})
    if not stages:
        return "idle" if runs else ""
    words = f"stage {stages[0]}" if len(stages) == 1 else f"stages {shorten([str(stage) for stage in stages])}"
    idle = sum(held is None for held in runs)
    more = len(branch.slots[0]) - MOST_CELLS
    words += f"; {idle} idle" if idle else ""
    return words + (f"; {more} more devices" if more > 0 else "")


def _link_words(branch: Branch, own_bytes: float) -> list[str]:
    load, lines = branch.load, list[str]()
    if branch.depth:
        passing = f"out {format_bytes(load.out_bytes)}, in {format_bytes(load.in_bytes)}"
        used = load.out_bytes or load.in_bytes
        lines += [passing, f"busy {percent(load.busy_share)} of the step"] if used else ["nothing passes it"]
    if own_bytes:
        lines.append(
            f"inside {format_bytes(own_bytes)}" if len(branch.vertices) == 1 else f"inside and among all: {format_bytes(own_bytes)}"
        )
    return lines


def _name(branch: Branch) -> str:
    return branch.vertices[0].removeprefix("network/")


def _count_words(branch: Branch) -> str:
    """How many vertices a row stands for, and how many devices each has."""
    devices = len(branch.slots[0])
    each = f"{devices} devices" if devices > 1 else "1 device" if devices else ""
    if len(branch.vertices) == 1:
        return each
    return f"and {len(branch.vertices) - 1} like it{', ' + each if each else ''}"


def _draw_arcs(axes: Axes, arcs: Sequence[Arc]) -> None:
    """Curves to the right, wider ones for rows that are farther apart; a label where it covers neither another one nor a curve."""
    most = max((arc.bytes for arc in arcs), default=1.0)
    spans = sorted({arc.lower - arc.upper for arc in arcs})
    curves = {arc: _curve(arc, (spans.index(arc.lower - arc.upper) + 1) / len(spans)) for arc in arcs}
    widths = {arc: THINNEST_PT + (THICKEST_PT - THINNEST_PT) * arc.bytes / most for arc in arcs}
    taken = [(x, y, widths[arc] / 2) for arc, points in curves.items() for x, y in _sampled(points)]
    for arc, points in curves.items():
        path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=COLOR["forward"], linewidth=widths[arc], alpha=0.75, clip_on=False))
    for arc, points in curves.items():
        words = format_bytes(arc.bytes)
        apex, middle, length = max(x for x, _ in _sampled(points)), (points[0][1] + points[-1][1]) / 2, SMALL * 0.62 * len(words)
        beyond, within = apex + widths[arc] / 2 + 3, apex - widths[arc] / 2 - 3 - length
        left = next((x for x in (beyond, within) if x >= ARCS_PT and _is_clear((x, x + length), middle, taken)), None)
        if left is not None:
            taken += [(x, middle, 4.0) for x in (left, left + length / 2, left + length)]
            axes.text(left, middle, words, fontsize=SMALL, va="center_baseline")


def _curve(arc: Arc, reach: float) -> list[tuple[float, float]]:
    """Control points of a curve from row to row that reaches so far to the right (a share of what there is)."""
    upper, lower = ROW_PT * arc.upper + 12, ROW_PT * arc.lower + 7
    bulge = ARCS_PT + (REACH_PT * reach + 14.0) * 4 / 3
    return [(ARCS_PT, upper), (bulge, upper), (bulge, lower), (ARCS_PT, lower)]


def _sampled(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points on a cubic Bézier curve."""
    found = []
    for step in range(SAMPLES + 1):
        t = step / SAMPLES
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        x, y = (sum(weight * point[axis] for weight, point in zip(weights, points, strict=True)) for axis in (0, 1))
        found.append((x, y))
    return found


def _is_clear(across: tuple[float, float], middle: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a label there keeps off all points by their half widths."""
    return all(x < across[0] - 1 - half or x > across[1] + 1 + half or abs(y - middle) > 4.5 + half for x, y, half in taken)


def _told(tree: ClusterTree, branch: Branch, own_bytes: float) -> str:
    """A row in words."""
    parts = [_name(branch), _count_words(branch), _stage_words(tree, branch), *_link_words(branch, own_bytes)]
    return ", ".join(part for part in parts if part)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 2] + ".."
