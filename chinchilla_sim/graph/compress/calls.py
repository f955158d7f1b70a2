"""A task as the rules of compression see it, and what several rules do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chinchilla_sim.graph.compress.dimensions import Dimensions
from chinchilla_sim.graph.task import Shape, Task

Dims = list[int]
"""One dimension per axis of a tensor."""


@dataclass
class Call:
    """A task as the rules see it."""

    task: Task
    operands: list[Dims]
    from_weights: list[bool]
    attributes: dict[str, Any]
    all_outputs: list[Dims]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the outputs."""
        return self.task.shapes


@dataclass
class Followed:
    """All dimensions of a graph: of every output of every task, of every weight, and the number of groups of convolutions."""

    dimensions: Dimensions = field(default_factory=Dimensions)
    outputs: dict[str, list[Dims]] = field(default_factory=dict)
    weights: dict[str, Dims] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)


def fresh(found: Followed, shape: Shape) -> Dims:
    """New dimensions that never shrink."""
    return [found.dimensions.new(size, frozen=True) for size in shape]


def freeze_all(found: Followed, call: Call) -> list[Dims]:
    """The rule of an operator that nothing is known about."""
    for operand in call.operands:
        for dimension in operand:
            found.dimensions.freeze(dimension)
    return [fresh(found, shape) for shape in call.shapes]


def broadcast(found: Followed, operands: Sequence[Dims], shape: Shape) -> Dims:
    """Dimensions of the operands as PyTorch aligns them; those that do not fit are frozen."""
    dims = found.dimensions
    result: list[int | None] = [None] * len(shape)
    for operand in operands:
        for back, dimension in enumerate(reversed(operand), start=1):
            if back > len(shape):
                dims.freeze(dimension)
                continue
            if dims.size(dimension) != shape[-back]:
                dims.freeze(dimension)
                continue
            known = result[-back]
            if known is None:
                result[-back] = dimension
            elif dims.size(dimension) > 1:
                dims.unify(known, dimension)
    return [dims.new(size, frozen=True) if known is None else known for known, size in zip(result, shape, strict=True)]


Rule = Callable[[Followed, Call], list[Dims]]
"""What an operator does to dimensions: returns those of its outputs."""
