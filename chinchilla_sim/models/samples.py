"""What the built-in jobs share: samples in arrays, their batches, and the evaluation of a model on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chinchilla_sim.errors import Mistake, ScenarioError

Batch = tuple[Tensor | tuple[Tensor, ...], Tensor]
_CHUNK_SAMPLES = 1_024
_EVALUATED_SAMPLES = 250


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Arrays whose first dim is the sample: those that the model takes, in order, and the targets."""

    inputs: tuple[NDArray[Any], ...]
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: NDArray[np.intp]) -> Batch:
        """Tensors of the samples at these indices; one array of inputs gives one tensor, several give a tuple."""
        inputs = tuple(torch.from_numpy(array[indices]) for array in self.inputs)
        return inputs if len(inputs) > 1 else inputs[0], torch.from_numpy(self.targets[indices])


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Samples to train on and, disjoint from them, samples to validate with."""

    train: Samples
    validation: Samples


@dataclass(frozen=True)
class SampleJob(ABC):
    """A job whose samples are all made, or read, when the first batch is asked for; planning makes none."""

    @abstractmethod
    def load_splits(self) -> Splits:
        """All samples; ScenarioError where there are none of the model's shapes."""

    @cached_property
    def splits(self) -> Splits:
        """All samples, made once."""
        return self.load_splits()

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[Batch]:
        """Chunks on the CPU: "train" shuffled by (seed, epoch) and by nothing else, "validation" always the same.

        ValueError for another split, ScenarioError where there are no data; both at the call.
        """
        if split not in ("train", "validation"):
            raise ValueError(f'split must be "train" or "validation", not {split!r}')
        samples = self.splits.train if split == "train" else self.splits.validation
        count = len(samples)
        order = np.random.default_rng((seed, epoch)).permutation(count) if split == "train" else np.arange(count)
        return (samples.batch(indices) for indices in chunks(order, _CHUNK_SAMPLES))


def chunks(indices: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Indices in pieces of `size`, the last one shorter."""
    return (indices[start : start + size] for start in range(0, len(indices), size))


def draw_split(count: int, validation_count: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Sorted indices to train on and to validate with, drawn once and for all by the seed."""
    # RandomState, unlike default_rng, promises the same numbers in every NumPy: accuracies stay comparable
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[validation_count:]), np.sort(order[:validation_count])


def predict(model: nn.Module, samples: Samples) -> tuple[Tensor, Tensor]:
    """Outputs for all samples, and their targets, on the CPU, in evaluation mode."""
    device = next(model.parameters()).device
    outputs, targets = [], []
    with evaluating(model):
        for indices in chunks(np.arange(len(samples)), _EVALUATED_SAMPLES):
            inputs, target = samples.batch(indices)
            parts = inputs if isinstance(inputs, tuple) else (inputs,)
            outputs.append(model(*(part.to(device) for part in parts)).float().cpu())
            targets.append(target)
    return torch.cat(outputs), torch.cat(targets)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own training flag comes back."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


def missing_data(what: str, needed: str) -> ScenarioError:
    """The error of a job without data: `what` the model computes with, and what it would `need` for the data that exist."""
    cure = f'{needed}, as options = {{ preset = "small" }} has, or write a factory whose batches() read your own data'
    return ScenarioError([Mistake("model.options", f"there are no data for {what}", cure)])
