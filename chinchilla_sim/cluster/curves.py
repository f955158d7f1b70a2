"""Measured behaviour of a device as constants of a curve; `cost/products.py` says what they mean and computes with them."""

from __future__ import annotations

from dataclasses import dataclass


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
