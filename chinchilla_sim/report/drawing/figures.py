"""Figures of bars: memory against capacity, the alternatives, and what the step would be with another input.

How they come to look alike on any page is in `canvas.py`; the step itself is drawn by `gantt.py`, the cluster by `cluster_figure.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.report.alike import MANY, group_name, picked
from chinchilla_sim.report.drawing.canvas import (
    COLOR,
    GREY,
    INK,
    LETTER_PT,
    NARROW_PT,
    Drawing,
    beside,
    panel,
    rectangle,
    show_keys,
    stacked_figure,
    style,
)
from chinchilla_sim.report.table import percent, signed_percent
from chinchilla_sim.report.tables.plans import listed_candidates
from chinchilla_sim.report.verdict import FORMAT_OBJECTIVE, versus
from chinchilla_sim.simulator.sensitivity import Explanation
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 32
NAME_LETTERS = {True: 84, False: 98}
"""How much of a plan's name fits into the figure, bold or not; the table has all of it."""
CUT = 2.5
"""One rank alone may take many times as long as the plans: its bar ends at so many times the longest of theirs."""
MEMORY_PT, ALTERNATIVE_PT, CHANGE_PT = 15.0, 30.0, 26.0
BARS_OF = {
    "step_time": "Step time",
    "cost": "Price per step",
    "energy": "Energy per step",
    "latency": "Latency at the 95th percentile",
    "time_to_accuracy": "Time to the target accuracy",
}


def draw_memory(timeline: Timeline, capacities: Sequence[float]) -> Drawing:
    """Peak memory of each rank as a bar, split into what it holds all the time and what comes on top, against its capacity.

    Of many ranks those with the same bar share it.
    """
    groups = _alike_bars(timeline, capacities)
    peaks = [timeline.peak_memory_bytes(ranks[0]) for ranks in groups]
    by_share = sorted(range(len(groups)), key=lambda at: (-peaks[at] / capacities[groups[at][0]], at))
    shown = sorted(by_share[:MOST_BARS])
    # A capacity far beyond the bars would leave no room to read them: it is then told in words alone.
    near = max(peaks[at] / capacities[groups[at][0]] for at in shown) >= 0.05
    limit = max(1.0, *(max(peaks[at], capacities[groups[at][0]] * near) for at in shown))
    told = []
    with style():
        figure, (top,) = stacked_figure([MEMORY_PT * len(shown)], header=26.0, between=0.0, footer=4.0, width=NARROW_PT)
        axes = panel(figure, top, MEMORY_PT * len(shown), limit, left=72.0, right=138.0)
        axes.xaxis.set_visible(False)
        for row, at in enumerate(shown):
            ranks, peak, capacity = groups[at], peaks[at], capacities[groups[at][0]]
            y, held = MEMORY_PT * row, _held_bytes(timeline, ranks[0])
            _bar(axes, 0, held, y, COLOR["forward"])
            _bar(axes, held, peak, y, COLOR["backward"])
            if near:
                axes.plot([capacity] * 2, [y + 1, y + 13], color=INK, linewidth=1.5, clip_on=False)
            words = f"{format_bytes(peak)} of {format_bytes(capacity)}"
            told.append(f"{group_name(ranks)}: {words}")
            beside(axes, group_name(ranks), y + 7.5)
            place: dict[str, Any] = {"textcoords": "offset points", "va": "center_baseline"}
            axes.annotate(f"{words} ({percent(peak / capacity)})", (1, y + 7.5), (8, 0), ("axes fraction", "data"), **place)
        keys = [(COLOR["forward"], "held all the time"), (COLOR["backward"], "on top at the peak"), (INK, "capacity")]
        show_keys(figure, keys if near else keys[:2], left=8.0)
        some = "" if len(shown) == len(groups) else f"The {len(shown)} fullest of {len(groups)} ranks. "
        return Drawing(figure, "Peak memory of each rank against its capacity", f"{some}{'; '.join(told)}.")


def _held_bytes(timeline: Timeline, rank: int) -> float:
    return min((sample.held_bytes for sample in timeline.memory_of(rank)), default=0.0)


def _alike_bars(timeline: Timeline, capacities: Sequence[float]) -> list[list[int]]:
    """Ranks with the same peak and capacity."""
    ranks = range(timeline.rank_count)
    if timeline.rank_count <= MANY:
        return [[rank] for rank in ranks]
    groups: dict[tuple[float, float], list[int]] = {}
    for rank in ranks:
        groups.setdefault((timeline.peak_memory_bytes(rank), capacities[rank]), []).append(rank)
    return list(groups.values())


def draw_alternatives(search: SearchResult, objective: str = "step_time") -> Drawing:
    """What is minimised, of the chosen plan, of the best plans of other splits, and of one rank alone."""
    best, listed = search.best, listed_candidates(search)[:MOST_BARS]
    known = objective != "step_time" and all(candidate.objective for _, candidate in listed)

    def value_of(candidate: Candidate) -> float:
        return candidate.objective if known else candidate.step_s

    amounts = [value_of(candidate) for _, candidate in listed]
    plans = [amount for (_, candidate), amount in zip(listed, amounts, strict=True) if candidate is not search.one_rank]
    longest = min(max(amounts), CUT * max(plans or amounts)) or 1.0
    words = FORMAT_OBJECTIVE[objective] if known else format_seconds
    with style():
        figure, (top,) = stacked_figure([ALTERNATIVE_PT * len(listed)], header=4.0, between=0.0, footer=4.0)
        axes = panel(figure, top, ALTERNATIVE_PT * len(listed), longest, left=2.0, right=180.0)
        axes.xaxis.set_visible(False)
        told = []
        for row, (name, candidate) in enumerate(listed):
            amount, y = value_of(candidate), ALTERNATIVE_PT * row
            note = "chosen" if candidate is best else versus(amount, value_of(best), objective if known else "step_time")
            color = COLOR["forward"] if candidate is best else GREY
            end = min(amount, longest)
            axes.add_patch(rectangle(0, end, y + 13, y + 24, color))
            letters = NAME_LETTERS[candidate is best]
            shown = name if len(name) <= letters else f"{name[: letters - 2]}.."
            axes.text(0, y + 10, shown, weight="bold" if candidate is best else "normal")
            value = f"{words(amount)}, {note}"
            told.append(f"{name}: {value}")
            value += " (bar cut)" if amount > longest else ""
            axes.annotate(value, (end, y + 18.5), (5, 0), textcoords="offset points", va="center")
        return Drawing(figure, f"{BARS_OF[objective if known else 'step_time']} of the alternatives", "; ".join(told) + ".")


def draw_sensitivity(found: Explanation) -> Drawing:
    """How much the step changes with each input: to the left where it gets shorter, to the right where it gets longer."""
    moved = picked([one for one in found.sensitivities if one.change], MOST_BARS)
    most = max((abs(one.change) for one in moved), default=1.0)
    height, value_pt = CHANGE_PT * max(1, len(moved)), LETTER_PT * 9
    room = NARROW_PT / 2 - 2.0 - value_pt
    with style():
        figure, (top,) = stacked_figure([height], header=18.0, between=0.0, footer=4.0, width=NARROW_PT)
        axes = panel(figure, top, height, 1.0, left=2.0, right=2.0)
        whole = room + value_pt
        axes.set_xlim(-whole, whole)
        axes.xaxis.set_visible(False)
        for x, words in ((-whole / 2, "shorter step"), (whole / 2, "longer step")):
            axes.annotate(words, (x, 0), (0, 6), textcoords="offset points", ha="center", annotation_clip=False)
        for row, one in enumerate(moved):
            y, length = CHANGE_PT * row, room * one.change / most
            axes.add_patch(rectangle(min(0.0, length), max(0.0, length), y + 14, y + 24, COLOR["optimizer" if length < 0 else "backward"]))
            axes.plot([0, 0], [y + 14, y + 24], color=INK, linewidth=0.8, alpha=0.6)
            axes.annotate(one.what, (-whole, y + 7.5), va="center_baseline")
            side = -1 if length < 0 else 1
            place: dict[str, Any] = {"textcoords": "offset points", "va": "center_baseline", "ha": "right" if side < 0 else "left"}
            axes.annotate(signed_percent(one.change), (length, y + 19.5), (4 * side, 0), **place)
        told = "; ".join(f"{one.what}: {signed_percent(one.change)}" for one in moved)
        return Drawing(figure, "Change of the step with each input", f"{told or 'No input matters'}.")


def _bar(axes: Axes, left: float, right: float, y: float, color: str) -> None:
    axes.add_patch(rectangle(left, right, y + 2, y + 12, color))
