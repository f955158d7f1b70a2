"""Model sizes of one family, from small to large: which depth and heads go with a width.

Widths (`width_of`) are 4, 5, 6 and 7 times powers of two, so that stages, heads and tensor parallel parts divide well. Depth follows

    layers = 12 (width / 768)^(3/4), in whole fours                                 layers_of

the power law through the smallest and the largest model of GPT-3 (12 x 768 and 96 x 12288; Brown 2020, table 2.1). Published depths lie
around it, from 0.7 times (32 x 4096) to 1.6 times (24 x 1024); within so much the shape hardly changes the loss (Kaplan 2020, figure 5).
Heads are 64 wide below width 2048 and 128 from there on, as in most of GPT-3's and Llama's. Inner widths are 4 widths (gpt), or two
thirds of that in whole 256s (llama; Touvron 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log, pow
from typing import Any, Literal, get_args

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.rotary import llama
from chinchilla_sim.graph.zoo.transformer import gpt

Family = Literal["gpt", "llama"]
FAMILIES: tuple[str, ...] = get_args(Family)
COMMON = {
    "gpt": ("tokens", "vocabulary", "positions", "tied_head", "dropout"),
    "llama": ("tokens", "vocabulary", "tied_head"),
}
"""Options of each family that are no size."""
WIDEST = 24
"""The last rung, 32768 wide: 2.6 T parameters. The first is 512 wide, 51 M with GPT-2's vocabulary; the law's data begin at 44 M."""
DEPTH_STEP = 4


@dataclass(frozen=True)
class Size:
    """A model of a family by its options; `inner_parameters` are without embeddings, positions and an output layer of its own."""

    family: str
    options: Mapping[str, Any]
    parameters: int
    inner_parameters: int

    @property
    def shape(self) -> str:
        """Depth by width."""
        return f"{self.options['layers']} x {self.options['width']}"


@dataclass(frozen=True)
class Ladder:
    """Sizes of a family that share the `common` options, one per rung from 0 to WIDEST."""

    family: str
    common: Mapping[str, Any]

    def size(self, rung: int) -> Size:
        """The size of the rung's width and depth."""
        return self._size(width_of(rung), layers_of(width_of(rung)))

    def size_near(self, parameters: float) -> Size:
        """About so many parameters: on the rung that is nearest, deeper or flatter."""
        width = width_of(self.rung_near(parameters))
        shallow, deeper = self._size(width, DEPTH_STEP), self._size(width, 2 * DEPTH_STEP)
        more = (parameters - shallow.parameters) / (deeper.parameters - shallow.parameters)
        return self._size(width, DEPTH_STEP * (1 + max(0, round(more))))

    @cached_property
    def tokens(self) -> int:
        """Tokens of a sample."""
        ((_, tokens),) = self._graph(width_of(0), 1).tasks[0].shapes
        return tokens

    def rung_near(self, parameters: float) -> int:
        """The rung whose size is nearest by ratio."""
        return min(range(WIDEST + 1), key=lambda rung: (abs(log(self._counts[rung] / parameters)), rung))

    @cached_property
    def _counts(self) -> list[int]:
        return [self.size(rung).parameters for rung in range(WIDEST + 1)]

    def _size(self, width: int, layers: int) -> Size:
        """Layers are all alike: two small graphs tell what any number of them has."""
        one, two = (_count(self._graph(width, depth)) for depth in (1, 2))
        whole, inner = (first + (layers - 1) * (second - first) for first, second in zip(one, two, strict=True))
        return Size(self.family, self._options(width, layers), whole, inner)

    def _graph(self, width: int, layers: int) -> TaskGraph:
        build = {"gpt": gpt, "llama": llama}[self.family]
        return build(batch_size=1, **self._options(width, layers))

    def _options(self, width: int, layers: int) -> dict[str, Any]:
        inner = {"inner_width": 256 * -(-width * 8 // (3 * 256))} if self.family == "llama" else {}
        return {"layers": layers, "width": width, "heads": width // (64 if width < 2048 else 128), **inner, **self.common}


def width_of(rung: int) -> int:
    """Four rungs per doubling.

    >>> [width_of(rung) for rung in range(9)]
    [512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048]
    """
    return (4 + rung % 4) << (7 + rung // 4)


def layers_of(width: int) -> int:
    """Depth that goes with a width.

    >>> [layers_of(width) for width in (512, 768, 2048, 5120, 8192, 12288)]
    [8, 12, 24, 48, 72, 96]
    """
    return DEPTH_STEP * max(1, round(12 / DEPTH_STEP * pow(width / 768, 0.75)))


def common_options(family: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's options those that are no size."""
    return {key: value for key, value in options.items() if key in COMMON[family]}


def _count(graph: TaskGraph) -> tuple[int, int]:
    """Parameters of all the model, and of what is no embedding and no output layer."""
    outer = {name for task in graph.tasks if task.op == "embedding" or task.module == "lm_head" for name in task.parameters}
    counts = {name: weight.value_count for name, weight in graph.weights.items() if not weight.buffer}
    return sum(counts.values()), sum(count for name, count in counts.items() if name not in outer)
