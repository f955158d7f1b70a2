"""What failures cost: checkpoints, lost work and restarts (Young 1974, Daly 2006).

Failures come at random, one every M on average over all nodes. Every tau of work a checkpoint takes delta; after a failure
the work since the last one is lost and a restart takes R. The expected time of useful work w is (Daly 2006, equation 13)

    T = M e^(R/M) (e^((tau + delta)/M) - 1) w / tau                                      wall_s_per_work_s
    Young's interval   tau = sqrt(2 delta M)                                              young_interval_s
    Daly's interval    tau = sqrt(2 delta M) (1 + sqrt(d)/3 + d/9) - delta,  d = delta/2M       daly_interval_s
"""

from __future__ import annotations

from math import exp, expm1, inf, sqrt


def young_interval_s(checkpoint_s: float, between_failures_s: float) -> float:
    """Work between two checkpoints that wastes least, to first order."""
    return sqrt(2.0 * checkpoint_s * between_failures_s)


def daly_interval_s(checkpoint_s: float, between_failures_s: float) -> float:
    """The same to higher order; where a checkpoint takes more than 2 M, M itself.

    >>> round(daly_interval_s(60.0, 86400.0))
    3180
    """
    if checkpoint_s >= 2.0 * between_failures_s:
        return between_failures_s
    part = checkpoint_s / (2.0 * between_failures_s)
    return young_interval_s(checkpoint_s, between_failures_s) * (1.0 + sqrt(part) / 3.0 + part / 9.0) - checkpoint_s


def wall_s_per_work_s(interval_s: float, checkpoint_s: float, restart_s: float, between_failures_s: float) -> float:
    """Expected seconds per second of useful work; 1 / goodput. Infinite where no interval is ever finished."""
    if not interval_s:
        return inf
    exponent = (interval_s + checkpoint_s) / between_failures_s
    if exponent > 700.0:
        return inf
    return between_failures_s * exp(restart_s / between_failures_s) * expm1(exponent) / interval_s
