"""Health care: the U-Net that marks an organ or a tumour in an image (Ronneberger et al. 2015).

The paper's layout with padded convolutions, so that masks have the size of images, batch normalization behind every 3 x 3
convolution, and transposed convolutions on the way up. Parameters of the defaults: 31,036,481.

Data: scenes in place of patients: a real handwritten digit (`digits`), no brighter than half, somewhere in a noisy image
(normal noise of deviation 0.25) beside a bar as bright as the digit; the mask is the digit's pixels alone. 1,500 scenes
train, 300 with other digits validate. Needs channels = 1, classes = 1 and image_size from 32 to 64.
Preset "small" (one thread):
6 epochs of Adam, batches of 32, 3e-3 falling to 0: intersection over union 0.719 after 12 s (0.235 by a threshold).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from chinchilla_sim.errors import Mistake
from chinchilla_sim.models import digits
from chinchilla_sim.models.options import Options, read_options
from chinchilla_sim.models.samples import SampleJob, Samples, Splits, missing_data, predict
from chinchilla_sim.options import mistake

_TRAIN_COUNT, _VALIDATION_COUNT = 1_500, 300
_SMALLEST, _LARGEST = 32, 64
_INK = 128
_BRIGHTNESS = 0.5
_NOISE = 0.25


@dataclass(frozen=True)
class UNetOptions(Options):
    """Shape of the network: `width` of the first level, doubled `depth` times; masks have `classes` channels."""

    image_size: int = 256
    channels: int = 1
    classes: int = 1
    width: int = 64
    depth: int = 4

    def mistakes(self) -> list[Mistake]:
        """Every level halves the image."""
        step = 2**self.depth
        if self.image_size % step == 0:
            return []
        what = f"{self.image_size} cannot be halved {self.depth} times"
        return [mistake("image_size", what, f"write {step * max(round(self.image_size / step), 1)}")]


PRESETS = {
    "unet": UNetOptions(),
    "small": UNetOptions(image_size=40, width=8, depth=2),
}


def _double(fan_in: int, fan_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for width in (fan_in, fan_out):
        layers += [nn.Conv2d(width, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Levels down, levels up, each joined with the one of its size."""

    def __init__(self, options: UNetOptions) -> None:
        super().__init__()
        widths = [options.width << level for level in range(options.depth + 1)]
        self.first = _double(options.channels, options.width)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_double(width, 2 * width) for width in widths[:-1])
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        self.up = nn.ModuleList(_double(2 * width, width) for width in reversed(widths[:-1]))
        self.last = nn.Conv2d(options.width, options.classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, classes, h, w) logits of the mask."""
        levels = [self.first(images)]
        for down in self.down:
            levels.append(down(self.pool(levels[-1])))
        x = levels.pop()
        for rise, up in zip(self.rise, self.up, strict=True):
            x = up(torch.cat([levels.pop(), rise(x)], dim=1))
        return self.last(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SegmentationJob(SampleJob):
    """A job: network, loss and scenes."""

    options: UNetOptions
    data: str | None = None

    def model(self) -> nn.Module:
        """A fresh network on torch's default device."""
        return UNet(self.options)

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros: images float32 (size, channels, image_size, image_size), masks float32 (size, classes, image_size, image_size)."""
        side = self.options.image_size
        return torch.zeros(size, self.options.channels, side, side), torch.zeros(size, self.options.classes, side, side)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross entropy in nats over pixels and samples."""
        return binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_iou, intersection over union of all validation masks together (0..1); validation_loss (nats); and
        threshold_iou, what the best single brightness reaches that tells digit from background."""
        outputs, targets = predict(model, self.splits.validation)
        images = torch.from_numpy(self.splits.validation.inputs[0])
        best = max(intersection_over_union(images > level / 20, targets > 0.5) for level in range(20))
        iou = intersection_over_union(outputs > 0, targets > 0.5)
        return {"validation_iou": iou, "validation_loss": float(self.loss(outputs, targets)), "threshold_iou": best}

    def load_splits(self) -> Splits:
        """Scenes and masks, float32 (count, 1, image_size, image_size)."""
        options = self.options
        if (options.channels, options.classes) != (1, 1) or not _SMALLEST <= options.image_size <= _LARGEST:
            what = f"{options.channels} channels, {options.classes} classes and {options.image_size} x {options.image_size} pixels"
            raise missing_data(what, f"scenes need channels = 1, classes = 1 and image_size from {_SMALLEST} to {_LARGEST}")
        loaded = digits.load_digits(self.data)
        parts = ((loaded.train, _TRAIN_COUNT), (loaded.validation, _VALIDATION_COUNT))
        return Splits(*(draw_scenes(part, count, options.image_size, seed) for seed, (part, count) in enumerate(parts)))


def intersection_over_union(marked: Tensor, mask: Tensor) -> float:
    """Share of pixels in both among pixels in either; 1 where both are empty."""
    union = int((marked | mask).sum())
    return int((marked & mask).sum()) / union if union else 1.0


def draw_scenes(part: digits.Samples, count: int, side: int, seed: int) -> Samples:
    """The first `count` digits, each somewhere in its own noisy image beside a bar."""
    generator = np.random.default_rng(seed)
    images = part.images[:count]
    rows, columns = images.shape[1:]
    scenes = np.zeros((len(images), 1, side, side), np.float32)
    masks = np.zeros_like(scenes)
    for scene, mask, image in zip(scenes, masks, images, strict=True):
        top, left = generator.integers(side - rows + 1), generator.integers(side - columns + 1)
        bar = int(generator.integers(side - 3))
        place = (0, slice(top, top + rows), slice(left, left + columns))
        (scene[0] if generator.random() < 0.5 else scene[0].T)[bar : bar + 3] = _BRIGHTNESS
        scene[place] = np.maximum(scene[place], _BRIGHTNESS * image.astype(np.float32) / 255)
        mask[place] = image >= _INK
    scenes += generator.normal(0, _NOISE, scenes.shape).astype(np.float32)
    return Samples((scenes,), masks)


def build(preset: str = "unet", data: str | None = None, **options: Any) -> SegmentationJob:
    """The job of a preset (see PRESETS), with fields of UNetOptions in place of its own; ScenarioError lists all mistakes.

    >>> build("small").example_batch(2)[0].shape
    torch.Size([2, 1, 40, 40])
    """
    return SegmentationJob(read_options(PRESETS, preset, options), data)
