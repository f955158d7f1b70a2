"""A budget as a figure: loss by model size, with its range, the sizes that were planned and where the best may lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Affine2D

from chinchilla_sim.cost.scaling import range_of, trade_at
from chinchilla_sim.report.drawing.canvas import COLOR, INK, WIDTH_PT, finish, style
from chinchilla_sim.report.tables.budget import BudgetStudy, budget_answer, count_words

HEIGHT_PT, LEFT_PT, RIGHT_PT, TOP_PT, BOTTOM_PT = 250.0, 60.0, 16.0, 58.0, 40.0
POINTS = 60
ROOM = 1.25
"""The size axis goes so much beyond what is shown."""
CURVE, RANGE, BEST = COLOR["forward"], "#8a8f98", COLOR["backward"]


def budget_svg(study: BudgetStudy) -> str:
    """Loss against parameters at this budget; every planned size says how many tokens it gets."""
    low = min(study.sizes[0].size.parameters, study.parameters.p5) / ROOM
    high = max(study.sizes[-1].size.parameters, min(study.parameters.p95, study.ideal.parameters * 10)) * ROOM
    sizes = np.geomspace(low, high, POINTS).tolist()
    cost, amount = study.token_cost.cost, study.budget.amount
    curve = [trade_at(study.law, cost(size), amount, size).loss for size in sizes]
    edge = [*sizes[::3], sizes[-1]]
    band = [range_of([trade.loss for trade in study.futures.at(cost(size), amount, size)]) for size in edge]
    height = HEIGHT_PT + TOP_PT + BOTTOM_PT
    with style():
        figure = Figure(figsize=(WIDTH_PT / 72, height / 72))
        figure.patch.set_visible(False)
        box = (LEFT_PT / WIDTH_PT, BOTTOM_PT / height, (WIDTH_PT - LEFT_PT - RIGHT_PT) / WIDTH_PT, HEIGHT_PT / height)
        axes = figure.add_axes(box)
        _frame(axes, low, high)
        losses = [*curve, *(one.p5 for one in band), *(one.p95 for one in band)]
        axes.set_ylim(min(losses) - 0.02, max(losses) + 0.02)
        n = study.parameters
        axes.axvspan(max(n.p5, low), min(n.p95, high), facecolor=BEST, alpha=0.18, edgecolor="none")
        outline = [*zip(edge, (one.p5 for one in band), strict=True), *reversed(list(zip(edge, (one.p95 for one in band), strict=True)))]
        axes.add_patch(Polygon(outline, facecolor=RANGE, alpha=0.3, edgecolor="none"))
        axes.plot(sizes, curve, color=CURVE, linewidth=1.5)
        told = _mark_sizes(figure, axes, study)
        _keys(figure, [(CURVE, 1.0, "loss by the law"), (RANGE, 0.3, "p5 to p95 of the loss"), (BEST, 0.18, "p5 to p95 of the best size")])
        title = f"{study.name}: {study.family} by size, trained for {study.budget.words}"
        figure.text(LEFT_PT / WIDTH_PT, 1 - 14 / height, title, weight="bold")
        return finish(figure, title, " ".join([*budget_answer(study), "; ".join(told) + "."]))


def _frame(axes: Axes, low: float, high: float) -> None:
    """Logarithmic sizes, plain losses, no frame but two lines."""
    axes.patch.set_visible(False)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: count_words(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=INK, alpha=0.15, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("parameters", labelpad=4)
    axes.set_ylabel("loss, nats per token", labelpad=4)
    axes.tick_params(length=0, pad=3, which="both")


def _mark_sizes(figure: Figure, axes: Axes, study: BudgetStudy) -> list[str]:
    """A dot and its tokens for each planned size; what they say, in words."""
    points, told = Affine2D().scale(1 / 72) + figure.dpi_scale_trans, []
    for number, one in enumerate(study.sizes):
        trade, chosen = study.trade(one), one is study.best
        # Markers of matplotlib are references into <defs>, which finish() takes away.
        left, up = points.inverted().transform(axes.transData.transform((trade.parameters, trade.loss))).tolist()
        color = BEST if chosen else CURVE
        figure.add_artist(Circle((left, up), 4.5 if chosen else 3.0, facecolor=color, edgecolor="none", transform=points))
        place = (0, 12 if number % 2 else -12)
        words = count_words(trade.tokens)
        weight = "bold" if chosen else "normal"
        axes.annotate(
            words, (trade.parameters, trade.loss), place, textcoords="offset points", ha="center", va="center", fontsize=7.0, weight=weight
        )
        told.append(f"{count_words(trade.parameters)} parameters on {words} tokens: loss {trade.loss:.3f}" + " (best)" * chosen)
    return told


def _keys(figure: Figure, entries: Sequence[tuple[str, float, str]]) -> None:
    """A line of colours beneath the title."""
    height = figure.get_figheight() * 72
    x = LEFT_PT
    for color, alpha, text in entries:
        figure.add_artist(
            Rectangle((x / WIDTH_PT, 1 - 34 / height), 12 / WIDTH_PT, 9 / height, facecolor=color, alpha=alpha, edgecolor="none")
        )
        figure.text((x + 17) / WIDTH_PT, 1 - 32.5 / height, text)
        x += 17 + 4.6 * len(text) + 16
    figure.text(x / WIDTH_PT, 1 - 32.5 / height, "(numbers: tokens)")
