"""What the machine's probe measures of number formats, how it times a call, and how weights that fill the caches slow passes down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from chinchilla_sim.cluster.curves import LinearCurve
from chinchilla_sim.cost.linear import FP32, LinearRow, fit_linear
from chinchilla_sim.runtime.measurement.interlude import KERNEL_BUDGET_S, timed
from chinchilla_sim.runtime.variant.number_formats import LINEAR

FORMATS = (FP32, *LINEAR)
LINEAR_ROWS, LINEAR_INPUTS, LINEAR_OUTPUTS = (1, 4, 16, 64, 256), (64, 512, 2048), (16, 128, 512, 2048)
"""Sizes of linear layers that are measured in every number format."""
LINEAR_REPEATS, LINEAR_BUDGET_S = 7, 0.003
REREAD_BYTES = tuple(1 << power for power in range(20, 27))
REREAD_INPUTS = 1024
SWEPT_VALUES = 1 << 20


def linear_curves(by_rank: Sequence[Sequence[dict[str, Any]]]) -> tuple[LinearCurve, ...]:
    """One curve for each number format, from the medians of all ranks."""
    rows = [LinearRow(**(same[0] | {"measured_s": median(row["measured_s"] for row in same)})) for same in zip(*by_rank, strict=True)]
    return tuple(fit_linear([row for row in rows if row.format == number_format]) for number_format in FORMATS)


def format_rows() -> Iterator[LinearRow]:
    """Linear layers of all sizes in every number format, as variants compute them."""
    with torch.no_grad():
        for inputs, outputs in product(LINEAR_INPUTS, LINEAR_OUTPUTS):
            weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
            for number_format in FORMATS:
                apply = _layer_of(number_format, weight, bias)
                for rows in LINEAR_ROWS:
                    source = torch.rand(rows, inputs)
                    seconds = swept_median_s(lambda _: timed(lambda: apply(source)), LINEAR_REPEATS, LINEAR_BUDGET_S)  # noqa: B023
                    yield LinearRow(number_format, rows, inputs, outputs, seconds)


def _layer_of(number_format: str, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    if number_format == FP32:
        return lambda source: linear(source, weight, bias)
    kind = LINEAR[number_format]
    arguments = kind.arguments(kind.pack(weight, bias).values(), (0.0, 1.0), bias, weight.shape[0])
    return lambda source: kind.apply(source, *arguments)


def reread_s_per_byte(size: int) -> float:
    """Seconds per byte in which a single row goes through weights of so many bytes again and again."""
    weight, source = torch.zeros(size // 4 // REREAD_INPUTS, REREAD_INPUTS), torch.rand(1, REREAD_INPUTS)
    with torch.no_grad():
        return swept_median_s(lambda _: timed(lambda: linear(source, weight))) / size


def swept_median_s(run: Callable[[int], float], minimum: int = 15, budget_s: float = KERNEL_BUDGET_S) -> float:
    """Median of what `run(i)` returns, after a warm-up, for at least `minimum` times and `budget_s`."""
    sweep = torch.zeros(SWEPT_VALUES)
    for index in range(5):
        run(index)
    times: list[float] = []
    while len(times) < minimum or sum(times) < budget_s:
        sweep.add_(1.0)
        times.append(run(len(times)))
    return median(times)
