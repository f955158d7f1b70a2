"""Cut graphs for one lane of a tensor-parallel rank: its parts of weights and tensors, and the collectives between lanes.

What is divided how is decided in `graph/division.py`, which the simulator counts by; here it is done to the operators of the traced model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from chinchilla_sim.graph.division import Division, GraphDivision, divide_graph
from chinchilla_sim.graph.layout import RESHAPES, Layout, block, local_shape
from chinchilla_sim.graph.task import WEIGHT_PREFIX, TaskGraph
from chinchilla_sim.runtime.stage.lanes import Lanes, add_up, apart, enter, gather, own_rows, without_foreign

CopyOf = Callable[[Node], Node]


@dataclass
class Placed:
    """What one cut graph holds already: tensors made whole, and whole ones whose gradients are added up."""

    gathered: dict[Node, Node] = field(default_factory=dict)
    entered: dict[Node, Node] = field(default_factory=dict)


class Divider:
    """Copies operators of a traced model as one lane runs them."""

    def __init__(self, exported: GraphModule, model: nn.Module, graph: TaskGraph, lanes: Lanes) -> None:
        self.exported, self.graph, self.lanes = exported, graph, lanes
        self.division: GraphDivision = divide_graph(graph, lanes.degree)
        self.operands = {kernel.name: kernel.operands for task in graph.tasks for kernel in task.kernels}
        self.ops = {kernel.name: kernel.op for task in graph.tasks for kernel in task.kernels}
        self.layouts: dict[str, Layout] = {}
        self.sizes: dict[str, int] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self._take_parts(model)

    def _take_parts(self, model: nn.Module) -> None:
        """Let the exported module hold this lane's parts of divided weights."""
        first: dict[int, str] = {}
        parts: dict[str, Tensor] = {}
        for path, tensor in _named_tensors(model):
            name = first.setdefault(id(tensor), path)
            layout = self.division.weights.get(name)
            if layout is not None:
                if name not in parts:
                    part = self.lanes.part(tensor.detach(), layout).clone(memory_format=torch.contiguous_format)
                    parts[name] = nn.Parameter(part, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part
                self.layouts[path], self.sizes[path] = layout, tensor.shape[layout.dim]
                _replace(self.exported, path, parts[name])
            if isinstance(tensor, nn.Parameter):
                self.parameters[path] = parts.get(name, tensor)  # type: ignore[assignment]

    def block_of(self, name: str) -> tuple[Layout, int, int] | None:
        """How a weight is divided, its whole size along that dimension, and where this lane's block of each part begins."""
        layout = self.layouts.get(name)
        if layout is None:
            return None
        start, _ = block(self.sizes[name] // layout.parts, self.lanes.degree, self.lanes.lane)
        return layout, self.sizes[name], start

    def undivided(self, paths: Mapping[nn.Parameter, str]) -> list[nn.Parameter]:
        """Those parameters (by where they lie in the model) that all lanes hold whole."""
        return [parameter for parameter, path in paths.items() if path not in self.layouts]

    def whole_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of a stage with whole weights in the place of this lane's parts; all lanes call it together."""
        whole = dict(state)
        for name, layout in self.layouts.items():
            if name in whole:
                whole[name] = self.lanes.join(state[name], layout, self.sizes[name])
        return whole

    def layout_of(self, name: str) -> Layout | None:
        """How the output of an operator is divided, as it leaves it."""
        found = self.division.operators.get(name)
        return found.output if found else None

    def local_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape on this lane."""
        return local_shape(shape, self.layout_of(name), self.lanes.degree, self.lanes.lane)

    def whole(self, graph: Graph, node: Node, copy_of: CopyOf, placed: Placed) -> Node:
        """A tensor of the traced model made whole."""
        layout = self.layout_of(node.name)
        if layout is None:
            return copy_of(node)
        if node not in placed.gathered:
            size = node.meta["val"].shape[layout.dim]
            placed.gathered[node] = graph.call_function(with_rest(gather, self.lanes, layout, size), (copy_of(node),))
        return placed.gathered[node]

    def copy(self, graph: Graph, node: Node, copy_of: CopyOf, placed: Placed) -> Node:
        """The operator as this lane runs it; returns the node of its output."""
        division = self.division.operators[node.name]
        names = self.operands[node.name]
        leaves = [leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)]
        given = {leaf: self._operand(graph, leaf, name, position, division, copy_of, placed)
                 for position, (leaf, name) in enumerate(zip(_tensors(leaves), names, strict=True))}  # fmt: skip
        if division.kind == "rows":
            return self._rows(graph, node, lambda leaf: given.get(leaf) or copy_of(leaf))
        if division.kind == "lookup":
            return self._lookup(graph, node, lambda leaf: given.get(leaf) or copy_of(leaf))
        made = graph.node_copy(node, lambda leaf: given.get(leaf) or copy_of(leaf))
        if division.kind == "split":
            self._localize(made, node)
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                made.target = apart(node.target, self.lanes)  # type: ignore[arg-type]
        return made

    def _operand(self, graph: Graph, leaf: Node, name: str, position: int, division: Division, copy_of: CopyOf, placed: Placed) -> Node:
        """What the operator reads in the place of an operand."""
        result = self.whole(graph, leaf, copy_of, placed) if name in division.gathered else copy_of(leaf)
        if name in division.reduced:
            if leaf not in placed.entered:
                placed.entered[leaf] = graph.call_function(with_rest(enter, self.lanes), (result,))
            result = placed.entered[leaf]
        layout = division.parts_of.get(position)
        if layout is not None and not self._is_weight(name):
            return graph.call_function(with_rest(self.lanes.part, layout), (result,))
        return result

    def _is_weight(self, name: str) -> bool:
        """Whether it is a weight or a view of one."""
        operands = () if name.startswith(WEIGHT_PREFIX) else self.operands[name]
        return name.startswith(WEIGHT_PREFIX) or (bool(operands) and all(map(self._is_weight, operands)))

    def _rows(self, graph: Graph, node: Node, copy_of: CopyOf) -> Node:
        """A product of parts, summed up; its bias is added once, behind the sum."""
        args = list(node.args)
        place = 0 if self.ops[node.name] == "addmm" else 2
        bias = args[place] if len(args) > place else None
        if not isinstance(bias, Node) or self.ops[node.name] in ("mm", "matmul", "_grouped_mm"):
            return self._summed(graph, graph.node_copy(node, copy_of))
        if self.ops[node.name] == "addmm":
            product = graph.call_function(torch.ops.aten.mm.default, tuple(copy_of(arg) for arg in args[1:3]))  # type: ignore[arg-type]
        else:
            args[place] = None
            product = graph.create_node("call_function", node.target, torch.fx.map_arg(tuple(args), copy_of), node.kwargs)
        added = copy_of(bias)
        if self.ops[node.name].startswith("conv"):
            shape = [-1] + [1] * (node.meta["val"].dim() - 2)
            return graph.call_function(add_bias, (self._summed(graph, product), added, shape))
        return graph.call_function(torch.ops.aten.add.Tensor, (self._summed(graph, product), added))

    def _lookup(self, graph: Graph, node: Node, copy_of: CopyOf) -> Node:
        """Every lane looks up the rows that it has; the sum has them all."""
        table, indices, *rest = node.args
        assert isinstance(table, Node) and isinstance(indices, Node)
        start, end = block(self._rows_of(node), self.lanes.degree, self.lanes.lane)
        if rest and isinstance(rest[0], int):
            rest[0] = rest[0] - start if start <= rest[0] < end else -1
        ids = copy_of(indices)
        own = graph.call_function(own_rows, (ids, start, end))
        rows = graph.create_node("call_function", node.target, (copy_of(table), own, *rest), node.kwargs)
        return self._summed(graph, graph.call_function(without_foreign, (rows, ids, start, end)))

    def _summed(self, graph: Graph, part: Node) -> Node:
        return graph.call_function(with_rest(add_up, self.lanes), (part,))

    def _rows_of(self, node: Node) -> int:
        return self.graph.weights[self.operands[node.name][0].removeprefix(WEIGHT_PREFIX)].shape[0]

    def _localize(self, made: Node, node: Node) -> None:
        """Sizes among the arguments are those of the lane's part."""
        op, value = self.ops[node.name], node.meta["val"]
        if op in RESHAPES:
            made.target = torch.ops.aten.reshape.default
            made.args, made.kwargs = (made.args[0], list(self.local_shape(node.name, tuple(value.shape)))), {}
        elif op == "expand":
            made.args = (made.args[0], list(self.local_shape(node.name, tuple(value.shape))), *made.args[2:])
        elif op == "narrow":
            made.args = (*made.args[:3], self.local_shape(node.name, tuple(value.shape))[int(made.args[1])])  # type: ignore[arg-type]
        elif op in ("split", "split_with_sizes"):
            layout = self.layout_of(node.name)
            assert layout is not None
            sizes = [self.local_shape(node.name, tuple(one.shape))[layout.dim] for one in value]
            dim = made.args[2] if len(made.args) > 2 else made.kwargs.get("dim", 0)
            if isinstance(dim, int) and dim % value[0].dim() == layout.dim:
                made.args = (made.args[0], sizes[0] if op == "split" and isinstance(made.args[1], int) else sizes, *made.args[2:])


def with_rest(function: Callable[..., Tensor], *rest: Any) -> Callable[[Tensor], Tensor]:
    """The function of a tensor with its other arguments, which a graph could not print."""

    def call(tensor: Tensor) -> Tensor:
        return function(tensor, *rest)

    call.__name__ = function.__name__
    return call


def add_bias(tensor: Tensor, bias: Tensor, shape: list[int]) -> Tensor:
    """A bias per channel."""
    return tensor + bias.view(shape)


def _tensors(leaves: list[Node]) -> Iterator[Node]:
    """Nodes that stand for tensors."""
    for leaf in leaves:
        value = leaf.meta.get("val")
        if leaf.op == "get_attr" and value is None:
            continue
        if any(isinstance(item, Tensor) for item in (value if isinstance(value, tuple | list) else (value,))):
            yield leaf


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _replace(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Put a tensor in the place of the one at this path."""
    owner, _, name = path.rpartition(".")
    holder: nn.Module | None = module
    for part in filter(None, owner.split(".")):
        holder = getattr(holder, part, None)
    if hasattr(holder, name):  # else no operator reads it
        setattr(holder, name, tensor)
