"""Split backward passes: an operator whose weight gradients wait.

The zero-bubble schedules (Qi et al. 2023) compute a stage's input gradients first (I) and those of its weights later (W).
An operator that reads trained weights keeps a graph of its own: I asks that graph for the gradients of its other inputs only, and
writes down what W then asks it for. No product is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

Entry = tuple[list[GradientEdge], list[nn.Parameter], list[Tensor]]
"""Where autograd goes on from the outputs of one operator, its weights, and the gradients of the outputs."""


@dataclass
class WeightTape:
    """Weight gradients that are still to be computed, in the order in which I met them."""

    entries: list[Entry] = field(default_factory=list)

    def take(self) -> list[Entry]:
        """All entries; the tape is empty afterwards."""
        entries, self.entries = self.entries, []
        return entries


def compute_weight_gradients(entries: list[Entry]) -> None:
    """Add the gradients of all weights of these entries to their `.grad`; entries are freed one by one."""
    while entries:
        ends, weights, gradients = entries.pop(0)
        torch.autograd.backward(ends, gradients, inputs=weights)


def defer(operator: Callable[..., Any], tape: WeightTape) -> Callable[..., Any]:
    """The operator with its weight gradients left to the tape; returns what the operator returns."""

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        if not any(isinstance(leaf, nn.Parameter) and leaf.requires_grad for leaf in leaves) or not torch.is_grad_enabled():
            return operator(*args, **kwargs)
        outputs: list[Any] = []
        tensors = _Deferred.apply(tape, operator, structure, outputs, *leaves)  # type: ignore[no-untyped-call]
        # What is no tensor, and the shape of the result, go around autograd.
        found = iter(tensors)
        rest, shape = outputs
        return tree_unflatten([next(found) if isinstance(leaf, Tensor) else leaf for leaf in rest], shape)

    return call


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tape: WeightTape, operator: Callable[..., Any], structure: Any, result: list[Any], *leaves: Any) -> Any:
        inner = [
            leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) else leaf
            for leaf in leaves
        ]
        args, kwargs = tree_unflatten(inner, structure)
        with torch.enable_grad():
            outputs = operator(*args, **kwargs)
        rest, shape = tree_flatten(outputs)
        result += [rest, shape]
        ctx.tape, ctx.inner = tape, inner
        tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        # Not the outputs, which may be freed before W.
        ctx.ends = [get_gradient_edge(tensor) if tensor.requires_grad else None for tensor in tensors]
        ctx.mark_non_differentiable(*[tensor for tensor in tensors if not tensor.is_floating_point()])
        return tuple(tensor.detach() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        pairs = [(end, grad) for end, grad in zip(ctx.ends, gradients, strict=True) if end and grad is not None]
        ends, given = [end for end, _ in pairs], [grad for _, grad in pairs]
        weights = [leaf for leaf in ctx.inner if isinstance(leaf, nn.Parameter) and leaf.requires_grad]
        wanted = [leaf for leaf in ctx.inner if isinstance(leaf, Tensor) and leaf.requires_grad and not isinstance(leaf, nn.Parameter)]
        found = torch.autograd.grad(ends, wanted, given, retain_graph=True, allow_unused=True) if wanted else ()
        ctx.tape.entries.append((ends, weights, given))
        gradient_of = dict(zip(map(id, wanted), found, strict=True))
        return (None, None, None, None, *(gradient_of.get(id(leaf)) for leaf in ctx.inner))
