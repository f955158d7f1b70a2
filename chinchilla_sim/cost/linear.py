"""Seconds of a linear layer's forward pass in each number format, from what was measured on a device.

For r rows through a weight of i inputs and o outputs that takes w bytes, in its format:

    fit      launch_s + flop_s 2 r i o + weight_byte_s w + value_byte_s 4 r (i + o)
    seconds  fit * off(r, i, o)

`off` is what the fit was off by at the measured sizes, interpolated linearly between the logarithms of the sizes, and beyond them that of
the nearest: kernels change with the size (a single row is no product, narrow weights are not packed, wide ones leave the cache), and no
roofline with one constant for each follows that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import log

import numpy as np

from chinchilla_sim.cluster.calibration import fit_relative
from chinchilla_sim.cluster.curves import LinearCurve
from chinchilla_sim.graph.compress.quantize import packed_bytes

FP32 = "fp32"
VALUE_BYTES = 4.0


@dataclass(frozen=True, slots=True)
class LinearRow:
    """One measured linear layer of a number format; seconds are a median."""

    format: str
    rows: int
    inputs: int
    outputs: int
    measured_s: float


def linear_s(curve: LinearCurve, rows: float, inputs: float, outputs: float) -> float:
    """Seconds of one layer.

    >>> curve = LinearCurve("fp32", 0.0, 1e-9, 0.0, 0.0, (1, 4), (8,), (8,), (1.0, 2.0))
    >>> linear_s(curve, 2, 8, 8) / (2 * 2 * 8 * 8 * 1e-9)
    1.5
    """
    found = 0.0
    places = (_between(curve.rows, rows), _between(curve.inputs, inputs), _between(curve.outputs, outputs))
    for (r, part_r), (i, part_i), (o, part_o) in product(*places):
        found += part_r * part_i * part_o * curve.off[(r * len(curve.inputs) + i) * len(curve.outputs) + o]
    return _fitted_s(curve, rows, inputs, outputs) * found


def fit_linear(rows: Sequence[LinearRow]) -> LinearCurve:
    """The curve of measured layers of one format; they are a whole grid of sizes."""
    columns = [_amounts(row.format, row.rows, row.inputs, row.outputs) for row in rows]
    launch_s, flop_s, weight_byte_s, value_byte_s = fit_relative(columns, np.array([row.measured_s for row in rows]))
    sizes = [tuple(sorted({getattr(row, name) for row in rows})) for name in ("rows", "inputs", "outputs")]
    measured_s = {(row.rows, row.inputs, row.outputs): row.measured_s for row in rows}
    plain = LinearCurve(rows[0].format, launch_s, flop_s, weight_byte_s, value_byte_s, sizes[0], sizes[1], sizes[2], (1.0,))
    return replace(plain, off=tuple(measured_s[point] / _fitted_s(plain, *point) for point in product(*sizes)))


def _amounts(number_format: str, rows: float, inputs: float, outputs: float) -> tuple[float, float, float, float]:
    """What the four constants of a curve stand for."""
    shape = (round(outputs), round(inputs))
    weight_bytes = VALUE_BYTES * inputs * outputs if number_format == FP32 else packed_bytes(shape, number_format)
    return 1.0, 2.0 * rows * inputs * outputs, weight_bytes, VALUE_BYTES * rows * (inputs + outputs)


def _fitted_s(curve: LinearCurve, rows: float, inputs: float, outputs: float) -> float:
    constants = curve.launch_s, curve.flop_s, curve.weight_byte_s, curve.value_byte_s
    return sum(constant * amount for constant, amount in zip(constants, _amounts(curve.format, rows, inputs, outputs), strict=True))


def _between(sizes: Sequence[int], size: float) -> list[tuple[int, float]]:
    """Positions of the measured sizes around one, with the share of each."""
    above = bisect_right(sizes, size)
    if above in (0, len(sizes)):
        return [(max(0, above - 1), 1.0)]
    low, high = sizes[above - 1], sizes[above]
    share = log(size / low) / log(high / low)
    return [(above - 1, 1.0 - share), (above, share)]
