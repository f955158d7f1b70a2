"""Formulas of image classifiers against torchvision's published multiply-adds, and traces of the networks written here."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.graph.zoo import FORMULAS, PRESETS, alexnet, inception_v3, resnet, vgg16

BATCH = 2
GIGA_MULTIPLY_ADDS = {
    "alexnet": 0.71, "vgg16": 15.47, "resnet18": 1.81, "resnet34": 3.66, "resnet50": 4.09, "resnet101": 7.80, "resnet152": 11.51,
    "inception-v3": 5.71, "vit-b-16": 17.56,
}  # fmt: skip
"""torchvision's `_ops` of the weights' metadata."""


class Branches(nn.ModuleList):
    """Runs all branches on the same input and joins their channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width)."""
        return torch.cat([branch(x) for branch in self], 1)


class Residual(nn.Module):
    """`relu(body(x) + skip(x))`."""

    def __init__(self, body: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.body, self.skip = body, skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width)."""
        return torch.relu(self.body(x) + self.skip(x))


class WithAuxiliary(nn.Module):
    """Two heads while training: the main one's output first."""

    def __init__(self, stem: nn.Module, top: nn.Module, auxiliary: nn.Module) -> None:
        super().__init__()
        self.stem, self.top, self.auxiliary = stem, top, auxiliary

    def forward(self, x: Tensor) -> Any:
        """(batch, 3, height, width) -> (batch, classes)."""
        x = self.stem(x)
        if not self.training:
            return self.top(x)
        auxiliary = self.auxiliary(x)
        return self.top(x), auxiliary


def conv(inputs: int, outputs: int, kernel: Any, stride: int = 1, padding: Any = 0, relu: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def alexnet_module() -> nn.Module:
    """AlexNet of "one weird trick"."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride, padding, pool in (
        (3, 64, 11, 4, 2, True), (64, 192, 5, 1, 2, True), (192, 384, 3, 1, 1, False), (384, 256, 3, 1, 1, False),
        (256, 256, 3, 1, 1, True),
    ):  # fmt: skip
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True), *([nn.MaxPool2d(3, 2)] if pool else [])]
    dense = [nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6), nn.Flatten(), *dense, nn.Linear(4096, 1000))


def vgg16_module() -> nn.Module:
    """VGG-16, configuration D."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)] if outputs else [nn.MaxPool2d(2, 2)]
        inputs = outputs or inputs
    dense = [nn.Linear(25088, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *dense, nn.Linear(4096, 1000))


def resnet_module(blocks: tuple[int, ...], expansion: int) -> nn.Module:
    """ResNet of basic blocks (expansion 1) or bottlenecks (expansion 4)."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, count in zip((64, 128, 256, 512), blocks, strict=True):
        for block in range(count):
            stride, outputs = 2 if width > 64 and block == 0 else 1, expansion * width
            if expansion == 1:
                body = nn.Sequential(conv(inputs, width, 3, stride, 1), conv(width, width, 3, 1, 1, relu=False))
            else:
                body = nn.Sequential(conv(inputs, width, 1), conv(width, width, 3, stride, 1), conv(width, outputs, 1, relu=False))
            skip = conv(inputs, outputs, 1, stride, relu=False) if stride > 1 or inputs != outputs else nn.Identity()
            layers.append(Residual(body, skip))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def inception_module() -> nn.Module:
    """Inception v3 of Szegedy 2016, figures 5 to 7 and 10."""

    def pooled(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(inputs, outputs, 1))

    def rows(inputs: int, *widths: int, column_first: bool) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for index, (i, o) in enumerate(zip((inputs, *widths), widths, strict=False)):
            column = column_first == (index % 2 == 0)
            layers.append(conv(i, o, (7, 1), padding=(3, 0)) if column else conv(i, o, (1, 7), padding=(0, 3)))
        return layers

    def a(i: int, features: int) -> nn.Module:
        five = nn.Sequential(conv(i, 48, 1), conv(48, 64, 5, padding=2))
        three = nn.Sequential(conv(i, 64, 1), conv(64, 96, 3, padding=1), conv(96, 96, 3, padding=1))
        return Branches([conv(i, 64, 1), five, three, pooled(i, features)])

    def c(w: int) -> nn.Module:
        seven = nn.Sequential(conv(768, w, 1), *rows(w, w, 192, column_first=False))
        twice = nn.Sequential(conv(768, w, 1), *rows(w, w, w, w, 192, column_first=True))
        return Branches([conv(768, 192, 1), seven, twice, pooled(768, 192)])

    def e(i: int) -> nn.Module:
        def both() -> nn.Module:
            return Branches([conv(384, 384, (1, 3), padding=(0, 1)), conv(384, 384, (3, 1), padding=(1, 0))])

        twice = nn.Sequential(conv(i, 448, 1), conv(448, 384, 3, padding=1), both())
        return Branches([conv(i, 320, 1), nn.Sequential(conv(i, 384, 1), both()), twice, pooled(i, 192)])

    first = (conv(3, 32, 3, 2), conv(32, 32, 3), conv(32, 64, 3, padding=1), nn.MaxPool2d(3, 2), conv(64, 80, 1), conv(80, 192, 3))
    b = Branches(
        [conv(288, 384, 3, 2), nn.Sequential(conv(288, 64, 1), conv(64, 96, 3, padding=1), conv(96, 96, 3, 2)), nn.MaxPool2d(3, 2)]
    )
    seven = nn.Sequential(conv(768, 192, 1), *rows(192, 192, 192, column_first=False), conv(192, 192, 3, 2))
    d = Branches([nn.Sequential(conv(768, 192, 1), conv(192, 320, 3, 2)), seven, nn.MaxPool2d(3, 2)])
    stem = nn.Sequential(*first, nn.MaxPool2d(3, 2), a(192, 32), a(256, 64), a(288, 64), b, c(128), c(160), c(160), c(192))
    top = nn.Sequential(d, e(1280), e(2048), nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(2048, 1000))
    second = (nn.AvgPool2d(5, 3), conv(768, 128, 1), conv(128, 768, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 1000))
    return WithAuxiliary(stem, top, nn.Sequential(*second))


MODULES: dict[str, tuple[Any, Any, int]] = {
    "alexnet": (alexnet_module, lambda **options: alexnet(**options), 224),
    "vgg16": (vgg16_module, lambda **options: vgg16(**options), 224),
    "resnet18": (lambda: resnet_module((2, 2, 2, 2), 1), lambda **options: resnet(depth=18, **options), 224),
    "resnet50": (lambda: resnet_module((3, 4, 6, 3), 4), lambda **options: resnet(depth=50, **options), 224),
    "inception-v3": (inception_module, lambda **options: inception_v3(**options), 299),
}


def costs(graph: TaskGraph) -> list[tuple[Any, ...]]:
    """What each operator that costs something costs, in order of size."""
    tasks = [task for task in graph.tasks if task.launch_count and task.op not in ("dropout", "loss", "cat")]
    return sorted((task.forward_flop, task.backward_flop, task.output_bytes, task.read_bytes, task.op.strip("_")) for task in tasks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_formula_equals_trace(name: str, training: bool) -> None:
    """Parameters, buffers, flop and bytes of every operator are those of the traced network."""
    module, formula, side = MODULES[name]
    job = SimpleNamespace(model=module, example_batch=lambda size: (torch.zeros(size, 3, side, side), None))
    trace, graph = trace_job(job, BATCH, training, name), formula(batch_size=BATCH, training=training)
    assert graph.parameter_count == trace.parameter_count
    assert sorted(w.shape for w in graph.weights.values()) == sorted(w.shape for w in trace.weights.values())
    assert (graph.forward_flop, graph.backward_flop) == (trace.forward_flop, trace.backward_flop)
    assert costs(graph) == costs(trace)


@pytest.mark.parametrize("name", GIGA_MULTIPLY_ADDS)
def test_published_multiply_adds(name: str) -> None:
    """Half the forward flop of one image are torchvision's multiply-adds, to their two decimals."""
    preset = PRESETS[name]
    graph = FORMULAS[preset.formula](batch_size=1, training=False, **preset.options)
    assert graph.forward_flop / 2e9 == pytest.approx(GIGA_MULTIPLY_ADDS[name], abs=0.0051)


def test_auxiliary_head_runs_only_while_training() -> None:
    """Its parameters are always there; its tasks only while training, with a backward pass of their own."""
    with_head, without = inception_v3(batch_size=1), inception_v3(batch_size=1, auxiliary=False)
    assert with_head.parameter_count - without.parameter_count == 27_161_264 - 23_834_568
    assert inception_v3(batch_size=1, training=False).parameter_count == 27_161_264
    assert with_head.forward_flop > without.forward_flop == inception_v3(batch_size=1, training=False).forward_flop


def test_dense_layers_take_any_image_size() -> None:
    """Adaptive pooling keeps AlexNet's parameters at every image size; convolutions grow with it."""
    small, large = alexnet(batch_size=1), alexnet(batch_size=1, image_size=448)
    assert small.parameter_count == large.parameter_count
    assert large.forward_flop > 3 * small.forward_flop


def test_classes_change_only_the_last_layer() -> None:
    """Ten classes instead of a thousand: 990 rows of weights and biases fewer."""
    assert resnet(batch_size=1, depth=50).parameter_count - resnet(batch_size=1, depth=50, classes=10).parameter_count == 990 * 2049
