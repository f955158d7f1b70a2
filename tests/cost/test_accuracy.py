"""Paired differences over seeds, and steps to a target."""

from math import inf, isinf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from chinchilla_sim.cost.accuracy import LEVEL, paired_interval, ratio_interval, steps_to_reach

values = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12)


@given(values)
def test_the_interval_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    """scipy's own test of paired samples gives the same ends."""
    before, after = zip(*pairs, strict=True)
    differences = [a - b for a, b in pairs]
    found = paired_interval(differences)
    if max(differences) - min(differences) < 1e-6:
        assert found.low == pytest.approx(found.high, abs=1e-5)
        return
    expected = ttest_rel(before, after).confidence_interval(LEVEL)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_one_seed_says_nothing_about_chance() -> None:
    """The interval of a single difference is infinitely wide."""
    found = paired_interval([0.1])
    assert found.estimate == 0.1 and isinf(found.low) and isinf(found.high)


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(1, 1000)), min_size=2, max_size=8))
def test_a_ratio_is_the_other_way_round_inverted(pairs: list[tuple[float, float]]) -> None:
    """Twice as many steps is the inverse of half as many, ends of the interval included."""
    one, other = zip(*pairs, strict=True)
    there, back = ratio_interval(one, other), ratio_interval(other, one)
    assert log(there.estimate) == pytest.approx(-log(back.estimate), abs=1e-9)
    if back.high < 1e300 and there.high < 1e300 and back.low > 0 and there.low > 0:
        assert (log(there.low), log(there.high)) == pytest.approx((-log(back.high), -log(back.low)), abs=1e-6)


def test_a_seed_that_never_arrives_makes_the_ratio_infinite() -> None:
    """An average over those that did arrive would flatter."""
    assert ratio_interval([inf, 10.0], [10.0, 10.0]).estimate == inf


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_steps_to_reach_is_where_the_curve_crosses(curve: list[float], target: float) -> None:
    """All before is below the target, the place lies on the line between its two evaluations; a falling curve is a rising one mirrored."""
    points = [(10.0 * index, value) for index, value in enumerate(curve)]
    steps = steps_to_reach(points, target, rising=True)
    assert steps_to_reach([(x, -y) for x, y in points], -target, rising=False) == steps
    first = next((index for index, value in enumerate(curve) if value >= target), None)
    if first is None:
        assert steps == inf
        return
    assert 10.0 * max(0, first - 1) <= steps <= 10.0 * first
    if first and curve[first] - curve[first - 1] > 1e-6:
        share = (steps / 10.0) - (first - 1)
        assert curve[first - 1] + share * (curve[first] - curve[first - 1]) == pytest.approx(target, abs=1e-9)
