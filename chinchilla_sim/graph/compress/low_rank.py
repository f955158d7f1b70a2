"""Low-rank factors: `x W^T` becomes `(x A^T) B^T` with A (rank, in) and B (out, rank) (Sainath et al. 2013).

A convolution of k x k places becomes one to `rank` channels and then one of a single place (Zhang et al. 2016). The rank is
the largest that saves the share `ratio` of the weight's values; where not even rank 1 does, the layer stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import floor, prod

from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.compress.rebuild import Change, rebuild
from chinchilla_sim.graph.task import NARROW, WEIGHT_PREFIX, Shape, Task, TaskGraph

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def factor_low_rank(graph: TaskGraph, ratio: float) -> TaskGraph:
    """The model with its linear layers and convolutions in two factors; `ratio` 0 is the same graph."""
    if not ratio:
        return graph
    uses = Counter(name for task in graph.tasks for name in task.parameters)
    ranks = {task.name: _rank(graph, task, ratio) for task in graph.tasks if _is_factorable(graph, task, uses)}
    kept = {name: rank for name, rank in ranks.items() if rank > 0}
    note = f"low rank: {len(kept)} of {len(ranks)} linear layers and convolutions in two factors with {1 - ratio:.0%} of their values"
    return rebuild(graph, _Factor(graph, kept), note)


def low_rank_of(shape: Shape, ratio: float) -> int:
    """The rank that leaves 1 - ratio of the values of a weight (out, in, places...); 0 where none does.

    >>> low_rank_of((512, 784), 0.5)
    154
    """
    outputs, inputs = shape[0], prod(shape[1:])
    return floor((1 - ratio) * outputs * inputs / (outputs + inputs) + 1e-9)


def _is_factorable(graph: TaskGraph, task: Task, uses: Counter[str]) -> bool:
    """Layers whose weight is theirs alone: a tied one would have to stay whole for the others."""
    if task.op != "linear" and (task.op not in CONVOLUTIONS or dict(task.attributes).get("groups", 1) != 1):
        return False
    weight = task.operands[1]
    return all(operand.startswith(WEIGHT_PREFIX) for operand in task.operands[1:]) and uses[weight.removeprefix(WEIGHT_PREFIX)] == 1


def _rank(graph: TaskGraph, task: Task, ratio: float) -> int:
    return low_rank_of(graph.weights[task.operands[1].removeprefix(WEIGHT_PREFIX)].shape, ratio)


class _Factor(Change):
    """Two tasks in place of each whose rank is known, named as the layers of an nn.Sequential in its place."""

    def __init__(self, graph: TaskGraph, ranks: dict[str, int]) -> None:
        self.graph, self.ranks = graph, ranks

    def replace(self, builder: GraphBuilder, task: Task, operands: Sequence[str]) -> str | None:
        """The factor that narrows, then the one that widens again, with the bias."""
        rank = self.ranks.get(task.name)
        if rank is None:
            return None
        name = task.operands[1].removeprefix(WEIGHT_PREFIX)
        weight = self.graph.weights[name]
        values = weight.bytes / weight.value_count
        path, _, leaf = name.rpartition(".")
        outputs, inputs, *places = weight.shape
        first, second = (f"{path}.{index}.{leaf}".lstrip(".") for index in (0, 1))
        narrow = builder.weight(first, (rank, inputs, *places), values, weight.trained)
        wide = builder.weight(second, (outputs, rank, *(1 for _ in places)), values, weight.trained)
        axis = 1 if places else -1
        shape = list(task.shapes[0])
        shape[axis] = rank
        inner = builder.apply(
            task.op, (operands[0], narrow), (tuple(shape),), name=task.name + NARROW, module=task.module,
            attributes=dict(task.attributes), output_bytes=task.output_bytes * rank / outputs, value_bytes=values,
        )  # fmt: skip
        biases = [self._moved(builder, operand) for operand in task.operands[2:]]
        attributes = {} if places else dict(task.attributes)
        return builder.apply(
            task.op, (inner, wide, *biases), task.shapes, name=task.name, module=task.module, attributes=attributes,
            output_bytes=task.output_bytes, value_bytes=values,
        )  # fmt: skip

    def _moved(self, builder: GraphBuilder, operand: str) -> str:
        """The bias under the second factor's name."""
        name = operand.removeprefix(WEIGHT_PREFIX)
        path, _, leaf = name.rpartition(".")
        return builder.keep(f"{path}.1.{leaf}".lstrip("."), self.graph.weights[name])
