"""Quantized weights: the same flop, fewer bytes to store and to read.

For a matrix of `rows` x `columns` (columns: everything behind the first dimension), v bytes per value of the graph:

    bf16   2 rows columns
    int8     rows columns + v rows                           a scale per row, as torch's `_weight_int8pack_mm` takes them
    int4     rows ceil(columns / 2) + 4 rows ceil(columns / 128)    a bf16 scale and zero per group of 128, as `_weight_int4pack_mm`

Weights of products, convolutions and lookups are quantized; biases, norms and buffers stay. Integers have no gradient.
"""

from __future__ import annotations

from math import ceil

from chinchilla_sim.graph.compress.rebuild import Change, rebuild
from chinchilla_sim.graph.operators import FLOP_OF, LOOKUPS
from chinchilla_sim.graph.task import Shape, TaskGraph, Weight

INT4_GROUP = 128
BF16_BYTES = 2.0


def quantize(graph: TaskGraph, weight_format: str) -> TaskGraph:
    """The model with its weights in `weight_format`: bf16, int8 or int4."""
    names = quantizable(graph)
    return rebuild(graph, _Pack(names, weight_format, graph.value_bytes), f"quantized: {len(names)} weights in {weight_format}")


def quantizable(graph: TaskGraph) -> frozenset[str]:
    """Matrices and tables that products, convolutions and lookups read, directly or through a view."""
    behind: dict[str, tuple[str, ...]] = {}
    found: set[str] = set()
    for task in graph.tasks:
        if task.launch_count == 0:
            inner = (name for operand in task.operands for name in behind.get(operand, ()))
            behind[task.name] = (*task.parameters, *inner)
        if task.op in FLOP_OF or task.op in LOOKUPS:
            found.update(task.parameters, *(behind.get(operand, ()) for operand in task.operands))
    return frozenset(name for name in found if len(graph.weights[name].shape) > 1 and not graph.weights[name].buffer)


def packed_bytes(shape: Shape, weight_format: str, value_bytes: float = 4.0) -> float:
    """Bytes of a weight of this shape; scales of int8 have `value_bytes` each.

    >>> packed_bytes((512, 784), "int8"), packed_bytes((512, 784), "int4")
    (403456.0, 215040.0)
    """
    rows, columns = shape[0], Weight(0.0, shape[1:]).value_count
    if weight_format == "bf16":
        return BF16_BYTES * rows * columns
    if weight_format == "int8":
        return rows * (columns + value_bytes)
    return rows * (ceil(columns / 2) + 2 * BF16_BYTES * ceil(columns / INT4_GROUP))


class _Pack(Change):
    def __init__(self, names: frozenset[str], weight_format: str, value_bytes: float) -> None:
        self.names, self.weight_format, self.value_bytes = names, weight_format, value_bytes

    def weight(self, name: str, weight: Weight) -> tuple[str, Weight]:
        """The packed weight; never more bytes than it had."""
        if name not in self.names:
            return name, weight
        size = min(weight.bytes, packed_bytes(weight.shape, self.weight_format, self.value_bytes))
        return name, Weight(size, weight.shape, weight.trained and self.weight_format == "bf16", weight.buffer)
