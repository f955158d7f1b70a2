"""Seconds of products on a curve: by hand, in the limits, and fitted back from what the curve itself says."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.curves import ProductCurve
from chinchilla_sim.cost.products import ProductTable, curve_seconds, fit_curve, product_s, stream_s

CURVE = ProductCurve(1.0, 2.0, 10.0, 0.5, 10.0, 0.5, 100.0, 2.0)


def test_product_by_hand() -> None:
    """Depth 10: half of the fill, half of the speed. 3000 flop at 1000/s take 12 s, 800 + 100 B at 200 B/s 9 s: 15 s at the corner."""
    assert product_s(CURVE, 3000.0, 800.0, 10.0, 1000.0, 200.0) == pytest.approx(1 + 1 + (12**2 + 9**2) ** 0.5)
    assert stream_s(CURVE, 800.0, 200.0) == pytest.approx(1 + 9)


@given(st.floats(1e3, 1e12), st.floats(1e3, 1e10), st.floats(4, 1e5))
def test_no_product_beats_its_roofline(flop: float, moved: float, depth: float) -> None:
    """It takes at least its arithmetic and its bytes at the efficiencies, and at most both one after the other and the rest."""
    seconds = product_s(CURVE, flop, moved, depth, 1e9, 1e9)
    compute_s, memory_s = flop / (1e9 * 0.5), moved / (1e9 * 0.5)
    assert seconds >= max(compute_s, memory_s)
    assert seconds <= 1 + 2 + compute_s * (1 + 10 / depth) + (moved + 100) / (1e9 * 0.5)


def test_fit_finds_the_curve_that_made_the_table() -> None:
    """600 random sizes of a known curve: the fitted one says the same within 1 %."""
    random = np.random.default_rng(0)
    m, n, k = (2.0 ** random.integers(4, 14, 600) for _ in range(3))
    known = ProductCurve(3e-6, 4e-6, 500.0, 0.8, 100.0, 0.7, 1e5, 2.0)
    empty = ProductTable(m, n, k, np.ones(600))
    table = ProductTable(m, n, k, curve_seconds(known, empty, 3e14, 2e12))
    fitted = curve_seconds(fit_curve(table, 3e14, 2e12), table, 3e14, 2e12)
    assert np.abs(fitted / table.seconds - 1).max() < 0.01
    assert len(astuple(known)) == 8
