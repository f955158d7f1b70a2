"""Where compression of gradients pays: a table, and a map of coloured and lettered cells as SVG for pages of either brightness."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from chinchilla_sim.planner.explanation.codec_map import CodecCell, CodecMap
from chinchilla_sim.report.drawing.canvas import INK, LEFT_PT, WIDTH_PT, finish, style
from chinchilla_sim.report.table import NONE, Table
from chinchilla_sim.units import format_bandwidth

CODEC_COLOR = {
    "none": "#8a8f98",
    "fp16": "#56b4e9",
    "bf16": "#f0e442",
    "int8": "#009e73",
    "one-bit": "#e69f00",
    "top-k": "#d55e00",
    "low-rank": "#cc79a7",
}
"""Okabe & Ito's palette; black letters can be read on all of them."""

LETTER = {codec: codec[0].upper() for codec in CODEC_COLOR}
ROW_PT, HEADER_PT, FOOTER_PT = 30.0, 54.0, 40.0
SPEED_ONLY = "Time of a step alone: codecs that lose accuracy may need more steps to the same loss"


def codec_map_table(found: CodecMap) -> Table:
    """The winner of every cell, and how many times faster than none it is."""
    rows = tuple((str(row[0].global_batch_size), *(_told(cell) for cell in row)) for row in found.cells)
    headers = ("batch", *(format_bandwidth(bandwidth) for bandwidth in found.bandwidths))
    title = "Fastest codec of gradients on the best data-parallel plan, against none"
    return Table(title, headers, rows, note=SPEED_ONLY[0].lower() + SPEED_ONLY[1:])


def codec_map_dict(found: CodecMap) -> dict[str, Any]:
    """The same with the seconds of every codec, as one JSON document."""
    cells = [
        {
            "bandwidth_bytes_per_s": cell.bandwidth_bytes_per_s,
            "global_batch_size": cell.global_batch_size,
            "winner": cell.winner,
            "speedup": cell.speedup,
            "step_s": dict(cell.step_s),
        }
        for row in found.cells
        for cell in row
    ]
    return {"scenario": found.name, "cells": cells}


def codec_map_svg(found: CodecMap) -> str:
    """The map: bandwidth to the right, batch upwards; letter, colour and factor of every cell's winner."""
    rows, columns = len(found.batches), len(found.bandwidths)
    height = HEADER_PT + ROW_PT * rows + FOOTER_PT
    with style():
        figure = Figure(figsize=(WIDTH_PT / 72, height / 72))
        figure.patch.set_visible(False)
        axes = figure.add_axes((LEFT_PT / WIDTH_PT, FOOTER_PT / height, (WIDTH_PT - LEFT_PT - 2) / WIDTH_PT, ROW_PT * rows / height))
        axes.patch.set_visible(False)
        axes.set_xlim(0, columns)
        axes.set_ylim(0, rows)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, pad=4)
        axes.set_xticks([column + 0.5 for column in range(columns)], [format_bandwidth(bandwidth) for bandwidth in found.bandwidths])
        axes.set_yticks([row + 0.5 for row in range(rows)], [str(batch) for batch in found.batches])
        axes.set_xlabel("network bandwidth", labelpad=3)
        axes.set_ylabel("samples per step", labelpad=3)
        for y, row in enumerate(found.cells):
            for x, cell in enumerate(row):
                color = CODEC_COLOR[cell.winner] if cell.winner else "none"
                axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=color, edgecolor="none"))
                axes.text(x + 0.5, y + 0.5, _lettered(cell), color="#000000" if cell.winner else INK, ha="center", va="center")
        title = f"{found.name}: fastest codec of gradients by bandwidth and batch"
        figure.text(LEFT_PT / WIDTH_PT, 1 - 14 / height, title, weight="bold")
        _keys(figure, [codec for codec in CODEC_COLOR if any(cell.winner == codec for row in found.cells for cell in row)], height)
        told = "; ".join(
            f"batch {row[0].global_batch_size}: "
            + ", ".join(f"{format_bandwidth(cell.bandwidth_bytes_per_s)} {_told(cell)}" for cell in row)
            for row in found.cells
        )
        return finish(figure, title, f"{told}. {SPEED_ONLY}.")


def _keys(figure: Figure, codecs: list[str], height: float) -> None:
    """A line of lettered colours beneath the title."""
    x = LEFT_PT
    for codec in codecs:
        figure.add_artist(Rectangle((x / WIDTH_PT, 1 - 38 / height), 14 / WIDTH_PT, 13 / height, facecolor=CODEC_COLOR[codec]))
        figure.text((x + 7) / WIDTH_PT, 1 - 35 / height, LETTER[codec], color="#000000", ha="center")
        figure.text((x + 18) / WIDTH_PT, 1 - 35 / height, codec)
        x += 18 + 5.2 * len(codec) + 16


def _factor(cell: CodecCell) -> str:
    """How many times faster than none; nothing for none itself, and for what none has no memory for."""
    speedup = cell.speedup
    if speedup is None or cell.winner == "none" or "none" not in cell.step_s:
        return ""
    return f" {speedup:.3g}x"


def _told(cell: CodecCell) -> str:
    return f"{cell.winner}{_factor(cell)}" if cell.winner else NONE


def _lettered(cell: CodecCell) -> str:
    return f"{LETTER[cell.winner]}{_factor(cell)}" if cell.winner else NONE
