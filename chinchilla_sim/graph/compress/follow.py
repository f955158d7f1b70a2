"""Follow every dimension of a model through its operators: which are the same, products of others, or must not change.

Each rule takes a call (operands' dimensions, shapes of outputs) and returns the outputs' dimensions. An operator without a
rule freezes all that it touches: then less can be pruned, but never something wrong.
"""

from __future__ import annotations

from chinchilla_sim.graph.compress.calls import Call, Dims, Followed, Rule, broadcast, freeze_all, fresh
from chinchilla_sim.graph.compress.products import PRODUCT_RULES
from chinchilla_sim.graph.compress.relabels import RELABEL_RULES
from chinchilla_sim.graph.task import INPUT_OP, LOSS_OP, WEIGHT_PREFIX, Task, TaskGraph


def follow(graph: TaskGraph) -> Followed:
    """Dimensions of all tensors of a graph whose tasks know their operands and shapes."""
    found = Followed()
    dims, from_weights = found.dimensions, dict[str, bool]()
    found.weights = {name: [dims.new(size) for size in weight.shape] for name, weight in graph.weights.items()}
    for task in graph.tasks:
        if task.op == INPUT_OP:
            found.outputs[task.name] = [[dims.new(size, frozen=True) for size in shape] for shape in task.shapes]
        elif task.op != LOSS_OP:
            call = _call_of(task, found, from_weights)
            rule = RULES.get(task.op, freeze_all)
            found.outputs[task.name] = rule(found, call)
            from_weights[task.name] = bool(call.operands) and all(call.from_weights)
    _freeze_ends(graph, found)
    return found


def _call_of(task: Task, found: Followed, from_weights: dict[str, bool]) -> Call:
    operands, weights, parents = [], [], []
    for name in task.operands:
        is_weight = name.startswith(WEIGHT_PREFIX)
        outputs = [found.weights[name.removeprefix(WEIGHT_PREFIX)]] if is_weight else found.outputs[name]
        operands.append(outputs[0] if outputs else [])
        weights.append(is_weight or from_weights.get(name, False))
        parents.append(outputs)
    return Call(task, operands, weights, dict(task.attributes), parents[0] if parents else [])


def _freeze_ends(graph: TaskGraph, found: Followed) -> None:
    """What the model returns keeps its size: what the loss reads, or else whatever no task reads."""
    losses = [producer for producer, consumer in graph.edges if consumer == LOSS_OP]
    read = {producer for producer, _ in graph.edges}
    unread = [task.name for task in graph.tasks if task.name not in read and task.op not in ("getitem", LOSS_OP)]
    for name in losses or unread:
        for dims in found.outputs.get(name, []):
            for dimension in dims:
                found.dimensions.freeze(dimension)


def _elementwise(found: Followed, call: Call) -> list[Dims]:
    """Operands are broadcast to the output; further outputs (masks) look like the first."""
    return [broadcast(found, call.operands, shape) for shape in call.shapes]


def _created(found: Followed, call: Call) -> list[Dims]:
    """Tensors of zeros and the like are made as large as what they meet needs."""
    return [[found.dimensions.new(size) for size in shape] for shape in call.shapes]


def _image(found: Followed, call: Call) -> list[Dims]:
    """Pooling and resizing: channels stay."""
    x = call.operands[0]
    channels = len(x) - (2 if call.task.op.endswith("2d") else 1 if call.task.op.endswith("1d") else 3)
    for dimension in x[channels:]:
        found.dimensions.freeze(dimension)
    return [[*x[:channels], *fresh(found, shape[channels:])] for shape in call.shapes]


def _embedding(found: Followed, call: Call) -> list[Dims]:
    table, indices = call.operands[:2]
    found.dimensions.freeze(table[0])
    return [[*indices, table[1]]]


def _embedding_bag(found: Followed, call: Call) -> list[Dims]:
    table = call.operands[0]
    found.dimensions.freeze(table[0])
    first = [found.dimensions.new(call.shapes[0][0], frozen=True), table[1]]
    return [first, *(fresh(found, shape) for shape in call.shapes[1:])]


def _norm(found: Followed, call: Call) -> list[Dims]:
    """Layer norms and the like: weights belong to the last axes."""
    x, *weights = call.operands
    for weight in weights:
        for ours, theirs in zip(reversed(x), reversed(weight), strict=False):
            found.dimensions.unify(ours, theirs)
    return [x, *(fresh(found, shape) for shape in call.shapes[1:])]


def _batch_norm(found: Followed, call: Call) -> list[Dims]:
    x, *weights = call.operands
    if call.task.op == "group_norm":
        groups = int(call.attributes["num_groups"])
        number, _ = found.dimensions.regroup([x[1]], [groups, found.dimensions.size(x[1]) // groups])
        found.dimensions.freeze(number)
    for weight in weights:
        for dimension in weight:
            found.dimensions.unify(x[1], dimension)
    return [x, *(fresh(found, shape) for shape in call.shapes[1:])]


def _reduce(found: Followed, call: Call) -> list[Dims]:
    """Axes that are summed (or the like) go; of two operands `min` and `max` are elementwise."""
    if len(call.operands) > 1:
        return _elementwise(found, call)
    x, shape = call.operands[0], call.shapes[0]
    given = call.attributes.get("dim", call.attributes.get("dims"))
    axes = set(range(len(x))) if given is None else {a % len(x) for a in ([given] if isinstance(given, int) else given)}
    kept: Dims = []
    for axis, dimension in enumerate(x):
        if axis not in axes:
            kept.append(dimension)
        elif len(shape) == len(x):
            kept.append(found.dimensions.new(1, frozen=True))
    return [kept for _ in call.shapes] if len(kept) == len(shape) else freeze_all(found, call)


ELEMENTWISE = (
    *("add", "sub", "rsub", "mul", "div", "true_divide", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "abs", "tanh", "sigmoid"),
    *("relu", "relu6", "gelu", "silu", "mish", "elu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "softplus", "erf"),
    *("dropout", "native_dropout", "alpha_dropout", "feature_dropout", "softmax", "log_softmax", "_softmax", "_log_softmax"),
    *("masked_fill", "where", "clone", "contiguous", "to", "_to_copy", "alias", "detach", "type_as", "float", "half", "bfloat16"),
    *("maximum", "minimum", "clamp", "clip", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "__and"),
    *("sin", "cos", "zeros_like", "ones_like", "full_like", "cumsum", "lerp", "addcmul", "square", "reciprocal", "sign", "lift_fresh_copy"),
)  # fmt: skip
REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "argmax", "argmin", "any", "all")
POOLS = (
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d"),
)
CREATED = ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "alibi", "sinusoids")
RULES: dict[str, Rule] = {
    **PRODUCT_RULES,
    **RELABEL_RULES,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(POOLS, _image),
    **dict.fromkeys(CREATED, _created),
    **dict.fromkeys(("layer_norm", "rms_norm", "native_layer_norm"), _norm),
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm", "native_batch_norm"), _batch_norm),
    "embedding": _embedding,
    "embedding_bag": _embedding_bag,
}
