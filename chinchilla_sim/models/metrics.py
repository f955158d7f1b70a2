"""Scores of yes-or-no predictions."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from scipy.stats import rankdata


def area_under_curve(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Chance that a positive sample scores higher than a negative one, a tie counting half (Mann & Whitney 1947).

    >>> import numpy as np
    >>> area_under_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    positive = labels > 0.5
    count, rest = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * rest))


def average_precision(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean, over positive samples, of the share of positives among all that score at least as high.

    A model that knows nothing has the share of positives.

    >>> import numpy as np
    >>> average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0]))  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    at_least = rankdata(-scores, method="max")
    positive = labels > 0.5
    positives_at_least = rankdata(-scores[positive], method="max")
    return float((positives_at_least / at_least[positive]).mean())
