"""What jobs on generated data share: chunks of NumPy arrays as tensors, evaluation, and a guard for full-size shapes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TRAIN_SAMPLES = 4_096
VALIDATION_SAMPLES = 1_024
CHUNK_SAMPLES = 256
VALIDATION_KEY = 1 << 20

Arrays = Sequence[NDArray[Any]]


def generator_of(split: str, seed: int, epoch: int) -> tuple[np.random.Generator, int]:
    """Random numbers and sample count of a split: fresh samples every epoch, validation always the same and never trained on."""
    if split == "train":
        return np.random.default_rng((seed, epoch)), TRAIN_SAMPLES
    if split == "validation":
        return np.random.default_rng((VALIDATION_KEY, 0, 0)), VALIDATION_SAMPLES
    raise ValueError(f'split must be "train" or "validation", not {split!r}')


def chunks_of(inputs: Arrays, targets: NDArray[Any]) -> Iterator[tuple[Any, Tensor]]:
    """(inputs, targets) in chunks; inputs are a tuple where there are several."""
    for start in range(0, len(targets), CHUNK_SAMPLES):
        part = slice(start, start + CHUNK_SAMPLES)
        tensors = tuple(torch.from_numpy(array[part]) for array in inputs)
        yield tensors if len(tensors) > 1 else tensors[0], torch.from_numpy(targets[part])


def predictions(model: nn.Module, batches: Iterator[tuple[Any, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs and targets of all batches, in evaluation mode, without gradients."""
    outputs, targets = [], []
    with evaluating(model):
        for inputs, target in batches:
            outputs.append(model(*inputs) if isinstance(inputs, tuple) else model(inputs))
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
