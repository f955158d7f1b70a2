"""Recommendation: DLRM (Naumov et al. 2019), embedding tables, pairwise dot products and two dense towers.

The data are generated: a click is drawn with the probability that a hidden linear model of the features gives. No
model can predict such clicks better than the hidden one; `evaluate` reports its accuracy as `best_possible_accuracy`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.models.generated import chunks_of, generator_of, predictions

DENSE_FEATURES = 13
HIDDEN_SEED = 13


def tower(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU behind each."""
    return nn.Sequential(*(layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())))


class Dlrm(nn.Module):
    """dense (n, 13) float32 and ids (n, tables, bag) int64 -> logits (n,)."""

    def __init__(self, tables: int, rows: int, width: int, bottom: Sequence[int], top: Sequence[int]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        self.bottom = tower((DENSE_FEATURES, *bottom, width))
        pairs = (tables + 1) * tables // 2
        self.top = tower((width + pairs, *top))
        self.head = nn.Linear(top[-1], 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logit of a click."""
        below = self.bottom(dense)
        vectors = torch.stack([below, *(table(ids[:, index]) for index, table in enumerate(self.tables))], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        row, column = torch.triu_indices(vectors.shape[1], vectors.shape[1], offset=1, device=dense.device)
        return self.head(self.top(torch.cat([below, products[:, row, column]], dim=1))).squeeze(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Recommendation:
    """The job; `build` makes one."""

    tables: int
    rows: int
    bag: int
    width: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]

    def model(self) -> nn.Module:
        """A fresh DLRM."""
        return Dlrm(self.tables, self.rows, self.width, self.bottom, self.top)

    def example_batch(self, size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((size, 13) float32, (size, tables, bag) int64), clicks (size,) float32; zeros."""
        ids = torch.zeros(size, self.tables, self.bag, dtype=torch.int64)
        return (torch.zeros(size, DENSE_FEATURES), ids), torch.zeros(size)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross entropy of logits (n,)."""
        return binary_cross_entropy_with_logits(outputs, targets)

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[tuple[Any, Tensor]]:
        """Chunks of generated visits and clicks."""
        dense, ids, clicks, _ = self._visits(split, seed, epoch)
        return chunks_of((dense, ids), clicks)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_accuracy, and what the hidden model that drew the clicks reaches."""
        logits, clicks = predictions(model, self.batches("validation", 0, 0))
        *_, labels, probability = self._visits("validation", 0, 0)
        best = float(((probability > 0.5) == (labels > 0.5)).mean())
        return {"validation_accuracy": float(((logits > 0) == (clicks > 0.5)).double().mean()), "best_possible_accuracy": best}

    def _visits(self, split: str, seed: int, epoch: int) -> tuple[Any, Any, Any, Any]:
        generator, count = generator_of(split, seed, epoch)
        hidden = np.random.default_rng(HIDDEN_SEED)
        weights, effects = hidden.normal(size=DENSE_FEATURES), hidden.normal(size=(self.tables, self.rows))
        dense = generator.normal(size=(count, DENSE_FEATURES)).astype(np.float32)
        ids = generator.integers(0, self.rows, size=(count, self.tables, self.bag))
        chosen = effects[np.arange(self.tables)[None, :, None], ids].sum(axis=(1, 2))
        probability = 1 / (1 + np.exp(-(dense @ weights + chosen)))
        clicks = (generator.random(count) < probability).astype(np.float32)
        return dense, ids.astype(np.int64), clicks, probability


def build(
    tables: int = 26,
    rows: int = 1_000_000,
    bag: int = 1,
    width: int = 128,
    bottom: Sequence[int] = (512, 256),
    top: Sequence[int] = (1024, 1024, 512, 256),
    data: str | None = None,
) -> Recommendation:
    """The job; ScenarioError lists all sizes below 1."""
    sizes = {"tables": tables, "rows": rows, "bag": bag, "width": width, "bottom": min(bottom, default=0), "top": min(top, default=0)}
    mistakes = [Mistake(f"model.options.{name}", f"must be at least 1, not {size}") for name, size in sizes.items() if size < 1]
    if mistakes:
        raise ScenarioError(mistakes)
    return Recommendation(tables, rows, bag, width, tuple(bottom), tuple(top))
