"""Rules of operators that multiply: which of their dimensions are summed over, which are the output's."""

from __future__ import annotations

from chinchilla_sim.graph.compress.calls import Call, Dims, Followed, Rule, broadcast, freeze_all, fresh
from chinchilla_sim.graph.operators import FIRST_FACTOR, RECURRENT


def _linear(found: Followed, call: Call) -> list[Dims]:
    x, weight, *bias = call.operands
    found.dimensions.unify(x[-1], weight[-1])
    result = [*x[:-1], *weight[:-1]]
    for operand in bias:
        found.dimensions.unify(operand[-1], result[-1])
    return [result]


def _product(found: Followed, call: Call) -> list[Dims]:
    """Matrix products; where both factors are data (attention), neither their rows nor their columns may shrink."""
    first = FIRST_FACTOR.get(call.task.op, 0)
    left, right = call.operands[first : first + 2]
    if len(right) < 2 or len(left) < 2:
        return freeze_all(found, call)
    dims = found.dimensions
    dims.unify(left[-1], right[-2])
    if not any(call.from_weights[first : first + 2]):
        for dimension in (*left[-2:], *right[-2:]):
            dims.freeze(dimension)
    batch = broadcast(found, [left[:-2], right[:-2]], call.shapes[0][:-2])
    result = [*batch, left[-2], right[-1]]
    if first:
        broadcast(found, [result, call.operands[0]], call.shapes[0])
    return [result]


def _convolution(found: Followed, call: Call) -> list[Dims]:
    x, weight, *bias = call.operands
    dims, groups = found.dimensions, int(call.attributes.get("groups", 1))
    outputs = weight[0]
    if groups > 1:
        depthwise = dims.size(weight[1]) == 1
        ours, inputs = dims.regroup([x[1]], [groups, dims.size(x[1]) // groups])
        theirs, _ = dims.regroup([weight[0]], [groups, dims.size(weight[0]) // groups])
        dims.unify(ours, theirs)
        dims.unify(inputs, weight[1])
        found.groups[call.task.name] = ours
        if not depthwise:
            dims.freeze(ours)
    else:
        dims.unify(x[1], weight[1])
    for operand in bias:
        dims.unify(operand[0], outputs)
    return [[x[0], outputs, *_space(found, x, weight, call)]]


def _transposed_convolution(found: Followed, call: Call) -> list[Dims]:
    if int(call.attributes.get("groups", 1)) > 1:
        return freeze_all(found, call)
    x, weight, *bias = call.operands
    found.dimensions.unify(x[1], weight[0])
    for operand in bias:
        found.dimensions.unify(operand[0], weight[1])
    return [[x[0], weight[1], *_space(found, x, weight, call)]]


def _space(found: Followed, x: Dims, weight: Dims, call: Call) -> Dims:
    """The places of an image, which never shrink."""
    for dimension in (*x[2:], *weight[2:]):
        found.dimensions.freeze(dimension)
    return fresh(found, call.shapes[0][2:])


def _attention(found: Followed, call: Call) -> list[Dims]:
    """Heads may go, alike for queries, keys and values; with grouped queries, groups of them."""
    dims, (query, key, value) = found.dimensions, call.operands[:3]
    for operand in call.operands[:3]:
        for dimension in operand[-2:]:
            dims.freeze(dimension)
    for one, other in zip(query[:-2], key[:-2], strict=True):
        heads, shared = dims.size(one), dims.size(other)
        if heads != shared and heads % shared == 0:
            group, members = dims.regroup([one], [shared, heads // shared])
            dims.freeze(members)
            dims.unify(group, other)
        else:
            dims.unify(one, other)
    for one, other in zip(key[:-1], value[:-1], strict=True):
        dims.unify(one, other)
    result = [*query[:-1], value[-1]]
    for bias in call.operands[3:]:
        broadcast(found, [[*query[:-1], key[-2]], bias], (*(dims.size(d) for d in query[:-1]), dims.size(key[-2])))
    return [result, *(fresh(found, shape) for shape in call.shapes[1:])]


def _einsum(found: Followed, call: Call) -> list[Dims]:
    """Letters name dimensions; a letter that is summed over two tensors of data is frozen, as heads' widths are."""
    left, _, right = str(call.attributes["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in left or not right or len(terms) != len(call.operands):
        return freeze_all(found, call)
    of: dict[str, int] = {}
    for term, operand in zip(terms, call.operands, strict=True):
        for letter, dimension in zip(term, operand, strict=True):
            if letter in of:
                found.dimensions.unify(of[letter], dimension)
            of.setdefault(letter, dimension)
    shared = set.intersection(*(set(term) for term in terms))
    if not any(call.from_weights):
        for letter in set(left.replace(",", "")) - (shared & set(right)):
            found.dimensions.freeze(of[letter])
    return [[of[letter] for letter in right]]


def _grouped_product(found: Followed, call: Call) -> list[Dims]:
    """Rows times the matrix of their own expert: (n, k) and (experts, k, m)."""
    x, weight = call.operands[:2]
    found.dimensions.freeze(weight[0])
    found.dimensions.unify(x[-1], weight[1])
    return [[*x[:-1], weight[2]]]


def _recurrent(found: Followed, call: Call) -> list[Dims]:
    """One width of the hidden state for all layers and directions; weights are (gates h, in), (gates h, h) and their biases."""
    dims, x = found.dimensions, call.operands[0]
    weights = [operand for operand, is_weight in zip(call.operands, call.from_weights, strict=True) if is_weight]
    states = [operand for operand, is_weight in zip(call.operands[1:], call.from_weights[1:], strict=True) if not is_weight]
    gates = {"lstm": 4, "gru": 3}.get(call.task.op, 1)
    matrices = [weight for weight in weights if len(weight) == 2]
    directions = 2 if call.attributes.get("bidirectional") else 1
    width = call.shapes[0][-1] // directions
    if len(matrices) % (2 * directions) or any(dims.size(matrix[0]) != gates * width for matrix in matrices):
        return freeze_all(found, call)
    hidden = dims.new(width)
    for weight in weights:
        number, each = dims.regroup([weight[0]], [gates, width])
        dims.freeze(number)
        dims.unify(each, hidden)
    both = dims.sum([hidden] * directions)
    for number, (inputs, recurrent) in enumerate(zip(matrices[::2], matrices[1::2], strict=True)):
        dims.unify(inputs[1], x[-1] if number < directions else both)
        dims.unify(recurrent[1], hidden)
    for state in states:
        dims.unify(state[-1], hidden)
    return [[*x[:-1], both], *([*fresh(found, shape[:-1]), hidden] for shape in call.shapes[1:])]


PRODUCT_RULES: dict[str, Rule] = {
    "linear": _linear,
    **dict.fromkeys(("mm", "bmm", "matmul", "addmm", "baddbmm"), _product),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), _grouped_product),
    **dict.fromkeys(sorted(RECURRENT), _recurrent),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
}
