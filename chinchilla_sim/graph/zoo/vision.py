"""Image classifiers from their shape parameters; layers and parameter names are torchvision's.

    alexnet       five convolutions, three dense layers (Krizhevsky 2014, "one weird trick")
    vgg16         thirteen convolutions of 3 x 3, three dense layers (Simonyan 2015)
    resnet        depth 18, 34 (basic blocks), 50, 101, 152 (bottlenecks, stride in the 3 x 3 convolution; He 2016)
    inception_v3  blocks of parallel branches, with an auxiliary head while training (Szegedy 2016)

Each takes `batch_size` and the fields of its dataclass by keyword.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.layers import Layers
from chinchilla_sim.graph.zoo.options import shape_of

RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_DEPTH = 50
"""From this depth on, blocks have three convolutions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageShape:
    """Images of `image_size` squared, and how many classes they fall into."""

    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    dropout: float = 0.5

    def mistakes(self) -> list[Mistake]:
        """Images that are too small are found while the graph is built."""
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class ResnetShape:
    """`width` is that of the first layers (64 in all published ones)."""

    depth: int = field(metadata={"choices": tuple(RESNET_BLOCKS)})
    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    width: int = 64

    def mistakes(self) -> list[Mistake]:
        """Images that are too small are found while the graph is built."""
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class InceptionShape(ImageShape):
    """`auxiliary` adds the second head, which runs only while training."""

    image_size: int = 299
    auxiliary: bool = True


def alexnet(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """AlexNet, with the fields of `ImageShape` as options.

    >>> alexnet(batch_size=1).parameter_count
    61100840
    """
    shape = shape_of(ImageShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    x = _pixels(net, shape.channels, shape.image_size)
    for index, (outputs, kernel, stride, padding) in {
        0: (64, 11, 4, 2), 3: (192, 5, 1, 2), 6: (384, 3, 1, 1), 8: (256, 3, 1, 1), 10: (256, 3, 1, 1),
    }.items():  # fmt: skip
        x = net.same("relu", net.convolution(x, f"features.{index}", outputs, kernel, stride, padding), f"features.{index + 1}")
        if index in (0, 3, 10):
            x = net.pool("max_pool2d", x, 3, 2, path=f"features.{index + 2}")
    x = net.flat(net.pool_to(x, 6, "avgpool"))
    for index, dropout in ((1, 0), (4, 3)):
        x = net.dropout(x, shape.dropout, f"classifier.{dropout}")
        x = net.same("relu", net.linear(x, f"classifier.{index}", 4096), f"classifier.{index + 1}")
    return net.finish(net.linear(x, "classifier.6", shape.classes), "alexnet", "alexnet")


def vgg16(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """VGG-16 without batch norm, with the fields of `ImageShape` as options.

    >>> vgg16(batch_size=1).parameter_count
    138357544
    """
    shape = shape_of(ImageShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    x, index = _pixels(net, shape.channels, shape.image_size), 0
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = net.same("relu", net.convolution(x, f"features.{index}", outputs, 3, padding=1), f"features.{index + 1}")
            index += 2
        x = net.pool("max_pool2d", x, 2, 2, path=f"features.{index}")
        index += 1
    x = net.flat(net.pool_to(x, 7, "avgpool"))
    for index in (0, 3):
        x = net.same("relu", net.linear(x, f"classifier.{index}", 4096), f"classifier.{index + 1}")
        x = net.dropout(x, shape.dropout, f"classifier.{index + 2}")
    return net.finish(net.linear(x, "classifier.6", shape.classes), "vgg16", "vgg16")


def resnet(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """ResNet, with the fields of `ResnetShape` as options.

    >>> resnet(batch_size=1, depth=50).parameter_count
    25557032
    """
    shape = shape_of(ResnetShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    x = _pixels(net, shape.channels, shape.image_size)
    x = net.batch_norm(net.convolution(x, "conv1", shape.width, 7, 2, 3, bias=False), "bn1")
    x = net.pool("max_pool2d", net.same("relu", x, "relu"), 3, 2, 1, "maxpool")
    for stage, count in enumerate(RESNET_BLOCKS[shape.depth]):
        for block in range(count):
            stride = 2 if stage and not block else 1
            x = _residual(net, x, f"layer{stage + 1}.{block}", shape.width * 2**stage, stride, shape.depth >= BOTTLENECK_DEPTH)
    x = net.flat(net.pool_to(x, 1, "avgpool"))
    return net.finish(net.linear(x, "fc", shape.classes), "resnet", f"resnet{shape.depth}")


def _residual(net: Layers, x: str, path: str, width: int, stride: int, bottleneck: bool) -> str:
    outputs = 4 * width if bottleneck else width
    kernels = ((width, 1, 1), (width, 3, stride), (outputs, 1, 1)) if bottleneck else ((width, 3, stride), (width, 3, 1))
    y = x
    for index, (channels, kernel, step) in enumerate(kernels, start=1):
        y = net.convolution(y, f"{path}.conv{index}", channels, kernel, step, kernel // 2, bias=False)
        y = net.batch_norm(y, f"{path}.bn{index}")
        if index < len(kernels):
            y = net.same("relu", y, f"{path}.relu")
    if stride > 1 or net.shape(x)[1] != outputs:
        x = net.batch_norm(net.convolution(x, f"{path}.downsample.0", outputs, 1, stride, bias=False), f"{path}.downsample.1")
    return net.same("relu", net.join("add", y, x, path), f"{path}.relu")


def inception_v3(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """Inception v3, with the fields of `InceptionShape` as options; the auxiliary head's own loss is not in the graph.

    >>> inception_v3(batch_size=1).parameter_count, inception_v3(batch_size=1, auxiliary=False).parameter_count
    (27161264, 23834568)
    """
    shape = shape_of(InceptionShape, options, batch_size)
    net = _Inception(Layers(batch_size, training, value_bytes))
    x = _pixels(net.layers, shape.channels, shape.image_size)
    x = net.conv(x, "Conv2d_1a_3x3", 32, 3, 2)
    x = net.conv(x, "Conv2d_2a_3x3", 32, 3)
    x = net.conv(x, "Conv2d_2b_3x3", 64, 3, padding=1)
    x = net.layers.pool("max_pool2d", x, 3, 2, path="maxpool1")
    x = net.conv(x, "Conv2d_3b_1x1", 80, 1)
    x = net.conv(x, "Conv2d_4a_3x3", 192, 3)
    x = net.layers.pool("max_pool2d", x, 3, 2, path="maxpool2")
    for name, features in (("5b", 32), ("5c", 64), ("5d", 64)):
        x = net.block_a(x, f"Mixed_{name}", features)
    x = net.block_b(x, "Mixed_6a")
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        x = net.block_c(x, f"Mixed_{name}", width)
    if shape.auxiliary:
        net.auxiliary(x, shape.classes)
    x = net.block_d(x, "Mixed_7a")
    x = net.block_e(net.block_e(x, "Mixed_7b"), "Mixed_7c")
    x = net.layers.dropout(net.layers.pool_to(x, 1, "avgpool"), shape.dropout, "dropout")
    return net.layers.finish(net.layers.linear(net.layers.flat(x), "fc", shape.classes), "inception_v3", "inception-v3")


class _Inception:
    """The blocks of Inception v3, named as torchvision names them (A to E); each joins its branches along the channels."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers

    def conv(
        self, x: str, path: str, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> str:
        """Convolution, batch norm, ReLU."""
        x = self.layers.convolution(x, f"{path}.conv", outputs, kernel, stride, padding, bias=False)
        return self.layers.same("relu", self.layers.batch_norm(x, f"{path}.bn"), path)

    def block_a(self, x: str, path: str, features: int) -> str:
        """1 x 1, 5 x 5, two 3 x 3 and a pooled branch."""
        one = self.conv(x, f"{path}.branch1x1", 64, 1)
        five = self.conv(self.conv(x, f"{path}.branch5x5_1", 48, 1), f"{path}.branch5x5_2", 64, 5, padding=2)
        three = self._double(x, path, 64, 96, stride=1)
        return self._cat(path, one, five, three, self._pooled(x, path, features))

    def block_b(self, x: str, path: str) -> str:
        """Halves the image: 3 x 3, two 3 x 3 and a maximum."""
        three = self.conv(x, f"{path}.branch3x3", 384, 3, 2)
        return self._cat(path, three, self._double(x, path, 64, 96, stride=2), self.layers.pool("max_pool2d", x, 3, 2, path=path))

    def block_c(self, x: str, path: str, width: int) -> str:
        """1 x 1, and 7 x 7 as rows and columns once and twice."""
        row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        one = self.conv(x, f"{path}.branch1x1", 192, 1)
        seven = self.conv(x, f"{path}.branch7x7_1", width, 1)
        for index, (outputs, (kernel, padding)) in enumerate(((width, row), (192, column)), start=2):
            seven = self.conv(seven, f"{path}.branch7x7_{index}", outputs, kernel, padding=padding)
        twice = self.conv(x, f"{path}.branch7x7dbl_1", width, 1)
        for index, (outputs, (kernel, padding)) in enumerate(((width, column), (width, row), (width, column), (192, row)), start=2):
            twice = self.conv(twice, f"{path}.branch7x7dbl_{index}", outputs, kernel, padding=padding)
        return self._cat(path, one, seven, twice, self._pooled(x, path, 192))

    def block_d(self, x: str, path: str) -> str:
        """Halves the image: 3 x 3, 7 x 7 with 3 x 3, and a maximum."""
        three = self.conv(self.conv(x, f"{path}.branch3x3_1", 192, 1), f"{path}.branch3x3_2", 320, 3, 2)
        seven = self.conv(x, f"{path}.branch7x7x3_1", 192, 1)
        seven = self.conv(seven, f"{path}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        seven = self.conv(seven, f"{path}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        seven = self.conv(seven, f"{path}.branch7x7x3_4", 192, 3, 2)
        return self._cat(path, three, seven, self.layers.pool("max_pool2d", x, 3, 2, path=path))

    def block_e(self, x: str, path: str) -> str:
        """1 x 1, and two branches that each split into a row and a column."""
        one = self.conv(x, f"{path}.branch1x1", 320, 1)
        three = self._split(self.conv(x, f"{path}.branch3x3_1", 384, 1), path, "branch3x3_2")
        twice = self.conv(self.conv(x, f"{path}.branch3x3dbl_1", 448, 1), f"{path}.branch3x3dbl_2", 384, 3, padding=1)
        return self._cat(path, one, three, self._split(twice, path, "branch3x3dbl_3"), self._pooled(x, path, 192))

    def auxiliary(self, x: str, classes: int) -> None:
        """The second head: tasks when training, otherwise only its parameters."""
        net, path = self.layers, "AuxLogits"
        if net.training:
            net.builder.notes.append("the auxiliary head runs, but its loss is not in the graph")
            x = self.conv(net.pool("avg_pool2d", x, 5, 3, path=path), f"{path}.conv0", 128, 1)
            x = net.pool_to(self.conv(x, f"{path}.conv1", 768, 5), 1, path)
            net.linear(net.flat(x), f"{path}.fc", classes)
            return
        for name, channels, outputs, kernel in (("conv0", net.shape(x)[1], 128, 1), ("conv1", 128, 768, 5)):
            net.weight(f"{path}.{name}.conv.weight", outputs, channels, kernel, kernel)
            net.batch_norm_weights(f"{path}.{name}.bn", outputs)
        net.weight(f"{path}.fc.weight", classes, 768)
        net.weight(f"{path}.fc.bias", classes)

    def _double(self, x: str, path: str, narrow: int, wide: int, stride: int) -> str:
        x = self.conv(self.conv(x, f"{path}.branch3x3dbl_1", narrow, 1), f"{path}.branch3x3dbl_2", wide, 3, padding=1)
        return self.conv(x, f"{path}.branch3x3dbl_3", wide, 3, stride, padding=1 if stride == 1 else 0)

    def _pooled(self, x: str, path: str, outputs: int) -> str:
        return self.conv(self.layers.pool("avg_pool2d", x, 3, 1, 1, path), f"{path}.branch_pool", outputs, 1)

    def _split(self, x: str, path: str, name: str) -> str:
        row = self.conv(x, f"{path}.{name}a", 384, (1, 3), padding=(0, 1))
        return self._cat(path, row, self.conv(x, f"{path}.{name}b", 384, (3, 1), padding=(1, 0)))

    def _cat(self, path: str, *branches: str) -> str:
        batch, _, *sides = self.layers.shape(branches[0])
        channels = sum(self.layers.shape(branch)[1] for branch in branches)
        return self.layers.apply("cat", branches, (batch, channels, *sides), path, attributes={"dim": 1})


def _pixels(net: Layers, channels: int, side: int) -> str:
    return net.builder.input("pixels", (net.batch_size, channels, side, side))
