"""The replay's inner loop compiled by numba (optional extra `fast`), for one playing or many."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.simulator.replay import Columns

Floats = NDArray[np.float64]


def is_available() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


class CompiledReplay:
    """Columns as arrays, and a loop that plays them; without numba NumPy plays many samples at once, row by row."""

    def __init__(self, columns: Columns) -> None:
        self.seconds = np.asarray(columns.seconds)
        self.first, self.second = (np.asarray(column, dtype=np.int64) for column in (columns.first, columns.second))
        self.first_lag_s, self.second_lag_s = (np.asarray(column) for column in (columns.first_lag_s, columns.second_lag_s))

    def play(self, seconds: Floats | None = None) -> Floats:
        """When each row has finished; `seconds` replace those of the columns."""
        finish_s = np.empty(len(self.seconds))
        _compiled()(self.seconds if seconds is None else seconds, self.first, self.first_lag_s, self.second, self.second_lag_s, finish_s)
        return finish_s

    def makespans_s(self, samples: Floats) -> Floats:
        """Makespan of each sample, given seconds of shape (rows, samples)."""
        finish_s = np.empty_like(samples)
        for row in range(len(self.seconds)):
            first_s = finish_s[self.first[row]] + self.first_lag_s[row] if row else 0.0
            second_s = finish_s[self.second[row]] + self.second_lag_s[row] if row else 0.0
            finish_s[row] = np.maximum(first_s, second_s) + samples[row]
        makespans_s: Floats = finish_s.max(axis=0)
        return makespans_s


_loop: list[Callable[..., None]] = []


def _compiled() -> Callable[..., Any]:
    """The loop, compiled (or read from numba's cache) at first use."""
    if not _loop:
        from numba import njit

        _loop.append(njit(cache=True)(_play))
    return _loop[0]


def _play(seconds: Any, first: Any, first_lag_s: Any, second: Any, second_lag_s: Any, finish_s: Any) -> None:
    finish_s[0] = seconds[0]
    for row in range(1, len(seconds)):
        first_s = finish_s[first[row]] + first_lag_s[row]
        second_s = finish_s[second[row]] + second_lag_s[row]
        finish_s[row] = max(first_s, second_s) + seconds[row]
