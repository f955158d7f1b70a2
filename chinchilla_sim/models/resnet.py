"""Image recognition: residual networks (He et al. 2016), with the stride of a bottleneck in its 3 x 3 convolution.

That placement ("v1.5") is the one of the networks usually trained. Parameters at 1,000 classes and 3 channels:
resnet18 11,689,512; resnet34 21,797,672; resnet50 25,557,032; resnet101 44,549,160; resnet152 60,192,808.

Data: handwritten digits (28 x 28, one channel, ten classes), the packaged ones or a folder of IDX files of the model's size.
Preset "small" (77,858 parameters, ten layers, one thread):
2 epochs of Adam, batches of 64, 3e-3 falling to 0: 96.4 % of the validation digits after 10 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chinchilla_sim.models import digits
from chinchilla_sim.models.options import Options, read_options
from chinchilla_sim.models.samples import SampleJob, Samples, Splits, missing_data, predict

LAYERS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of the four groups by depth (He 2016, table 1; 10 is the smallest that keeps the shape)."""


@dataclass(frozen=True)
class ResNetOptions(Options):
    """Shape of the network: `width` is that of the first group; `small_stem` is 3 x 3 without pooling, for small images."""

    depth: int = field(default=50, metadata={"choices": tuple(LAYERS)})
    classes: int = 1_000
    image_size: int = 224
    channels: int = 3
    width: int = 64
    small_stem: bool = False


PRESETS = {
    "resnet50": ResNetOptions(),
    "resnet18": ResNetOptions(depth=18),
    "resnet34": ResNetOptions(depth=34),
    "resnet101": ResNetOptions(depth=101),
    "resnet152": ResNetOptions(depth=152),
    "small": ResNetOptions(depth=10, classes=10, image_size=28, channels=1, width=8, small_stem=True),
}


class _Residual(nn.Module):
    """relu(x + branch(x)); a 1 x 1 convolution brings x to the branch's shape where they differ."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, branch: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        same = fan_in == fan_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(_conv(fan_in, fan_out, 1, stride), nn.BatchNorm2d(fan_out))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, fan_in, h, w) -> (n, fan_out, h / stride, w / stride)."""
        return self.relu(self.branch(x) + self.shortcut(x))  # type: ignore[no-any-return]


def _conv(fan_in: int, fan_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, size, stride, padding=size // 2, bias=False)


def _basic(fan_in: int, width: int, stride: int) -> _Residual:
    branch = [_conv(fan_in, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(), _conv(width, width, 3), nn.BatchNorm2d(width)]
    return _Residual(fan_in, width, stride, branch)


def _bottleneck(fan_in: int, width: int, stride: int) -> _Residual:
    reduce = [_conv(fan_in, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
    middle = [_conv(width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
    return _Residual(fan_in, 4 * width, stride, [*reduce, *middle, _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)])


def _stem(options: ResNetOptions) -> nn.Sequential:
    size, stride = (3, 1) if options.small_stem else (7, 2)
    pool = [] if options.small_stem else [nn.MaxPool2d(3, 2, padding=1)]
    return nn.Sequential(_conv(options.channels, options.width, size, stride), nn.BatchNorm2d(options.width), nn.ReLU(), *pool)


class ResNet(nn.Sequential):
    """Stem, four groups of residual blocks, mean over the image, linear classifier."""

    def __init__(self, options: ResNetOptions) -> None:
        block, expansion = (_bottleneck, 4) if options.depth >= 50 else (_basic, 1)
        groups, fan_in = [], options.width
        for index, count in enumerate(LAYERS[options.depth]):
            width, blocks = options.width << index, []
            for position in range(count):
                blocks.append(block(fan_in, width, 2 if index and not position else 1))
                fan_in = expansion * width
            groups.append(nn.Sequential(*blocks))
        super().__init__(_stem(options), *groups, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, options.classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@dataclass(frozen=True)
class ImageJob(SampleJob):
    """A job: network, loss and digits."""

    options: ResNetOptions
    data: str | None = None

    def model(self) -> nn.Module:
        """A fresh network on torch's default device."""
        return ResNet(self.options)

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros: float32 (size, channels, image_size, image_size) and int64 (size,)."""
        side = self.options.image_size
        return torch.zeros(size, self.options.channels, side, side), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats of (n, classes) against (n,)."""
        return cross_entropy(outputs, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_accuracy (0..1; chance is 0.1 for digits) and validation_loss (mean nats)."""
        outputs, targets = predict(model, self.splits.validation)
        accuracy = (outputs.argmax(dim=1) == targets).double().mean()
        return {"validation_accuracy": float(accuracy), "validation_loss": float(self.loss(outputs, targets))}

    def load_splits(self) -> Splits:
        """Digits as float32 (count, 1, rows, columns), 0..1."""
        loaded, options = digits.load_digits(self.data), self.options
        rows, columns = loaded.train.images.shape[1:]
        classes = 1 + int(max(loaded.train.labels.max(), loaded.validation.labels.max()))
        if (options.channels, options.image_size, options.image_size) != (1, rows, columns) or options.classes < classes:
            what = f"{options.channels} channels of {options.image_size} x {options.image_size} pixels in {options.classes} classes"
            raise missing_data(what, f"the digits need channels = 1, image_size = {rows} and classes >= {classes}")
        return Splits(_samples(loaded.train), _samples(loaded.validation))


def _samples(part: digits.Samples) -> Samples:
    pixels: NDArray[np.float32] = part.images[:, None].astype(np.float32) / np.float32(255)
    return Samples((pixels,), part.labels.astype(np.int64))


def build(preset: str = "resnet50", data: str | None = None, **options: Any) -> ImageJob:
    """The job of a preset (see PRESETS), with fields of ResNetOptions in place of its own; ScenarioError lists all mistakes.

    >>> build("resnet18", image_size=64, classes=200).example_batch(2)[0].shape
    torch.Size([2, 3, 64, 64])
    """
    return ImageJob(read_options(PRESETS, preset, options), data)
