"""Recommendation: DLRM (Naumov et al. 2019): tables of embeddings, a bottom and a top network, dot products between them.

A sample has 13 numbers and, per table, a bag of `bag` rows whose vectors are summed. Every two of the tables' vectors and
the bottom network's output are multiplied, and the top network turns products and bottom output into one logit of a click.
The defaults have Criteo's 13 numbers and 26 tables, each of 1,000,000 rows of 64: 1,664,000,000 parameters in tables
and 499,521 in networks.

Data: clicks made by a hidden model drawn once: logit = 0.6 (w . numbers) + the sum, over tables, of a hidden value of each
row + the hidden dot products of four pairs of tables, scaled to a deviation of 2; a click has the probability sigmoid(logit),
so even who knows the hidden model errs: `bayes_accuracy` and `bayes_auc` are the limits. 20,000 samples train, 4,000
validate. Needs tables * rows <= 1,000,000.
Preset "small" (one thread): 4 epochs of Adam, batches of 64, 5e-3 falling to 0: 71.1 % and an area under the curve of 0.784 after 2 s
(the hidden model itself: 76.4 % and 0.854).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from chinchilla_sim.models.metrics import area_under_curve
from chinchilla_sim.models.options import Options, read_options
from chinchilla_sim.models.samples import SampleJob, Samples, Splits, missing_data, predict

NUMBERS = 13
_MOST_ROWS = 1_000_000
_TRAIN_COUNT, _VALIDATION_COUNT = 20_000, 4_000
_HIDDEN_WIDTH = 2
_HIDDEN_PAIRS = 4
_LOGIT_DEVIATION = 2.0


@dataclass(frozen=True)
class DlrmOptions(Options):
    """Shape of the network: `width` of all vectors, hidden widths of the `bottom` network (its output is of `width`) and of the
    `top` one (its output is one logit)."""

    tables: int = 26
    rows: int = 1_000_000
    bag: int = 1
    width: int = 64
    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (512, 256)


PRESETS = {
    "criteo": DlrmOptions(),
    "small": DlrmOptions(tables=8, rows=50, bag=2, width=8, bottom=(32,), top=(32,)),
}


def _network(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers, each with a ReLU behind it."""
    return nn.Sequential(*(layer for fan_in, fan_out in pairwise(widths) for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())))


class Dlrm(nn.Module):
    """Tables, bottom network, dot products, top network."""

    def __init__(self, options: DlrmOptions) -> None:
        super().__init__()
        vectors = options.tables + 1
        self.tables = nn.ModuleList(nn.EmbeddingBag(options.rows, options.width, mode="sum") for _ in range(options.tables))
        self.bottom = _network([NUMBERS, *options.bottom, options.width])
        self.top = _network([options.width + vectors * (vectors - 1) // 2, *options.top])
        self.click = nn.Linear(options.top[-1], 1)
        for parameter in self.tables.parameters():
            nn.init.uniform_(parameter, -(options.rows**-0.5), options.rows**-0.5)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """(n, 13) numbers and (n, tables, bag) row ids -> (n,) logits of a click."""
        dense = self.bottom(numbers)
        vectors = torch.stack([dense, *(table(ids[:, index]) for index, table in enumerate(self.tables))], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        count = vectors.shape[1]
        row, column = torch.tril_indices(count, count, offset=-1, device=ids.device)
        features = torch.cat([dense, products.flatten(1)[:, row * count + column]], dim=1)
        return self.click(self.top(features)).squeeze(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RecommendationJob(SampleJob):
    """A job: network, loss and clicks."""

    options: DlrmOptions

    def model(self) -> nn.Module:
        """A fresh network on torch's default device."""
        return Dlrm(self.options)

    def example_batch(self, size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Zeros: numbers float32 (size, 13), ids int64 (size, tables, bag), clicks float32 (size,)."""
        ids = torch.zeros(size, self.options.tables, self.options.bag, dtype=torch.int64)
        return (torch.zeros(size, NUMBERS), ids), torch.zeros(size)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross entropy in nats of logits (n,) against clicks (n,)."""
        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_accuracy, validation_auc (0.5 knows nothing), validation_loss (nats), and the limits of the hidden model
        itself, bayes_accuracy and bayes_auc."""
        outputs, targets = predict(model, self.splits.validation)
        clicks, truth = targets.numpy() > 0.5, self._world[1]
        return {
            "validation_accuracy": float(((outputs.numpy() > 0) == clicks).mean()),
            "validation_auc": area_under_curve(outputs.numpy(), clicks),
            "validation_loss": float(self.loss(outputs, targets)),
            "bayes_accuracy": float(((truth > 0) == clicks).mean()),
            "bayes_auc": area_under_curve(truth, clicks),
        }

    def load_splits(self) -> Splits:
        """Numbers float32 (count, 13), ids int64 (count, tables, bag) and clicks float32 (count,)."""
        return self._world[0]

    @cached_property
    def _world(self) -> tuple[Splits, NDArray[np.float64]]:
        """All samples, and the hidden model's logits of those that validate."""
        options = self.options
        if options.tables * options.rows > _MOST_ROWS:
            what = f"{options.tables} tables of {options.rows} rows"
            raise missing_data(what, f"the hidden model of the generated clicks needs tables * rows <= {_MOST_ROWS}")
        generator = np.random.default_rng(0)
        count = _TRAIN_COUNT + _VALIDATION_COUNT
        numbers = generator.standard_normal((count, NUMBERS)).astype(np.float32)
        ids = generator.integers(options.rows, size=(count, options.tables, options.bag))
        logits = hidden_logits(numbers, ids, options.rows, generator)
        clicks = (generator.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        train, validation = slice(_TRAIN_COUNT), slice(_TRAIN_COUNT, None)
        splits = Splits(*(Samples((numbers[part], ids[part]), clicks[part]) for part in (train, validation)))
        return splits, logits[validation]


def hidden_logits(numbers: NDArray[np.float32], ids: NDArray[np.int64], rows: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """What the hidden model says of (count, 13) numbers and (count, tables, bag) ids, scaled to mean 0 and the stated deviation."""
    tables = ids.shape[1]
    weights = generator.standard_normal(NUMBERS) / np.sqrt(NUMBERS)
    values = generator.standard_normal((tables, rows))
    vectors = generator.standard_normal((tables, rows, _HIDDEN_WIDTH))
    table = np.arange(tables)[:, None]
    bags = vectors[table, ids].sum(axis=2)
    logits = 0.6 * numbers @ weights + values[table, ids].sum(axis=(1, 2))
    for pair in range(min(_HIDDEN_PAIRS, tables - 1)):
        logits += (bags[:, pair] * bags[:, pair + 1]).sum(axis=1)
    scaled: NDArray[np.float64] = (logits - logits.mean()) * (_LOGIT_DEVIATION / logits.std())
    return scaled


def build(preset: str = "criteo", data: str | None = None, **options: Any) -> RecommendationJob:
    """The job of a preset (see PRESETS), with fields of DlrmOptions in place of its own; ScenarioError lists all mistakes.

    >>> build("small").example_batch(2)[0][1].shape
    torch.Size([2, 8, 2])
    """
    return RecommendationJob(read_options(PRESETS, preset, options, data=data))
