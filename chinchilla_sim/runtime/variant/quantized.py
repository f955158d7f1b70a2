"""Quantized weights put into an exported model.

Linear layers compute in the weights' format (`number_formats.py`), lookups unpack the rows that they take, others the weight where they
read it: by nodes that are no tasks, but part of what reads them. In training weights are only rounded, for quantization-aware training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.variant.number_formats import LINEAR, Range, Stored, linear_rounded, look_up, rounded_weight, store, unpack
from chinchilla_sim.runtime.variant.surgery import fetch, has, is_linear, put, tensor_of

MADE_OF_WEIGHTS = "made_of_weights"
"""Mark of nodes that unpack a weight: each stage that reads it has its own."""
Samples = Callable[[], Iterable[tuple[Tensor, ...]]]
"""Inputs of the model that stand for all: what the scales of statically quantized inputs are set by."""


class Packer:
    """Puts quantized weights, and what computes with them, into an exported model."""

    def __init__(self, exported: GraphModule, weight_format: str, samples: Samples) -> None:
        self.exported, self.format, self.linear = exported, weight_format, LINEAR[weight_format]
        self.ranges = input_ranges(exported, samples) if self.linear.scales_input else {}
        self._unpacked: dict[Node, Node] = {}

    def change(self, user: Node, node: Node, name: str) -> None:
        """Let a user of the node that fetches a weight compute with the packed one."""
        weight, graph = tensor_of(self.exported, name), self.exported.graph
        bias = user.args[2] if len(user.args) > 2 else None
        with graph.inserting_before(user):
            if is_linear(user, node) and (bias is None or isinstance(bias, Node)):
                self._pack_linear(user, name, weight, bias)
            elif user.target is torch.ops.aten.embedding.default and user.args[0] is node:
                stored = self._stored(name, store(weight, self.format))
                user.target, user.args, user.kwargs = look_up, (weight.dtype, tuple(weight.shape), user.args[1], *stored), {}
            else:
                self._unpack(user, node, name, weight)

    def _pack_linear(self, user: Node, name: str, weight: Tensor, bias: Node | None) -> None:
        values = None if bias is None else tensor_of(self.exported, str(bias.target))
        stored = self._stored(name, self.linear.pack(weight, values))
        user.args = (user.args[0], *self.linear.arguments(stored, self.ranges.get(user.name), bias, weight.shape[0]))
        user.target = self.linear.apply

    def _unpack(self, user: Node, node: Node, name: str, weight: Tensor) -> None:
        graph = self.exported.graph
        if node not in self._unpacked:
            stored = self._stored(name, store(weight, self.format))
            with graph.inserting_after(node):
                made = graph.call_function(unpack, (weight.dtype, tuple(weight.shape), *stored))
            for source in reversed(stored):
                made.prepend(source)
            made.meta |= {"val": node.meta["val"], MADE_OF_WEIGHTS: True}
            self._unpacked[node] = made
        user.replace_input_with(node, self._unpacked[node])

    def _stored(self, name: str, values: Stored) -> list[Node]:
        return [fetch(self.exported.graph, self._store(name, suffix, value)) for suffix, value in values.items()]

    def _store(self, name: str, suffix: str, value: Any) -> str:
        path = f"{name}_{suffix}"
        if not has(self.exported, path):
            put(self.exported, path, value)
        return path


class Rounder:
    """Lets layers that are trained compute with weights, and int8 ones with inputs, as the format rounds them."""

    def __init__(self, exported: GraphModule, weight_format: str) -> None:
        self.exported, self.format = exported, weight_format
        self._rounded: dict[Node, Node] = {}

    def change(self, user: Node, node: Node, name: str) -> None:
        """Let a user of the node that fetches a weight compute with the rounded one."""
        graph = self.exported.graph
        if is_linear(user, node):
            source, weight, *bias = user.args
            user.target, user.args = linear_rounded, (self.format, source, weight, *bias)
            return
        if node not in self._rounded:
            with graph.inserting_after(node):
                made = graph.call_function(rounded_weight, (node, self.format))
            made.meta |= {"val": node.meta["val"], MADE_OF_WEIGHTS: True}
            self._rounded[node] = made
        user.replace_input_with(node, self._rounded[node])


def input_ranges(exported: GraphModule, samples: Samples) -> dict[str, Range]:
    """Least and largest value of the input of every linear layer over all samples; RunError without any."""
    watch = _Ranges(exported)
    for inputs in samples():
        with torch.no_grad():
            watch.run(*inputs)
    if not watch.found:
        raise RunError('the job yields no training data to set the scales of inputs by: write quantize = "int8", which needs none')
    return watch.found


class _Ranges(Interpreter):
    """Runs an exported model and keeps the range of what its linear layers read."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Range] = {}

    def run_node(self, n: Node) -> Any:
        """What the node returns."""
        if n.target is torch.ops.aten.linear.default:
            source = self.env[n.all_input_nodes[0]]
            before = self.found.get(n.name, (0.0, 0.0))
            self.found[n.name] = min(before[0], float(source.min())), max(before[1], float(source.max()))
        return super().run_node(n)
