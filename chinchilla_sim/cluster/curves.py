"""Measured behaviour as data: constants of a device's products, tables of a node's collectives; `cost/` says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
