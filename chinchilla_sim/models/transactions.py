"""Finance: a GRU (Cho et al. 2014) over the last transactions of an account that says whether the newest is fraud.

The data are generated. Fraud is: the newest log-amount is above 1 right behind a short gap (one of the
three before it below -0.5), with NOISE of all labels flipped; the best possible accuracy is 1 - NOISE.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.models.generated import chunks_of, generator_of, predictions

NOISE = 0.02
LARGE, SHORT = 1.0, -0.5


class Accounts(nn.Module):
    """merchants (n, steps) int64 and (log-amount, log-gap) (n, steps, 2) float32 -> scores (n, 2)."""

    def __init__(self, merchants: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.merchants = nn.Embedding(merchants, embedding)
        self.recurrence = nn.GRU(embedding + 2, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, 2)

    def forward(self, merchants: Tensor, numbers: Tensor) -> Tensor:
        """Scores of honest and fraud."""
        states, _ = self.recurrence(torch.cat([self.merchants(merchants), numbers], dim=2))
        return self.head(states[:, -1])  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Transactions:
    """The job; `build` makes one."""

    steps: int
    merchants: int
    embedding: int
    hidden: int
    layers: int

    def model(self) -> nn.Module:
        """A fresh network."""
        return Accounts(self.merchants, self.embedding, self.hidden, self.layers)

    def example_batch(self, size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((size, steps) int64, (size, steps, 2) float32), labels (size,) int64; zeros."""
        inputs = torch.zeros(size, self.steps, dtype=torch.int64), torch.zeros(size, self.steps, 2)
        return inputs, torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats of scores (n, 2)."""
        return cross_entropy(outputs, targets)

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[tuple[Any, Tensor]]:
        """Chunks of generated accounts."""
        generator, count = generator_of(split, seed, epoch)
        merchants = generator.integers(0, self.merchants, size=(count, self.steps))
        numbers = generator.normal(size=(count, self.steps, 2)).astype(np.float32)
        burst = (numbers[:, -4:-1, 1] < SHORT).sum(axis=1) >= 1
        fraud = (numbers[:, -1, 0] > LARGE) & burst
        flipped = generator.random(count) < NOISE
        return chunks_of((merchants.astype(np.int64), numbers), (fraud ^ flipped).astype(np.int64))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_accuracy, and that of always saying honest."""
        scores, labels = predictions(model, self.batches("validation", 0, 0))
        accuracy = (scores.argmax(dim=1) == labels).double().mean()
        return {"validation_accuracy": float(accuracy), "accuracy_of_no_alarm": float((labels == 0).double().mean())}


def build(
    steps: int = 128, merchants: int = 10_000, embedding: int = 64, hidden: int = 512, layers: int = 2, data: str | None = None
) -> Transactions:
    """The job; ScenarioError lists all sizes that are too small."""
    sizes = {"merchants": merchants, "embedding": embedding, "hidden": hidden, "layers": layers}
    mistakes = [Mistake(f"model.options.{name}", f"must be at least 1, not {size}") for name, size in sizes.items() if size < 1]
    if steps < 4:
        mistakes.append(Mistake("model.options.steps", f"must be at least 4, not {steps}", "fraud shows in the last four"))
    if mistakes:
        raise ScenarioError(mistakes)
    return Transactions(steps, merchants, embedding, hidden, layers)
