"""What a change of a job costs in accuracy and in steps: differences paired over seeds.

Every seed is run as it is and changed, with the same first weights and the same order of data; d_i is the difference of the two:

    mean +- t(LEVEL, n - 1) s / sqrt(n)         paired_interval    Student 1908; s the standard deviation of the d_i
    exp of the same of logarithms               ratio_interval     geometric mean of ratios
    first crossing, linear in between           steps_to_reach     of a curve of evaluations

Several changes at once add up seed by seed (ratios multiply), as if they did not act on each other; the interval is that of the sums,
so that what they share (the run as it is) counts as it should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log, sqrt
from statistics import fmean, stdev

LEVEL = 0.95
"""Of all intervals: two-sided, so that 97.5 % of the upper ends are above the truth."""
FEWEST_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval of LEVEL."""

    estimate: float
    low: float
    high: float


NOTHING = Interval(0.0, 0.0, 0.0)
AS_MANY = Interval(1.0, 1.0, 1.0)


def paired_interval(differences: Sequence[float]) -> Interval:
    """Mean of differences, one per seed; infinitely wide where one alone is known, or one is infinite.

    >>> found = paired_interval([1.0, 2.0, 3.0])  # 2 +- 4.303 * 1 / sqrt(3)
    >>> found.estimate, round(found.low, 3), round(found.high, 3)
    (2.0, -0.484, 4.484)
    """
    mean = fmean(differences)
    if len(differences) < 2 or not isfinite(mean):
        return Interval(mean, -inf, inf)
    from scipy.special import stdtrit

    half = float(stdtrit(len(differences) - 1, (1 + LEVEL) / 2)) * stdev(differences) / sqrt(len(differences))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(changed: Sequence[float], plain: Sequence[float]) -> Interval:
    """Geometric mean of ratios, one per seed; infinite where one of `changed` is.

    >>> round(ratio_interval([20.0, 40.0], [10.0, 5.0]).estimate, 6)  # of 2 and 8
    4.0
    """
    if not all(map(isfinite, changed)):
        return Interval(inf, inf, inf)
    found = paired_interval([log(after / before) for after, before in zip(changed, plain, strict=True)])
    return Interval(exp(found.estimate), exp(found.low), exp(found.high) if found.high < 700 else inf)


def steps_to_reach(curve: Sequence[tuple[float, float]], target: float, rising: bool) -> float:
    """Steps after which a curve of (steps, value) first reaches a target, from below (`rising`) or from above; infinite where never.

    >>> steps_to_reach([(0, 0.0), (10, 0.5), (20, 1.0)], 0.75, rising=True)
    15.0
    """
    sign = 1.0 if rising else -1.0
    before: tuple[float, float] | None = None
    for steps, value in curve:
        if sign * value >= sign * target:
            if before is None or value == before[1]:
                return float(steps)
            return before[0] + (steps - before[0]) * (target - before[1]) / (value - before[1])
        before = steps, value
    return inf
