"""Compressed variants of a model, run as `graph/compress` counts them: the exported model is changed as its task graph is.

share, tie    the nodes of a weight read the one that stands for it
prune         of each group of neurons, channels or heads those of the least magnitude (sum of |w| over all weights of the group) go
low rank      a layer becomes two, from the singular values of its weight
sparse        the least values of every matrix are zero
quantized     weights are packed, and linear layers compute in their format (`quantized.py`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.graph.compress.calls import Followed
from chinchilla_sim.graph.compress.follow import follow
from chinchilla_sim.graph.compress.low_rank import factor_low_rank
from chinchilla_sim.graph.compress.prune import RESHAPES, kept_sizes, prune
from chinchilla_sim.graph.compress.quantize import quantizable, quantize
from chinchilla_sim.graph.compress.share import share_weights, tie_embeddings
from chinchilla_sim.graph.compress.sparse import may_be_thinned
from chinchilla_sim.graph.task import LOSS_OP, NARROW, WEIGHT_PREFIX, Task, TaskGraph
from chinchilla_sim.graph.trace import shape_of, tensors_of
from chinchilla_sim.runtime.variant.quantized import Packer, Rounder, Samples
from chinchilla_sim.runtime.variant.sparsity import thinned
from chinchilla_sim.runtime.variant.surgery import beside, fetch, has, put, tensor_of

State = dict[str, Tensor]
"""Weights by name."""


@dataclass(frozen=True)
class Made:
    """A variant: exported model and task graph, compressed alike, and `expand`, which makes weights of the whole model of its own.

    What was pruned is 0 there and what was shared or factored written out, so that the variant made from them computes the same.
    """

    exported: GraphModule
    graph: TaskGraph
    expand: Callable[[State], State]


def make_variant(exported: GraphModule, graph: TaskGraph, variant: Variant, samples: Samples) -> Made:
    """The exported model and its graph, compressed; the model that was exported keeps its weights.

    In training, integer formats stand for rounding alone: weights stay as they are, and layers compute with the rounded ones.
    """
    maker = _Maker(exported, graph)
    if variant.share_weights:
        maker.share(share_weights(maker.graph))
    if variant.tie_embeddings:
        maker.share(tie_embeddings(maker.graph))
    if variant.prune:
        maker.prune(variant.prune)
    if variant.low_rank:
        maker.factor(factor_low_rank(maker.graph, variant.low_rank))
    maker.check_shapes()
    if variant.sparsity and not maker.training:
        maker.thin(variant.sparsity)
    if variant.quantize:
        maker.quantize(variant.quantize, samples)
    return Made(maker.exported, maker.graph, maker.expand)


class _Maker:
    """An exported model and its task graph while both are changed step by step."""

    def __init__(self, exported: GraphModule, graph: TaskGraph) -> None:
        self.exported, self.graph = exported, graph
        self.node_of = {node.name: node for node in exported.graph.nodes if node.op == "call_function"}
        self.training = graph.tasks[-1].op == LOSS_OP
        self._backwards: list[Callable[[State], State]] = []
        self._name_readers()

    def expand(self, state: State) -> State:
        """Weights of the whole model from those of the variant."""
        for step in reversed(self._backwards):
            state = step(state)
        return state

    def _name_readers(self) -> None:
        """Let every node that reads a weight do so by the task graph's name of it: tied weights have several."""
        names = {tensor_of(self.exported, name).data_ptr(): name for name in reversed(list(self.graph.weights)) if has(self.exported, name)}
        for node in self.exported.graph.nodes:
            if node.op == "get_attr" and tensors_of(node) and str(node.target) not in self.graph.weights:
                node.target = names.get(tensor_of(self.exported, str(node.target)).data_ptr(), node.target)

    def readers(self, name: str) -> list[Node]:
        """The nodes that fetch a weight."""
        return [node for node in self.exported.graph.nodes if node.op == "get_attr" and node.target == name]

    def share(self, after: TaskGraph) -> None:
        """Read the weights that `after` reads."""
        stands_for: dict[str, str] = {}
        for old, new in zip(self.graph.tasks, after.tasks, strict=True):
            for mine, theirs in zip(old.operands, new.operands, strict=True):
                if mine != theirs:
                    name, source = mine.removeprefix(WEIGHT_PREFIX), theirs.removeprefix(WEIGHT_PREFIX)
                    stands_for[name] = source
                    for node in self.readers(name):
                        node.target = source
        self.graph = after
        self._backwards.append(lambda state: state | {name: state[source] for name, source in stands_for.items() if source in state})

    def prune(self, ratio: float) -> None:
        """Take the weakest neurons, channels and heads out of all weights, and their number out of the calls that state it."""
        found = follow(self.graph)
        chosen = self._strongest(found, kept_sizes(found, ratio))
        after = prune(self.graph, ratio)
        whole: dict[str, tuple[tuple[int, ...], list[Tensor]]] = {}
        for name, dims in found.weights.items():
            tensor = tensor_of(self.exported, name)
            kept = [torch.tensor(found.dimensions.positions(dimension, chosen), device=tensor.device) for dimension in dims]
            whole[name] = tuple(tensor.shape), kept
            for axis, positions in enumerate(kept):
                if len(positions) < tensor.shape[axis]:
                    tensor = tensor.index_select(axis, positions)
            put(self.exported, name, tensor)
        self._backwards.append(lambda state: state | {name: _filled(state[name], *whole[name]) for name in whole if name in state})
        for old, new in zip(self.graph.tasks, after.tasks, strict=True):
            if old.name in self.node_of and old != new:
                _restate_sizes(self.node_of[old.name], old, new)
        self.graph = after

    def _strongest(self, found: Followed, kept: Mapping[int, int]) -> dict[int, list[int]]:
        """The positions of every leaf that stay, by the magnitude of all weights that have it as an axis (Li et al. 2017)."""
        totals: dict[int, list[float]] = {}
        for name, dims in found.weights.items():
            magnitude = tensor_of(self.exported, name).abs().double()
            for axis, dimension in enumerate(dims):
                if not any(leaf in kept for leaf in found.dimensions.leaves(dimension)):
                    continue
                along = magnitude.movedim(axis, 0).reshape(magnitude.shape[axis], -1).sum(1)
                for leaf, values in found.dimensions.shares(dimension, along.tolist()):
                    sums = totals.setdefault(leaf, [0.0] * len(values))
                    totals[leaf] = [sum(pair) for pair in zip(sums, values, strict=True)]
        ranked = {leaf: sorted(range(len(totals[leaf])), key=lambda place, of=totals[leaf]: -of[place]) for leaf in kept}  # type: ignore[misc]
        return {leaf: sorted(ranked[leaf][:count]) for leaf, count in kept.items()}

    def factor(self, after: TaskGraph) -> None:
        """Two layers in place of each that `after` has in two factors."""
        tasks = {task.name: task for task in after.tasks}
        for task in self.graph.tasks:
            narrow = tasks.get(task.name + NARROW)
            if narrow is not None:
                first, second = (tasks[name].operands[1].removeprefix(WEIGHT_PREFIX) for name in (narrow.name, task.name))
                self._factor(self.node_of[task.name], task, narrow, first, second)
        self.graph = after

    def _factor(self, node: Node, task: Task, thin: Task, first: str, second: str) -> None:
        name = task.operands[1].removeprefix(WEIGHT_PREFIX)
        weight = tensor_of(self.exported, name)
        rank = thin.shapes[0][-1 if weight.dim() == 2 else 1]
        for factor, values in zip((first, second), _factors(weight, rank), strict=True):
            put(self.exported, factor, values, like=name)
        renamed = {}
        graph = self.exported.graph
        source, _, *rest = node.args
        with graph.inserting_before(node):
            narrow_weight, wide_weight = fetch(graph, first), fetch(graph, second)
            places = [] if weight.dim() == 2 else [None, *rest[1:]]
            narrow = graph.create_node("call_function", node.target, (source, narrow_weight, *places), name=thin.name)
            if rest and isinstance(rest[0], Node):
                bias = task.operands[2].removeprefix(WEIGHT_PREFIX)
                renamed[bias] = beside(second, str(rest[0].target))
                rest[0] = fetch(graph, renamed[bias])
                put(self.exported, renamed[bias], tensor_of(self.exported, bias), like=bias)
        node.args = (narrow, wide_weight, *rest[:1])
        self.node_of[thin.name] = narrow

        def backwards(state: State) -> State:
            if second not in state:
                return state
            product = state[second].flatten(1) @ state[first].flatten(1)
            moved = {name: product.view(weight.shape)} | {bias: state[moved] for bias, moved in renamed.items()}
            return {key: value for key, value in state.items() if key not in (first, second, *renamed.values())} | moved

        self._backwards.append(backwards)

    def check_shapes(self) -> None:
        """Work every shape out again; RunError where one is not what the task graph promises."""
        shapes = {task.name: task.shapes for task in self.graph.tasks}
        propagation = _Shapes(self.exported)
        try:
            propagation.run(*[node.meta["val"] for node in self.exported.graph.nodes if node.op == "placeholder"])
        except Exception as error:
            raise RunError(f"the compressed model does not fit together: {error}") from error
        for name, node in self.node_of.items():
            found = tuple(shape_of(tensor) for tensor in tensors_of(node))
            if name in shapes and found != shapes[name]:
                raise RunError(f"{name} of the compressed model has shape {found}, its task {shapes[name]}: leave model.compression out")

    def thin(self, sparsity: float) -> None:
        """Zero the least values of every matrix; in training, masks do that step by step (`sparsity.py`)."""
        for name, weight in self.graph.weights.items():
            if may_be_thinned(weight) and has(self.exported, name):
                put(self.exported, name, thinned(tensor_of(self.exported, name), sparsity))

    def quantize(self, weight_format: str, samples: Samples) -> None:
        """Store the weights of products, convolutions and lookups in fewer bits, or let layers that are trained round them."""
        packer = Rounder(self.exported, weight_format) if self.training else Packer(self.exported, weight_format, samples)
        for name in sorted(quantizable(self.graph, weight_format)):
            for node in self.readers(name):
                for user in list(node.users):
                    packer.change(user, node, name)
        self.graph = quantize(self.graph, weight_format)


def _factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factor that narrows and the one that widens, from the largest singular values."""
    left, values, right = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
    root = values[:rank].sqrt()
    narrow = (root[:, None] * right[:rank]).view(rank, *weight.shape[1:]).to(weight.dtype)
    wide = (left[:, :rank] * root).to(weight.dtype).view(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    return narrow.contiguous(), wide.contiguous()


def _filled(tensor: Tensor, shape: tuple[int, ...], kept: Sequence[Tensor]) -> Tensor:
    """The tensor at its old places among zeros."""
    if not shape:
        return tensor
    places = [positions.view([-1 if other == axis else 1 for other in range(len(shape))]) for axis, positions in enumerate(kept)]
    return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device).index_put(tuple(places), tensor)


class _Shapes(Interpreter):
    """Works out `meta["val"]` of every node without computing."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.mode = next(node.meta["val"].fake_mode for node in module.graph.nodes if node.op == "placeholder")

    def run_node(self, n: Node) -> Any:
        """What the node returns, as torch.export describes it."""
        with self.mode, torch.no_grad():
            result = super().run_node(n)
        if n.op != "output":
            n.meta["val"] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A weight without its values."""
        value = super().get_attr(target, args, kwargs)
        return self.mode.from_tensor(value.detach()) if isinstance(value, Tensor) else value


def _restate_sizes(node: Node, old: Task, new: Task) -> None:
    """Put the new lengths where the call itself states the old ones."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    before, after = dict(old.attributes), dict(new.attributes)
    for index, argument in enumerate(node.args):
        key = names[index] if index < len(names) else ""
        if key in RESHAPES and isinstance(argument, Sequence) and len(argument) == len(new.shapes[0]):
            node.update_arg(index, [_length(given, *pair) for given, *pair in zip(argument, old.shapes[0], new.shapes[0], strict=True)])
        elif key in after and after[key] != before.get(key):
            node.update_arg(index, list(after[key]) if isinstance(after[key], tuple) else after[key])


def _length(given: Any, old: int, new: int) -> Any:
    return new if isinstance(given, int) and given == old else given
