"""How a tensor lies on the devices of a tensor-parallel group, and what an operator makes of that.

A tensor that is split has one divided dimension of `parts` equal pieces; each piece is cut in blocks, one for each device. One part is
the plain case; the outputs of a product that makes queries, keys and values in one go have three, so that every device
holds its heads of all three. Views keep a split where the blocks stay within one dimension of the result:

    (n, t, 3 w) by 3 parts  ->  (n, t, 3, heads, w / heads) by heads  ->  permuted, selected: each device has whole heads

An operator that is not listed here, or that works along the divided dimension, needs its inputs whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from chinchilla_sim.graph.operators import Operand
from chinchilla_sim.graph.task import Shape, Task


@dataclass(frozen=True, slots=True)
class Layout:
    """Dimension `dim` in `parts` equal pieces, each cut in blocks for the devices; dim -1: somehow, of a graph without shapes."""

    dim: int
    parts: int = 1


UNKNOWN = Layout(-1)


@dataclass(frozen=True, slots=True)
class Carried:
    """What becomes of a split: the layout of the outputs, and which whole operands (by position) each device reads a part of."""

    output: Layout
    parts_of: Mapping[int, Layout] = field(default_factory=dict)


POINTWISE = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "true_divide", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs", "square", "reciprocal"),
        *("relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "softplus", "leaky_relu", "elu", "selu", "mish", "hardtanh", "hardswish"),
        *(
            "hardsigmoid",
            "log_sigmoid",
            "sin",
            "cos",
            "erf",
            "clamp",
            "clamp_min",
            "clamp_max",
            "maximum",
            "minimum",
            "where",
            "masked_fill",
        ),
        *("clone", "contiguous", "detach", "to", "_to_copy", "type_as", "float", "half", "bfloat16", "expand", "expand_as", "alias"),
        *("dropout", "native_dropout", "lift_fresh_copy", "addcmul", "addcdiv", "lerp", "zeros_like", "ones_like"),
        *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not"),
    }
)
RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as"})
ALONG = frozenset({"softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "flip", "roll"})
REDUCES = frozenset({"sum", "mean", "amax", "amin", "max", "min", "var", "std", "logsumexp", "argmax", "any", "all"})
PIECES = frozenset({"split", "chunk", "split_with_sizes", "tensor_split"})
POOLS = frozenset(
    {f"{name}{dims}d" for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool") for dims in (1, 2, 3)}
    | {"upsample_nearest2d", "upsample_bilinear2d"}
)
TURNS = frozenset({"transpose", "swapaxes", "permute", "t", "numpy_T"})


def blocks_fit(size: int, degree: int) -> bool:
    """Whether every device gets at least one of so many."""
    return size > 0 and -(-size // degree) * (degree - 1) < size


def block(size: int, degree: int, device: int) -> tuple[int, int]:
    """First and one behind the last of the device's block; the last blocks are smaller where it does not divide."""
    each = -(-size // degree)
    return min(device * each, size), min((device + 1) * each, size)


def local_size(size: int, layout: Layout, degree: int, device: int) -> int:
    """What a device holds of the divided dimension."""
    start, end = block(size // layout.parts, degree, device)
    return layout.parts * (end - start)


def local_shape(shape: Sequence[int], layout: Layout | None, degree: int, device: int) -> tuple[int, ...]:
    """The shape of a device's part."""
    if layout is None:
        return tuple(shape)
    return tuple(local_size(size, layout, degree, device) if dim == layout.dim else size for dim, size in enumerate(shape))


def carry(task: Task, operands: Sequence[Operand], layouts: Sequence[Layout | None], degree: int) -> Carried | None:
    """What an operator without divided weights makes of its split inputs; None where it needs them whole."""
    attributes = dict(task.attributes)
    output = task.shapes[0] if task.shapes else ()
    if task.op in POINTWISE or task.op in ("batch_norm",):
        return _by_channels(operands, layouts) if task.op == "batch_norm" else _aligned(operands, layouts, output)
    if task.op in ("matmul", "bmm") or "attention" in task.op:
        return _batches(task, operands, layouts, output)
    split = [(operand, layout) for operand, layout in zip(operands, layouts, strict=True) if layout is not None]
    if task.op in ("cat", "concat", "stack"):
        return _joined(task.op, attributes, operands, layouts)
    if len(split) != 1 or len(operands) != 1:
        return None
    operand, layout = split[0]
    found = _of_one(task, attributes, operand.shape, layout, degree)
    return None if found is None else Carried(found)


def _of_one(task: Task, attributes: Mapping[str, Any], shape: Shape, layout: Layout, degree: int) -> Layout | None:
    """The layout behind an operator with one input."""
    output, rank = task.shapes[0], len(shape)
    if task.op == "getitem":
        return _item(shape, output, layout)
    if task.op in RESHAPES:
        return reshaped(shape, output, layout, degree)
    if task.op in TURNS:
        return Layout(_order(task.op, attributes, rank).index(layout.dim), layout.parts)
    if task.op in POOLS:
        return layout if layout.dim == 1 else None
    if task.op == "unsqueeze":
        dim = attributes.get("dim", 0) % (rank + 1)
        return Layout(layout.dim + (dim <= layout.dim), layout.parts)
    dims = _dims(attributes, rank, default=None if task.op in REDUCES or task.op == "squeeze" else 0)
    if task.op == "squeeze":
        gone = [dim for dim in (range(rank) if dims is None else dims) if shape[dim] == 1]
        return Layout(layout.dim - sum(dim < layout.dim for dim in gone), layout.parts)
    if task.op in PIECES and dims == (layout.dim,):
        return _in_pieces(task, layout)
    if task.op in ("slice", "narrow") and dims == (layout.dim,):
        return layout if output == shape else None
    if task.op == "repeat_interleave" and dims == (layout.dim,) and "repeats" in attributes:
        return layout
    if dims is None or layout.dim in dims:
        return None
    if task.op in ("select", "unbind") or (task.op in REDUCES and not attributes.get("keepdim", False)):
        return Layout(layout.dim - sum(dim < layout.dim for dim in dims), layout.parts)
    return layout if task.op in ALONG | REDUCES | PIECES | {"slice", "narrow", "repeat_interleave"} else None


def _dims(attributes: Mapping[str, Any], rank: int, default: int | None) -> tuple[int, ...] | None:
    given = attributes.get("dim", attributes.get("dims", default))
    if given is None:
        return None
    return tuple(dim % rank for dim in (given if isinstance(given, tuple | list) else (given,)))


def _order(op: str, attributes: Mapping[str, Any], rank: int) -> list[int]:
    """Dimension i of the result is dimension order[i] of the input."""
    order = list(range(rank))
    if op == "permute":
        return [dim % rank for dim in attributes["dims"]]
    one, other = (
        (0, 1) if op == "t" else (attributes.get("dim0", attributes.get("axis0", 0)), attributes.get("dim1", attributes.get("axis1", 0)))
    )
    if op == "numpy_T":
        return order[::-1]
    if rank > 1:
        order[one], order[other] = order[other], order[one]
    return order


def turned_back(task: Task, rank: int, layout: Layout) -> Layout | None:
    """The layout of a weight whose turned view has this one; None for other views."""
    if task.op not in TURNS:
        return None
    return Layout(_order(task.op, dict(task.attributes), rank)[layout.dim], layout.parts)


def _item(shape: Shape, output: Shape, layout: Layout) -> Layout | None:
    """One output of several, or one of equal pieces of a tensor."""
    if shape == output:
        return layout
    count = shape[layout.dim] // output[layout.dim] if len(shape) == len(output) and output[layout.dim] else 0
    return Layout(layout.dim, layout.parts // count) if count and layout.parts % count == 0 else None


def _in_pieces(task: Task, layout: Layout) -> Layout | None:
    """Pieces along the divided dimension, which are whole numbers of its parts."""
    count = len(task.shapes)
    alike = len(set(task.shapes)) == 1
    return Layout(layout.dim, layout.parts // count) if alike and layout.parts % count == 0 else None


def reshaped(shape: Shape, output: Shape, layout: Layout, degree: int) -> Layout | None:
    """The split behind a view: the dimension of the result in which the devices' blocks lie, if there is one.

    >>> reshaped((4, 96), (4, 3, 8, 4), Layout(1, 3), 2)
    Layout(dim=2, parts=1)
    >>> reshaped((4, 8, 4), (4, 32), Layout(1), 2)
    Layout(dim=1, parts=1)
    >>> reshaped((4, 96), (4, 3, 8, 4), Layout(1), 2) is None
    True
    """
    size = shape[layout.dim]
    if output == shape:
        return layout
    behind = prod(shape[layout.dim + 1 :])
    if size % (layout.parts * degree):
        # Uneven blocks: only where the dimension stays as it is.
        kept = [dim for dim in range(len(output)) if output[dim] == size and prod(output[dim + 1 :]) == behind]
        return Layout(kept[0], layout.parts) if kept else None
    inner = size // (layout.parts * degree) * behind
    for dim in range(len(output)):
        right = prod(output[dim + 1 :])
        if right and inner % right == 0:
            blocks = inner // right * degree
            return Layout(dim, output[dim] // blocks) if output[dim] % blocks == 0 else None
    return None


def _aligned(operands: Sequence[Operand], layouts: Sequence[Layout | None], output: Shape) -> Carried | None:
    """Elementwise: dimensions count from the right; whole operands are read in part, or are the same along the divided dimension."""
    found = {
        Layout(layout.dim - len(one.shape) + len(output), layout.parts) for one, layout in zip(operands, layouts, strict=True) if layout
    }
    if len(found) != 1:
        return None
    result, parts_of = found.pop(), dict[int, Layout]()
    for position, (operand, layout) in enumerate(zip(operands, layouts, strict=True)):
        dim = result.dim + len(operand.shape) - len(output)
        size = operand.shape[dim] if dim >= 0 else 1
        if layout is None and size == output[result.dim] and size > 1:
            if operand.needs_gradient and not operand.is_weight:
                return None
            parts_of[position] = Layout(dim, result.parts)
        elif operand.needs_gradient if layout is None else size != output[result.dim]:
            return None  # a whole operand that is the same for all blocks would have partial sums as its gradient
    return Carried(result, parts_of)


def _by_channels(operands: Sequence[Operand], layouts: Sequence[Layout | None]) -> Carried | None:
    if layouts[0] is None or layouts[0].dim != 1:
        return None
    return Carried(layouts[0], {position: Layout(0, layouts[0].parts) for position in range(1, len(operands))})


def _batches(task: Task, operands: Sequence[Operand], layouts: Sequence[Layout | None], output: Shape) -> Carried | None:
    """Products of two activations: heads (or other batch dimensions) are divided; of a whole factor each device reads its heads."""
    factors = 3 if "attention" in task.op else 2
    lead = [layout for layout in layouts[:factors] if layout]
    if not lead or lead[0].dim >= len(output) - 2:
        return None
    parts_of: dict[int, Layout] = {}
    for position, (operand, layout) in enumerate(zip(operands, layouts, strict=True)):
        dim = lead[0].dim + len(operand.shape) - len(output)
        size = operand.shape[dim] if dim >= 0 else 1
        if layout is not None and layout != Layout(dim, lead[0].parts):
            return None
        if layout is None and size > 1:
            if size != output[lead[0].dim] or (position >= factors and operand.needs_gradient):
                return None
            parts_of[position] = Layout(dim, lead[0].parts)
    return Carried(lead[0], parts_of)


def _joined(op: str, attributes: Mapping[str, Any], operands: Sequence[Operand], layouts: Sequence[Layout | None]) -> Carried | None:
    first = layouts[0]
    if first is None or any(layout != first for layout in layouts):
        return None
    rank = len(operands[0].shape) + (op == "stack")
    dim = attributes.get("dim", 0) % rank
    if op == "stack":
        return Carried(Layout(first.dim + (dim <= first.dim), first.parts))
    return Carried(first) if dim != first.dim else None
