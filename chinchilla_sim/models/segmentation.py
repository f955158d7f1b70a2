"""Health care: U-Net (Ronneberger, Fischer & Brox 2015) with same padding and batch norm, which marks pixels of an image.

No medical images come with the project. The data are the packaged handwritten digits on a noisy background; the mask
to find is where the pen was. The metric is intersection over union (0..1); marking everything gives about 0.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.models.digits import Digits, load_digits
from chinchilla_sim.models.generated import chunks_of, generator_of, predictions

DIGIT_PIXELS = 28
PEN = 96
NOISE = 0.35


def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Twice: 3x3 convolution, batch norm, ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(n, channels, side, side) -> logits (n, side, side); the side is divisible by 2^depth."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(double_convolution(i, o) for i, o in zip([channels, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.up = nn.ModuleList(double_convolution(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logit of every pixel."""
        skips = []
        for level in self.down[:-1]:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for grow, up, skip in zip(self.grow, self.up, reversed(skips), strict=True):
            x = up(torch.cat([skip, grow(x)], dim=1))
        return self.head(x).squeeze(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Segmentation:
    """The job; `build` makes one."""

    image_size: int
    channels: int
    width: int
    depth: int
    data: str | None

    def model(self) -> nn.Module:
        """A fresh U-Net."""
        return UNet(self.channels, self.width, self.depth)

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros: (size, channels, image_size, image_size) and masks (size, image_size, image_size), float32."""
        side = self.image_size
        return torch.zeros(size, self.channels, side, side), torch.zeros(size, side, side)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross entropy over all pixels."""
        return binary_cross_entropy_with_logits(outputs, targets)

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[tuple[Any, Tensor]]:
        """Chunks of noisy images with a digit at a random place, and where its pen was."""
        if self.channels != 1 or self.image_size < DIGIT_PIXELS:
            cure = "set options.channels = 1 and options.image_size = 32 to train on digits, or write a job with your images"
            raise ScenarioError([Mistake("model.options", "no images of this shape come with the project", cure)])
        generator, count = generator_of(split, seed, epoch)
        digits = self._digits.train.images if split == "train" else self._digits.validation.images
        count = min(count, len(digits))
        order = generator.permutation(len(digits))[:count]
        shifts = generator.integers(0, self.image_size - DIGIT_PIXELS + 1, size=(count, 2))
        clean = np.zeros((count, self.image_size, self.image_size), dtype=np.uint8)
        for index, (digit, (top, left)) in enumerate(zip(order, shifts, strict=True)):
            clean[index, top : top + DIGIT_PIXELS, left : left + DIGIT_PIXELS] = digits[digit]
        noisy = clean / 255 + generator.normal(scale=NOISE, size=clean.shape)
        return chunks_of((noisy[:, None].astype(np.float32),), (clean > PEN).astype(np.float32))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """intersection_over_union of all validation pixels together."""
        logits, masks = predictions(model, self.batches("validation", 0, 0))
        found, wanted = logits > 0, masks > 0.5
        return {"intersection_over_union": float((found & wanted).sum() / (found | wanted).sum().clamp(min=1))}

    @cached_property
    def _digits(self) -> Digits:
        return load_digits(self.data)


def build(image_size: int = 256, channels: int = 3, width: int = 64, depth: int = 4, data: str | None = None) -> Segmentation:
    """The job; ScenarioError lists all wrong sizes."""
    sizes = {"image_size": image_size, "channels": channels, "width": width, "depth": depth}
    mistakes = [Mistake(f"model.options.{name}", f"must be at least 1, not {size}") for name, size in sizes.items() if size < 1]
    if not mistakes and image_size % (1 << depth):
        cure = f"write {max(1, image_size >> depth) << depth}"
        mistakes.append(Mistake("model.options.image_size", f"{image_size} cannot be halved {depth} times", cure))
    if mistakes:
        raise ScenarioError(mistakes)
    return Segmentation(image_size, channels, width, depth, data)
