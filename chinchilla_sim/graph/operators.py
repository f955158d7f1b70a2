"""What one operator costs, from shapes: flop (two per multiply-add), bytes moved, what backward keeps and does.

    linear, mm, bmm, matmul   2 (product of output shape) (contracted length)
    einsum                    2 (product of all index lengths) per pair, contracted from left to right
    convolution               2 (product of output shape) (input channels / groups) (product of kernel)
    transposed convolution    2 (product of input shape) (output channels / groups) (product of kernel)
    attention                 2 b h s t d  for scores and 2 b h s t e  for their product with the values
    bilinear                  2 b o j (i + 1)
    lstm, gru, rnn            2 (tokens) (elements of the weight matrices)

Elementwise operators, norms and lookups count by bytes only. The backward pass is one product of the same size per
operand that needs a gradient; a lookup reads the rows it needs, and its backward pass writes the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from chinchilla_sim.graph.task import Shape

Shapes = Sequence[Shape]
Attributes = Mapping[str, Any]
INDEX_BYTES = 8.0
WITHOUT_GRADIENT = "wrap_with_set_grad_enabled"
"""What torch.export makes of a region under `torch.no_grad()`."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that an operator reads. `bytes` are of all its outputs; `base` is the task that owns its memory ("" for weights)."""

    name: str
    shape: Shape
    bytes: float
    is_weight: bool = False
    needs_gradient: bool = False
    base: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator: operands in order, shapes of its outputs."""

    op: str
    operands: tuple[Operand, ...]
    shapes: tuple[Shape, ...]
    output_bytes: float
    value_bytes: float = 4.0
    attributes: Attributes = field(default_factory=dict)

    @property
    def distinct(self) -> tuple[Operand, ...]:
        """Operands, each once."""
        return tuple({operand.name: operand for operand in self.operands}.values())

    @property
    def gradient_operands(self) -> tuple[Operand, ...]:
        """Distinct operands that receive a gradient."""
        return tuple(operand for operand in self.distinct if operand.needs_gradient)


def _contraction_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    return 2.0 * prod(output) * shapes[0][-1]


def _addmm_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    return 2.0 * prod(output) * shapes[1][-1]


def _convolution_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    return 2.0 * prod(output) * prod(shapes[1][1:])


def _transposed_convolution_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    return 2.0 * prod(shapes[0]) * prod(shapes[1][1:])


def _attention_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    query, key, value = shapes[:3]
    return 2.0 * prod(query) * key[-2] + 2.0 * prod(query[:-1]) * key[-2] * value[-1]


def _bilinear_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    return 2.0 * prod(output) * shapes[1][-1] * (shapes[0][-1] + 1)


def _grouped_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    """Rows (n, k) in groups, each times its own (k, m)."""
    return 2.0 * prod(output) * shapes[0][-1]


def _recurrent_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    tokens = prod(shapes[0][:-1])
    return 2.0 * tokens * sum(prod(shape) for shape in _matrices(shapes))


def _matrices(shapes: Shapes) -> list[Shape]:
    """Weight matrices of a recurrent operator: (gates h, in), (gates h, h) per layer and direction."""
    return [shape for shape in shapes[1:] if len(shape) == 2]


def einsum_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    """Flop of `attributes["equation"]`, contracted pair by pair from the left, as torch does without opt_einsum.

    >>> einsum_flop([(4, 8), (8, 3)], (4, 3), {"equation": "bi,io->bo"})
    192.0
    """
    left, _, result = str(attributes["equation"]).replace(" ", "").partition("->")
    terms = [_labels(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)]
    if "->" not in str(attributes["equation"]):
        flat = [label for term in terms for label in term]
        result_labels = {label for label in flat if flat.count(label) == 1 or isinstance(label, int)}
    else:
        result_labels = set(_labels(result, len(output)))
    length = {label: 1 for term in terms for label in term}
    for term, shape in zip(terms, shapes, strict=True):
        for label, size in zip(term, shape, strict=True):
            length[label] = max(length[label], size)
    flop, current = 0.0, set(terms[0])
    for index, term in enumerate(terms[1:], start=1):
        later = result_labels.union(*terms[index + 1 :])
        # An index of one operand alone that nobody needs later is summed away before the product.
        alone = {label for label in current ^ set(term) if label not in later}
        joined = (current | set(term)) - alone
        flop += 2.0 * prod(length[label] for label in joined)
        current = joined & later
    return flop


def _labels(term: str, rank: int) -> list[str | int]:
    """Index labels of one term; `...` becomes numbers counted from the right."""
    before, dots, after = term.partition("...")
    extra = rank - len(before) - len(after) if dots else 0
    return [*before, *range(-extra, 0), *after]


def _stated_flop(shapes: Shapes, output: Shape, attributes: Attributes) -> float:
    """A whole region: whoever made the call has counted what is inside."""
    return float(attributes.get("flop", 0.0))


Formula = Callable[[Shapes, Shape, Attributes], float]

FLOP_OF: dict[str, Formula] = {
    **dict.fromkeys(("linear", "mm", "bmm", "matmul", "mv", "dot", "outer"), _contraction_flop),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _addmm_flop),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution_flop),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution_flop),
    **dict.fromkeys(
        (
            "scaled_dot_product_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
        ),
        _attention_flop,
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent_flop),
    "einsum": einsum_flop,
    WITHOUT_GRADIENT: _stated_flop,
    "bilinear": _bilinear_flop,
    "_grouped_mm": _grouped_flop,
    "grouped_mm_fallback": _grouped_flop,
}

FIRST_FACTOR = {"addmm": 1, "baddbmm": 1, "addmv": 1}
"""Position of the first factor of a product (the first argument of addmm is the addend)."""

RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
LOOKUPS = {"embedding": 0, "embedding_bag": 0, "index_select": 0, "gather": 0, "index": 0, "take_along_dim": 0}
"""Operators that read single rows of an operand, and its position."""

SAVES_OUTPUT = frozenset(
    {"relu", "sigmoid", "tanh", "softmax", "log_softmax", "exp", "sqrt", "rsqrt", "_softmax", "_log_softmax", "hardtanh", "relu6"}
)
"""Operators whose backward pass needs their output instead of their input."""

SAVES_NOTHING = frozenset(
    {
        *("add", "sub", "rsub", "neg", "sum", "mean", "cat", "stack", "clone", "contiguous", "to", "_to_copy", "copy", "pad", "roll"),
        *("constant_pad_nd", "upsample_nearest2d", "upsample_bilinear2d", "reshape", "flatten", "repeat", "repeat_interleave", "flip"),
        *("concat", "pixel_shuffle", "cumsum", "type_as", "float", "half", "bfloat16", "zeros_like", "ones_like", "_unsafe_view"),
    }
)
"""Operators whose backward pass needs neither."""

MULTIPLIES = frozenset({"mul", "div", "true_divide"})
"""Elementwise products: each operand is kept for the gradient of the other, a plain number keeps nothing."""

DROPS = frozenset({"dropout", "native_dropout", "alpha_dropout", "feature_dropout"})
POOLS_WITH_INDICES = frozenset({"max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool2d"})
BATCH_STATISTICS = frozenset({"batch_norm", "_native_batch_norm_legit_functional", "native_batch_norm"})


def forward_flop(op: str, shapes: Shapes, output: Shape, attributes: Attributes | None = None) -> float:
    """Flop of the forward pass; 0 for operators that are counted by bytes.

    >>> forward_flop("linear", [(64, 784), (512, 784)], (64, 512))
    51380224.0
    """
    formula = FLOP_OF.get(op)
    return formula(shapes, output, attributes or {}) if formula else 0.0


def amounts_of(call: Call, training_mode: bool = True) -> dict[str, Any]:
    """Fields of the Task that makes this call: flop, bytes, what is saved, kernels. `training_mode` is the module's own flag."""
    needs_gradient = bool(call.gradient_operands)
    flop = forward_flop(call.op, [operand.shape for operand in call.operands], call.shapes[0] if call.shapes else (), call.attributes)
    input_flop, weight_flop = _gradient_flop(call, flop)
    mask_bytes = _kept_beside(call) if needs_gradient else 0.0
    weights = 0.0 if call.op in LOOKUPS else sum(operand.bytes for operand in call.distinct if operand.is_weight)
    fields: dict[str, Any] = {
        "forward_flop": flop,
        "input_gradient_flop": input_flop,
        "weight_gradient_flop": weight_flop,
        "output_bytes": call.output_bytes,
        "read_bytes": _read_bytes(call),
        "written_bytes": call.output_bytes,
        "weight_bytes": weights,
        "parameters": tuple(dict.fromkeys(operand.name.partition(":")[2] for operand in call.operands if operand.is_weight)),
        "needs_gradient": needs_gradient,
        "launch_count": _launches(call),
        "recomputable": not (call.op in BATCH_STATISTICS and training_mode),
    }
    if needs_gradient:
        fields |= _backward_bytes(call, mask_bytes) | {"saved": _saved(call), "saved_bytes": mask_bytes}
    return fields


def factors_of(call: Call) -> tuple[Operand, ...]:
    """The operands that a product multiplies; () for other operators."""
    if call.op not in FLOP_OF:
        return ()
    if call.op in RECURRENT:
        return (call.operands[0], *(operand for operand in call.operands[1:] if operand.is_weight and len(operand.shape) == 2))
    first = FIRST_FACTOR.get(call.op, 0)
    count = 3 if "attention" in call.op or call.op == "bilinear" else len(call.operands) if call.op == "einsum" else 2
    return call.operands[first : first + count]


def _gradient_flop(call: Call, flop: float) -> tuple[float, float]:
    """Flop of the gradients of inputs and of weights."""
    factors = factors_of(call)
    if not factors or not call.gradient_operands:
        return 0.0, 0.0
    if call.op in RECURRENT:
        return _recurrent_gradient_flop(call, flop)
    # Attention makes two products of two factors each, so that each of three operands costs 2/3 of the forward pass.
    per_factor = flop * (2 / 3 if len(factors) == 3 and call.op != "einsum" else 1.0)
    inputs = sum(factor.needs_gradient and not factor.is_weight for factor in factors)
    weights = sum(factor.needs_gradient and factor.is_weight for factor in factors)
    return per_factor * inputs, per_factor * weights


def _recurrent_gradient_flop(call: Call, flop: float) -> tuple[float, float]:
    """The recurrence always needs the gradient of its states; that of the data only where somebody asks for it."""
    data = call.operands[0]
    matrices = [operand for operand in call.operands[1:] if operand.is_weight and len(operand.shape) == 2]
    first_layer = matrices[: 1 + 2 * bool(call.attributes.get("bidirectional")) : 2]
    unwanted = 0.0 if data.needs_gradient else 2.0 * prod(data.shape[:-1]) * sum(prod(operand.shape) for operand in first_layer)
    trained = sum(prod(operand.shape) for operand in matrices if operand.needs_gradient)
    return flop - unwanted, 2.0 * prod(data.shape[:-1]) * trained


def _read_bytes(call: Call) -> float:
    total = sum(operand.bytes for operand in call.distinct)
    if call.op not in LOOKUPS or not call.operands:
        return total
    table = call.operands[LOOKUPS[call.op]]
    return total - table.bytes + _gathered_bytes(call)


def _gathered_bytes(call: Call) -> float:
    """Bytes of the rows that a lookup reads: one per index."""
    if call.op == "embedding_bag" and len(call.operands) > 1:
        return prod(call.operands[1].shape) * call.operands[0].shape[-1] * call.value_bytes
    return call.output_bytes


def _backward_bytes(call: Call, mask_bytes: float) -> dict[str, float]:
    """Bytes that the backward pass reads and writes, and the part of both that does not grow with the batch."""
    weights = [operand for operand in call.gradient_operands if operand.is_weight]
    written = sum(operand.bytes for operand in call.gradient_operands)
    constant = sum(operand.bytes for operand in weights)
    if call.op in LOOKUPS:
        rows = _gathered_bytes(call)
        indices = sum(operand.bytes for operand in call.distinct[1:])
        return {
            "backward_read_bytes": call.output_bytes + rows + indices,
            "backward_written_bytes": written + rows,
            "backward_weight_bytes": constant,
        }
    read = _read_in_backward(call)
    return {
        "backward_read_bytes": call.output_bytes + mask_bytes + sum(bytes for _, bytes in read),
        "backward_written_bytes": written,
        "backward_weight_bytes": constant + sum(bytes for operand, bytes in read if operand is not None and operand.is_weight),
    }


def _read_in_backward(call: Call) -> list[tuple[Operand | None, float]]:
    """Tensors that the backward pass reads beside the output's gradient: for a product each factor whose partner needs one."""
    factors = factors_of(call)
    if call.op in RECURRENT:
        return [(operand, operand.bytes) for operand in call.distinct if not operand.is_weight or len(operand.shape) == 2]
    if factors:
        wanted = {factor.name: factor for factor in factors if any(o.needs_gradient for o in factors if o is not factor)}
        return [(factor, factor.bytes) for factor in wanted.values()]
    if call.op in SAVES_NOTHING or call.op in DROPS:
        return []
    if call.op in SAVES_OUTPUT:
        return [(None, call.output_bytes)]
    return [(operand, operand.bytes) for operand in _kept_operands(call)]


def _kept_operands(call: Call) -> tuple[Operand, ...]:
    """Operands that an operator without product keeps for its backward pass."""
    if call.op in MULTIPLIES:
        operands = call.operands
        kept = (operand for operand in operands if any(other.needs_gradient for other in operands if other is not operand))
        return tuple({operand.name: operand for operand in kept}.values()) if len(operands) > 1 else ()
    if call.op in LOOKUPS:
        return call.distinct[1:]
    return call.distinct


def _saved(call: Call) -> tuple[str, ...]:
    """Tasks whose memory is kept until the backward pass (weights are there anyway); "" stands for the call's own output."""
    if call.op in SAVES_NOTHING or call.op in DROPS:
        return ()
    if call.op in SAVES_OUTPUT:
        return ("",)
    factors = factors_of(call)
    if factors and call.op not in RECURRENT:
        kept = [factor for factor in factors if any(other.needs_gradient for other in factors if other is not factor)]
    else:
        kept = list(_kept_operands(call))
    names = tuple(dict.fromkeys(operand.base for operand in kept if operand.base))
    return (*names, "") if "attention" in call.op else names


def _kept_beside(call: Call) -> float:
    """Bytes that are kept beside operands and output: masks, indices of maxima, the inner states of a recurrence."""
    values = prod(call.shapes[0]) if call.shapes else 0
    if call.op in DROPS and call.attributes.get("training", True):
        return float(values)
    if call.op in POOLS_WITH_INDICES:
        return INDEX_BYTES * values
    if call.op in RECURRENT:
        tokens = prod(call.operands[0].shape[:-1])
        extra = {"lstm": 3, "gru": 2}.get(call.op, 0)
        recurrent = _matrices([operand.shape for operand in call.operands])[1::2]
        return call.value_bytes * tokens * sum(rows + extra * hidden for rows, hidden in recurrent)
    return 0.0


def _launches(call: Call) -> int:
    """Kernels of the forward pass: a recurrence starts two per time step, layer and direction."""
    if call.op not in RECURRENT:
        return 1
    steps = call.operands[0].shape[1 if call.attributes.get("batch_first") else 0]
    return 2 * steps * len(_matrices([operand.shape for operand in call.operands])[1::2])
