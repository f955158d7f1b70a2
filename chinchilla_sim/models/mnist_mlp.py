"""The classic small network on handwritten digits: 784-512-10, a ReLU between the layers, cross entropy.

Accuracy on the 1,000 packaged validation digits, after 30 epochs of Adam with batches of 64 and shifts of one pixel, mean of
seeds 0, 1, 2: 97.6 % at 3e-3 falling linearly to 0, 97.4 % at a constant 1e-3 (95.8 % without shifts).
The standard error of 1,000 digits is 0.5 %.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.models.digits import Digits, Samples, load_digits, random_shift
from chinchilla_sim.models.samples import evaluating

_CHUNK_SAMPLES = 4_096  # bounds the memory of float images; shuffling is over the whole epoch


@dataclass(frozen=True)
class MnistMlp:
    """A job: network, loss and data. `build` makes one; planning it reads no file, `batches` and `evaluate` do."""

    data: str | None
    widths: tuple[int, ...]
    shift_pixels: int

    def model(self) -> nn.Module:
        """Linear layers with ReLU between them; parameters from torch's global generator, on its default device."""
        layers = [layer for fan_in, fan_out in pairwise(self.widths) for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())]
        return nn.Sequential(*layers[:-1])

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros of a batch's shapes: float32 (size, widths[0]) and int64 (size,), on torch's default device."""
        return torch.zeros(size, self.widths[0]), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats of outputs (size, classes) against targets (size,)."""
        return cross_entropy(outputs, targets)

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of (inputs, targets) on the CPU: pixels 0..1, float32 (n, widths[0]); labels, int64 (n,).

        "train" is shuffled and shifted by (seed, epoch), both >= 0, and by nothing else, so all ranks get the same bytes;
        "validation" is always the same. Chunks have any size. ValueError for another split, ScenarioError for wrong files.
        """
        if split == "train":
            return self._train_batches(np.random.default_rng((seed, epoch)))
        if split == "validation":
            return self._validation_batches()
        raise ValueError(f'split must be "train" or "validation", not {split!r}')

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_accuracy (0..1) and validation_loss (mean nats) of a model on the CPU; its training flags stay as they are."""
        with evaluating(model):
            outputs, targets = zip(*((model(inputs), targets) for inputs, targets in self._validation_batches()), strict=True)
        scores, labels = torch.cat(outputs), torch.cat(targets)
        accuracy = (scores.argmax(dim=1) == labels).double().mean()
        return {"validation_accuracy": float(accuracy), "validation_loss": float(self.loss(scores, labels))}

    @cached_property
    def _digits(self) -> Digits:
        digits = load_digits(self.data)
        _check_fit(digits, self.widths, self.data)
        return digits

    def _train_batches(self, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        samples = self._digits.train
        for indices in _chunks(generator.permutation(len(samples.labels))):
            chunk = samples.select(indices)
            yield _tensors(Samples(random_shift(chunk.images, generator, self.shift_pixels), chunk.labels))

    def _validation_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = self._digits.validation
        for indices in _chunks(np.arange(len(samples.labels))):
            yield _tensors(samples.select(indices))


def build(data: str | None = None, widths: Sequence[int] = (784, 512, 10), shift_pixels: int = 1) -> MnistMlp:
    """The job for packaged digits (data None or "digits") or a folder of MNIST files; ScenarioError lists all wrong arguments.

    >>> build(widths=(784, 2048, 2048, 10)).example_batch(64)[0].shape
    torch.Size([64, 784])
    """
    mistakes = []
    if len(widths) < 2 or any(width < 1 for width in widths):
        mistakes.append(Mistake("widths", f"needs two or more widths >= 1, not {list(widths)}", "write for example [784, 512, 10]"))
    if shift_pixels < 0:
        mistakes.append(Mistake("shift_pixels", f"must be at least 0, not {shift_pixels}", "write 0 for no shifts"))
    if mistakes:
        raise ScenarioError(mistakes)
    return MnistMlp(data, tuple(widths), shift_pixels)


def _check_fit(digits: Digits, widths: tuple[int, ...], data: str | None) -> None:
    rows, columns = digits.train.images.shape[1:]
    class_count = 1 + int(max(digits.train.labels.max(), digits.validation.labels.max()))
    mistakes = []
    if widths[0] != rows * columns:
        mistakes.append(Mistake("widths", f"starts with {widths[0]}, but images have {rows} x {columns} pixels", f"write {rows * columns}"))
    if widths[-1] < class_count:
        mistakes.append(Mistake("widths", f"ends with {widths[-1]}, but labels go up to {class_count - 1}", f"write {class_count}"))
    if mistakes:
        raise ScenarioError(mistakes, source=data)


def _chunks(indices: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    return (indices[start : start + _CHUNK_SAMPLES] for start in range(0, len(indices), _CHUNK_SAMPLES))


def _tensors(samples: Samples) -> tuple[Tensor, Tensor]:
    pixels = samples.images.reshape(len(samples.images), -1).astype(np.float32) / np.float32(255)
    return torch.from_numpy(pixels), torch.from_numpy(samples.labels.astype(np.int64))
