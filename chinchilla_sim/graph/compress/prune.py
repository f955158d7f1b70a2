"""Structured pruning: every layer keeps a share of its neurons, channels and heads, and all tensors shrink accordingly.

Magnitudes are not looked at: how many values stay decides what a step costs (Li et al. 2017 for channels, Michel et al. 2019 for
heads). What the model reads and returns, images' places, tokens and the width of a head stay.
"""

from __future__ import annotations

from math import floor
from typing import Any

from chinchilla_sim.graph.compress.calls import Dims, Followed
from chinchilla_sim.graph.compress.follow import follow
from chinchilla_sim.graph.compress.rebuild import Change, rebuild
from chinchilla_sim.graph.task import Shape, Task, TaskGraph, Weight

RESHAPES = ("size", "shape")


def prune(graph: TaskGraph, ratio: float) -> TaskGraph:
    """The model without the share `ratio` of each group of neurons, channels or heads (at least one of each stays).

    `ratio` is from 0 (the same graph) up to but not including 1. Raises ScenarioError for graphs that do not say what
    their tasks compute.
    """
    if not ratio:
        return graph
    found = follow(graph)
    kept = kept_sizes(found, ratio)
    return rebuild(graph, _Shrink(found, kept), f"pruned: {ratio:.0%} of {len(kept)} groups of neurons, channels or heads removed")


def kept_sizes(found: Followed, ratio: float) -> dict[int, int]:
    """New length of every independent dimension of weights that may shrink."""
    dims = found.dimensions
    leaves = {leaf for weight in found.weights.values() for dimension in weight for leaf in dims.leaves(dimension)}
    free = [leaf for leaf in sorted(leaves) if not dims.is_frozen(leaf) and dims.size(leaf) > 1]
    # A billionth forgives 0.3 * 10 = 3.0000000000000004.
    return {leaf: max(1, dims.size(leaf) - floor(dims.size(leaf) * ratio + 1e-9)) for leaf in free}


class _Shrink(Change):
    """Shapes with the kept lengths."""

    def __init__(self, found: Followed, kept: dict[int, int]) -> None:
        self.found, self.kept = found, kept

    def _shape(self, dims: Dims) -> Shape:
        return tuple(self.found.dimensions.shrunk(dimension, self.kept) for dimension in dims)

    def weight(self, name: str, weight: Weight) -> tuple[str, Weight]:
        """The weight with fewer values of the same size."""
        shape = self._shape(self.found.weights[name])
        return name, Weight(_scaled(weight, shape), shape, weight.trained, weight.buffer)

    def shapes(self, task: Task) -> tuple[Shape, ...]:
        """Shrunk shapes."""
        return tuple(self._shape(dims) for dims in self.found.outputs[task.name])

    def attributes(self, task: Task) -> dict[str, Any]:
        """Sizes that stand in the call itself, such as those of a reshape, and the groups of a convolution."""
        attributes, (shape, *_) = dict(task.attributes), self.shapes(task) or ((),)
        for key in RESHAPES:
            given = attributes.get(key)
            if isinstance(given, tuple) and len(given) == len(shape):
                attributes[key] = tuple(-1 if old == -1 else new for old, new in zip(given, shape, strict=True))
        if "normalized_shape" in attributes:
            attributes["normalized_shape"] = shape[-len(attributes["normalized_shape"]) :]
        if isinstance(attributes.get("split_size"), int):
            attributes["split_size"] = shape[attributes.get("dim", 0)]
        if task.name in self.found.groups:
            attributes["groups"] = self.found.dimensions.shrunk(self.found.groups[task.name], self.kept)
        return attributes


def _scaled(weight: Weight, shape: Shape) -> float:
    fewer = Weight(0.0, shape).value_count
    return weight.bytes * fewer / weight.value_count if weight.value_count else weight.bytes
