"""Seconds of a matrix product on an accelerator, as a function of its size.

For m x k times k x n of b bytes each, on a device of peak flop/s P and memory bandwidth W:

    t        = launch + fill k / (k + k_f) + (compute^q + memory^q)^(1/q)
    compute  = 2 m n k / (P e_c  k / (k + k_c))
    memory   = (b (m k + k n + m n) + first_bytes) / (W e_m)

Roofline with efficiencies of its own for arithmetic and memory, a soft corner (q), and two costs of depth: a deep product starts
later (its first result needs the whole sum: fill), a shallow one never gets up to speed (k_c). The eight constants are
fitted to tables of measured products (`chinchilla validate kernels`); other kernels take launch and memory alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.cluster.curves import ProductCurve

Floats = NDArray[np.float64]


def product_s(curve: ProductCurve, flop: float, moved_bytes: float, depth: float, flop_per_s: float, bytes_per_s: float) -> float:
    """Seconds of one product of this depth at the device's peak rates."""
    compute_s = flop / (flop_per_s * curve.compute_efficiency) * (depth + curve.compute_depth) / depth
    memory_s = (moved_bytes + curve.first_bytes) / (bytes_per_s * curve.memory_efficiency)
    fill_s = curve.fill_s * depth / (depth + curve.fill_depth)
    longer, shorter = max(compute_s, memory_s), min(compute_s, memory_s)
    rounded: float = (1.0 + (shorter / longer) ** curve.corner) ** (1.0 / curve.corner)
    return curve.launch_s + fill_s + longer * rounded


def stream_s(curve: ProductCurve, moved_bytes: float, bytes_per_s: float) -> float:
    """Seconds of one kernel that only moves bytes."""
    return curve.launch_s + (moved_bytes + curve.first_bytes) / (bytes_per_s * curve.memory_efficiency)


@dataclass(frozen=True, slots=True)
class ProductTable:
    """Measured products: columns m, n, k and seconds; `value_bytes` of each operand and result."""

    m: Floats
    n: Floats
    k: Floats
    seconds: Floats
    value_bytes: float = 2.0

    def rows(self, chosen: NDArray[np.bool_]) -> ProductTable:
        """Some rows."""
        return ProductTable(self.m[chosen], self.n[chosen], self.k[chosen], self.seconds[chosen], self.value_bytes)


START = ProductCurve(2.5e-6, 2e-6, 500.0, 0.85, 50.0, 0.8, 1e5, 2.0)


def curve_seconds(curve: ProductCurve, table: ProductTable, flop_per_s: float, bytes_per_s: float) -> Floats:
    """`product_s` of every row of a table."""
    return _seconds(np.array(astuple(curve)), table, flop_per_s, bytes_per_s)


def fit_curve(table: ProductTable, flop_per_s: float, bytes_per_s: float) -> ProductCurve:
    """The constants with the least relative error (in logarithms, outliers count less)."""
    from scipy.optimize import least_squares

    def off(logarithms: Floats) -> Floats:
        return np.log(_seconds(_constants(logarithms), table, flop_per_s, bytes_per_s) / table.seconds)

    start = np.log(np.array([*astuple(START)[:7], START.corner - 1.0]))
    return ProductCurve(*_constants(least_squares(off, start, loss="soft_l1", f_scale=0.1).x).tolist())


def _constants(logarithms: Floats) -> Floats:
    constants = np.exp(logarithms)
    constants[7] += 1.0  # a corner of 1 is the plain sum
    return constants


def _seconds(constants: Sequence[float] | Floats, table: ProductTable, flop_per_s: float, bytes_per_s: float) -> Floats:
    launch_s, fill_s, fill_depth, compute_efficiency, compute_depth, memory_efficiency, first_bytes, corner = constants
    m, n, k = table.m, table.n, table.k
    moved = table.value_bytes * (m * k + k * n + m * n)
    compute_s = 2.0 * m * n * k / (flop_per_s * compute_efficiency) * (k + compute_depth) / k
    memory_s = (moved + first_bytes) / (bytes_per_s * memory_efficiency)
    body_s: Floats = (compute_s**corner + memory_s**corner) ** (1.0 / corner)
    return launch_s + fill_s * k / (k + fill_depth) + body_s
