"""Flop of one operator from shapes: two per multiply-add, elementwise operators count by bytes only.

    linear, mm, bmm, matmul   2 (product of output shape) (contracted length)
    convolution               2 (product of output shape) (input channels / groups) (product of kernel)
    transposed convolution    2 (product of input shape) (output channels / groups) (product of kernel)
    attention                 2 b h s t d  for scores and 2 b h s t e  for their product with the values

The backward pass is one product of the same size per operand that needs a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

Shape = Sequence[int]


def _contraction_flop(shapes: Sequence[Shape], output: Shape) -> float:
    return 2.0 * prod(output) * shapes[0][-1]


def _addmm_flop(shapes: Sequence[Shape], output: Shape) -> float:
    return 2.0 * prod(output) * shapes[1][-1]


def _convolution_flop(shapes: Sequence[Shape], output: Shape) -> float:
    weight = shapes[1]
    return 2.0 * prod(output) * prod(weight[1:])


def _transposed_convolution_flop(shapes: Sequence[Shape], output: Shape) -> float:
    return 2.0 * prod(shapes[0]) * prod(shapes[1][1:])


def _attention_flop(shapes: Sequence[Shape], output: Shape) -> float:
    query, key, value = shapes[:3]
    return 2.0 * prod(query) * key[-2] + 2.0 * prod(query[:-1]) * key[-2] * value[-1]


FLOP_OF: dict[str, Callable[[Sequence[Shape], Shape], float]] = {
    "linear": _contraction_flop,
    "mm": _contraction_flop,
    "bmm": _contraction_flop,
    "matmul": _contraction_flop,
    "addmm": _addmm_flop,
    "conv1d": _convolution_flop,
    "conv2d": _convolution_flop,
    "conv3d": _convolution_flop,
    "conv_transpose1d": _transposed_convolution_flop,
    "conv_transpose2d": _transposed_convolution_flop,
    "conv_transpose3d": _transposed_convolution_flop,
    "scaled_dot_product_attention": _attention_flop,
}

FIRST_OPERAND = {"addmm": 1}
"""Position of the first tensor of the product (addmm's first argument is the addend)."""

SAVES_OUTPUT = frozenset({"relu", "sigmoid", "tanh", "softmax", "log_softmax", "exp", "sqrt"})
"""Operators whose backward pass needs their output instead of their input."""

SAVES_NOTHING = frozenset({"add", "sub", "neg", "sum", "mean", "cat", "stack", "clone", "contiguous", "to"})
"""Operators whose backward pass needs neither."""


def forward_flop(op: str, shapes: Sequence[Shape], output: Shape) -> float:
    """Flop of the forward pass; 0 for operators that are counted by bytes.

    >>> forward_flop("linear", [(64, 784), (512, 784)], (64, 512))
    51380224.0
    """
    formula = FLOP_OF.get(op)
    return formula(shapes, output) if formula else 0.0
