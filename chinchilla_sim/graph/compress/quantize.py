"""Quantized weights: the same flop, fewer bytes to store and to read.

For a matrix of `rows` x `columns` (columns: everything behind the first dimension), v bytes per value of the graph:

    bf16            2 rows columns                                   products are made in bf16
    int8, int8-static    rows columns + v rows                       a scale per row; products in int8, inputs quantized as they come,
                                                                     or by scales that data have set before
    int8-weights    rows columns + 2 rows                            a bf16 scale per row; products in bf16, as `_weight_int8pack_mm`;
                                                                     columns padded to 16
    int4            rows columns / 2 + 4 rows columns / group        a bf16 scale and zero per group of 128 (narrow matrices: 32 or 64);
                                                                     rows and columns padded to 16 and to groups, as `_weight_int4pack_mm`

Weights of products, convolutions and lookups are quantized; biases, norms and buffers stay. Integers have no gradient. Tasks that read
such a weight say so in their attribute FORMAT: what computes faster in it, and what has to unpack it first, is for `cost/` to tell.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from chinchilla_sim.graph.compress.rebuild import Change, rebuild
from chinchilla_sim.graph.operators import FLOP_OF, LOOKUPS
from chinchilla_sim.graph.task import FORMAT, LOSS_OP, ROUNDS, Shape, Task, TaskGraph, Weight

INTEGERS = ("int8", "int8-static", "int8-weights", "int4")
INT4_GROUPS = (32, 64, 128)
INT4_ROWS = 16
INT8_COLUMNS = 16
BF16_BYTES = 2.0


def quantize(graph: TaskGraph, weight_format: str) -> TaskGraph:
    """The model with its weights in one of the formats above; one in training keeps its own, and rounds to integers as it computes."""
    names = quantizable(graph, weight_format)
    if weight_format in INTEGERS and graph.tasks[-1].op == LOSS_OP:
        return rebuild(
            graph, _Round(names, weight_format), f"trained for {weight_format}: {len(names)} weights are rounded as they are read"
        )
    return rebuild(graph, _Pack(names, weight_format, graph.value_bytes), f"quantized: {len(names)} weights in {weight_format}")


def quantizable(graph: TaskGraph, weight_format: str) -> frozenset[str]:
    """Matrices and tables that products, convolutions and lookups read, directly or through a view, and that have fewer bytes then."""
    behind: dict[str, tuple[str, ...]] = {}
    found: set[str] = set()
    for task in graph.tasks:
        if task.launch_count == 0:
            inner = (name for operand in task.operands for name in behind.get(operand, ()))
            behind[task.name] = (*task.parameters, *inner)
        if task.op in FLOP_OF or task.op in LOOKUPS:
            found.update(task.parameters, *(behind.get(operand, ()) for operand in task.operands))
    matrices = {name: graph.weights[name] for name in found if len(graph.weights[name].shape) > 1 and not graph.weights[name].buffer}
    values = graph.value_bytes
    return frozenset(name for name, weight in matrices.items() if packed_bytes(weight.shape, weight_format, values) < weight.bytes)


def packed_bytes(shape: Shape, weight_format: str, value_bytes: float = 4.0) -> float:
    """Bytes of a weight of this shape; scales of int8 have `value_bytes` each.

    >>> packed_bytes((512, 784), "int8"), packed_bytes((512, 784), "int4")
    (403456.0, 243712.0)
    """
    rows, columns = shape[0], Weight(0.0, shape[1:]).value_count
    if weight_format == "bf16":
        return BF16_BYTES * rows * columns
    if weight_format in ("int8", "int8-static"):
        return rows * (columns + value_bytes)
    if weight_format == "int8-weights":
        return rows * (INT8_COLUMNS * ceil(columns / INT8_COLUMNS) + BF16_BYTES)
    group = int4_group(columns)
    rows, groups = INT4_ROWS * ceil(rows / INT4_ROWS), ceil(columns / group)
    return rows * groups * (group / 2 + 2 * BF16_BYTES)


def int4_group(columns: int) -> int:
    """How many int4 values of a row share a scale.

    >>> int4_group(27), int4_group(64), int4_group(784)
    (32, 64, 128)
    """
    return next((group for group in INT4_GROUPS if columns <= group), INT4_GROUPS[-1])


class _Round(Change):
    def __init__(self, names: frozenset[str], weight_format: str) -> None:
        self.names, self.weight_format = names, weight_format

    def attributes(self, task: Task) -> dict[str, Any]:
        """Those of the task, with the format where it rounds a weight."""
        return dict(task.attributes) | ({ROUNDS: self.weight_format} if self.names.intersection(task.parameters) else {})


class _Pack(Change):
    def __init__(self, names: frozenset[str], weight_format: str, value_bytes: float) -> None:
        self.names, self.weight_format, self.value_bytes = names, weight_format, value_bytes

    def weight(self, name: str, weight: Weight) -> tuple[str, Weight]:
        """The packed weight."""
        if name not in self.names:
            return name, weight
        size = packed_bytes(weight.shape, self.weight_format, self.value_bytes)
        return name, Weight(size, weight.shape, weight.trained and self.weight_format == "bf16", weight.buffer)

    def attributes(self, task: Task) -> dict[str, Any]:
        """Those of the task, with the format where it reads a packed weight."""
        return dict(task.attributes) | ({FORMAT: self.weight_format} if self.names.intersection(task.parameters) else {})
