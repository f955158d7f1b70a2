"""Measured behaviour as data: constants of a device's products, linear layers by number format, tables of a node's collectives.

`cost/` says what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

Table = tuple[tuple[float, float], ...]
"""Rows of (payload bytes, seconds), by bytes."""

CollectiveTables = Mapping[tuple[str, int], Table]
"""Measured collectives among the devices of one node, by kind and number of ranks."""


@dataclass(frozen=True, slots=True)
class ProductCurve:
    """Eight constants of a device's matrix products: seconds, seconds, depth, share of peak, depth, share of peak, bytes, exponent."""

    launch_s: float
    fill_s: float
    fill_depth: float
    compute_efficiency: float
    compute_depth: float
    memory_efficiency: float
    first_bytes: float
    corner: float


@dataclass(frozen=True)
class LinearCurve:
    """Measured linear layers of one number format: four constants of a fit, and measured over fitted time at every point of a grid.

    `off` holds a factor for each (rows, inputs, outputs) of the grid, the last one running fastest; `cost/linear.py` uses them.
    """

    format: str
    launch_s: float
    flop_s: float
    weight_byte_s: float
    value_byte_s: float
    rows: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    off: tuple[float, ...]

    def __hash__(self) -> int:
        # Devices are keys of many tables; a few figures tell curves apart.
        return hash((self.format, self.launch_s, self.flop_s, self.off[0]))

    def scaled(self, launch: float = 1.0, flop: float = 1.0, byte: float = 1.0) -> LinearCurve:
        """The curve of a device whose launches, products and bytes take so many times as long."""
        byte_s = byte * self.weight_byte_s, byte * self.value_byte_s
        return replace(self, launch_s=launch * self.launch_s, flop_s=flop * self.flop_s, weight_byte_s=byte_s[0], value_byte_s=byte_s[1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> LinearCurve:
        """Inverse of `to_dict`; ValueError where the grid and its factors do not fit."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        curve = LinearCurve(**values)
        figures = (
            curve.launch_s,
            curve.flop_s,
            curve.weight_byte_s,
            curve.value_byte_s,
            *curve.rows,
            *curve.inputs,
            *curve.outputs,
            *curve.off,
        )
        if (
            not curve.off
            or not isinstance(curve.format, str)
            or not all(isinstance(one, int | float) and 0 <= one < inf for one in figures)
        ):
            raise ValueError(f"the curve of {curve.format} is not one of numbers >= 0")
        if len(curve.off) != len(curve.rows) * len(curve.inputs) * len(curve.outputs):
            raise ValueError(f"the curve of {curve.format} has {len(curve.off)} factors for another grid")
        return curve
