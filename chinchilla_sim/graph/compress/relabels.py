"""Rules of operators that reorder, cut, join or choose parts of tensors."""

from __future__ import annotations

from chinchilla_sim.graph.compress.calls import Call, Dims, Followed, Rule, broadcast, freeze_all, fresh


def _reshape(found: Followed, call: Call) -> list[Dims]:
    return [found.dimensions.regroup(call.operands[0], call.shapes[0])]


def _transpose(found: Followed, call: Call) -> list[Dims]:
    result = list(call.operands[0])
    if call.task.op == "t":
        return [result[::-1]]
    one, other = int(call.attributes["dim0"]), int(call.attributes["dim1"])
    result[one], result[other] = result[other], result[one]
    return [result]


def _permute(found: Followed, call: Call) -> list[Dims]:
    return [[call.operands[0][int(axis)] for axis in call.attributes["dims"]]]


def _unsqueeze(found: Followed, call: Call) -> list[Dims]:
    axis = int(call.attributes["dim"]) % len(call.shapes[0])
    result = list(call.operands[0])
    result.insert(axis, found.dimensions.new(1, frozen=True))
    return [result]


def _squeeze(found: Followed, call: Call) -> list[Dims]:
    """Axes of length 1 go; with those given, only they."""
    x = call.operands[0]
    given = call.attributes.get("dim")
    axes = range(len(x)) if given is None else [a % len(x) for a in ([given] if isinstance(given, int) else given)]
    gone = {axis for axis in axes if found.dimensions.size(x[axis]) == 1}
    return [[dimension for axis, dimension in enumerate(x) if axis not in gone]]


def _select(found: Followed, call: Call) -> list[Dims]:
    x = list(call.operands[0])
    found.dimensions.freeze(x.pop(int(call.attributes.get("dim", 0))))
    return [x]


def _expand(found: Followed, call: Call) -> list[Dims]:
    return [broadcast(found, call.operands[:1], call.shapes[0])]


def _getitem(found: Followed, call: Call) -> list[Dims]:
    """One of several outputs, or one of equal parts of the last axis."""
    index = int(call.attributes["index"])
    if len(call.all_outputs) > 1:
        return [call.all_outputs[index]]
    x, last = call.operands[0], call.shapes[0][-1]
    parts = found.dimensions.cut(x[-1], [last] * (found.dimensions.size(x[-1]) // last))
    return [[*x[:-1], parts[index]]] if parts else freeze_all(found, call)


def _split(found: Followed, call: Call) -> list[Dims]:
    """Each output a part of one axis; `unbind` drops the axis."""
    x, axis = call.operands[0], int(call.attributes.get("dim", 0))
    if call.task.op == "unbind":
        rest = [dimension for position, dimension in enumerate(x) if position != axis % len(x)]
        found.dimensions.freeze(x[axis])
        return [rest for _ in call.shapes]
    parts = found.dimensions.cut(x[axis], [shape[axis] for shape in call.shapes])
    if parts is None:
        return freeze_all(found, call)
    results = []
    for part in parts:
        result = list(x)
        result[axis] = part
        results.append(result)
    return results


def _cat(found: Followed, call: Call) -> list[Dims]:
    operands = [operand for operand in call.operands if operand]
    axis = int(call.attributes.get("dim", 0)) % len(call.shapes[0])
    if call.task.op == "stack":
        operands = [[*operand[:axis], found.dimensions.new(1, frozen=True), *operand[axis:]] for operand in operands]
    first = operands[0]
    for operand in operands[1:]:
        for position, (one, other) in enumerate(zip(first, operand, strict=True)):
            if position != axis:
                found.dimensions.unify(one, other)
    joined = found.dimensions.sum([operand[axis] for operand in operands])
    return [[*first[:axis], joined, *first[axis + 1 :]]]


def _pad(found: Followed, call: Call) -> list[Dims]:
    x = call.operands[0]
    kept = []
    for dimension, size in zip(x, call.shapes[0], strict=True):
        if found.dimensions.size(dimension) != size:
            found.dimensions.freeze(dimension)
            kept.append(found.dimensions.new(size, frozen=True))
        else:
            kept.append(dimension)
    return [kept]


def _index(found: Followed, call: Call) -> list[Dims]:
    """Rows chosen by one tensor of indices."""
    shape = call.shapes[0]
    if len(call.operands) != 2:
        return freeze_all(found, call)
    x, indices = call.operands
    expected = tuple(found.dimensions.size(d) for d in (*indices, *x[1:]))
    if expected != tuple(shape):
        return freeze_all(found, call)
    found.dimensions.freeze(x[0])
    return [[*indices, *x[1:]]]


def _repeat_interleave(found: Followed, call: Call) -> list[Dims]:
    axis = call.attributes.get("dim")
    if axis is None or len(call.operands) != 1:
        return freeze_all(found, call)
    x = list(call.operands[0])
    times = call.shapes[0][axis] // max(1, found.dimensions.size(x[axis]))
    x[axis] = found.dimensions.product([x[axis], found.dimensions.new(times, frozen=True)])
    return [x]


def _pixel_shuffle(found: Followed, call: Call) -> list[Dims]:
    x, channels = call.operands[0], call.shapes[0][1]
    first, factor = found.dimensions.regroup([x[1]], [channels, found.dimensions.size(x[1]) // channels])
    found.dimensions.freeze(factor)
    return [[x[0], first, *fresh(found, call.shapes[0][2:])]]


RELABEL_RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "_unsafe_view"), _reshape),
    **dict.fromkeys(("transpose", "t"), _transpose),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind", "tensor_split"), _split),
    **dict.fromkeys(("cat", "concat", "stack"), _cat),
    **dict.fromkeys(("index", "index_select"), _index),
    **dict.fromkeys(("pad", "constant_pad_nd", "slice"), _pad),
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "select": _select,
    "expand": _expand,
    "getitem": _getitem,
    "repeat_interleave": _repeat_interleave,
    "pixel_shuffle": _pixel_shuffle,
}
