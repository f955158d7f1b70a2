"""A long run with failures: what share of its time is useful work, and how often to save a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chinchilla_sim.cost.failure import daly_interval_s, wall_s_per_work_s, young_interval_s

CYCLES = 4000
"""Intervals between checkpoints that a run plays; the mean of the waste is then known to a few per cent."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """Useful share of the time, simulated and by Daly's formula, at an interval between checkpoints; and the intervals to choose."""

    interval_s: float
    simulated: float
    expected: float
    young_interval_s: float
    daly_interval_s: float
    best_interval_s: float
    best_expected: float


def simulate_goodput(
    step_s: float, checkpoint_s: float, restart_s: float, between_failures_s: float, seed: int, interval_s: float | None = None
) -> Goodput:
    """Play a run of CYCLES intervals; without `interval_s` a checkpoint is saved when Daly says. Intervals are whole steps."""
    between = (checkpoint_s, between_failures_s)
    chosen_s = _whole_steps(interval_s or daly_interval_s(*between), step_s)
    best_s = _whole_steps(_best_interval_s(step_s, lambda tau: wall_s_per_work_s(tau, checkpoint_s, restart_s, between_failures_s)), step_s)
    return Goodput(
        interval_s=chosen_s,
        simulated=_play(chosen_s, checkpoint_s, restart_s, between_failures_s, seed),
        expected=1.0 / wall_s_per_work_s(chosen_s, checkpoint_s, restart_s, between_failures_s),
        young_interval_s=young_interval_s(*between),
        daly_interval_s=daly_interval_s(*between),
        best_interval_s=best_s,
        best_expected=1.0 / wall_s_per_work_s(best_s, checkpoint_s, restart_s, between_failures_s),
    )


def _whole_steps(interval_s: float, step_s: float) -> float:
    return max(1, round(interval_s / step_s)) * step_s if step_s else interval_s


def _best_interval_s(step_s: float, waste: Callable[[float], float]) -> float:
    """The interval with the least expected time, by golden section over its logarithm."""
    low, high = np.log(max(step_s, 1e-9)), np.log(max(step_s, 1e-9)) + 40.0
    ratio = (np.sqrt(5.0) - 1.0) / 2.0
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if waste(float(np.exp(left))) <= waste(float(np.exp(right))):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2.0))


def _play(interval_s: float, checkpoint_s: float, restart_s: float, between_failures_s: float, seed: int) -> float:
    """Useful share of a run: every interval is tried until it and its checkpoint end before the next failure."""
    random = np.random.default_rng(seed)
    wall_s = 0.0
    to_failure_s = random.exponential(between_failures_s)
    for _ in range(CYCLES):
        needed_s = interval_s + checkpoint_s
        while to_failure_s < needed_s:
            # Work since the last checkpoint is lost, and the restart itself may fail.
            wall_s += to_failure_s
            to_failure_s = random.exponential(between_failures_s)
            needed_s = restart_s + interval_s + checkpoint_s
        wall_s += needed_s
        to_failure_s -= needed_s
    return CYCLES * interval_s / wall_s
