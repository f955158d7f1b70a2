"""Compressed variants of a model, run as `graph/compress` counts them: the exported model is changed as its task graph is.

share, tie    the nodes of a weight read the one that stands for it
prune         of each group of neurons, channels or heads those of the least magnitude (sum of |w| over all weights of the group) go
low rank      a layer becomes two, from the singular values of its weight
bf16          weights are stored in bf16; linear layers compute their product in it, others read it as the job's precision
int8          a scale per row; linear layers compute in int8 (inputs quantized as they come), others unpack the weight where they read it

Weights that are no parameter of a linear layer or table alone are unpacked by nodes that are no tasks, but part of what reads them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.nn.functional import embedding, linear

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.graph.compress.calls import Followed
from chinchilla_sim.graph.compress.follow import follow
from chinchilla_sim.graph.compress.low_rank import factor_low_rank
from chinchilla_sim.graph.compress.prune import RESHAPES, kept_sizes, prune
from chinchilla_sim.graph.compress.quantize import quantizable, quantize
from chinchilla_sim.graph.compress.share import share_weights, tie_embeddings
from chinchilla_sim.graph.task import WEIGHT_PREFIX, Task, TaskGraph
from chinchilla_sim.graph.trace import shape_of, tensors_of

MADE_OF_WEIGHTS = "made_of_weights"
"""Mark of nodes that unpack a weight: each stage that reads it has its own."""
SMALLEST_SCALE = 1e-30


def make_variant(exported: GraphModule, graph: TaskGraph, variant: Variant) -> tuple[GraphModule, TaskGraph]:
    """The exported model and its task graph, compressed alike; the model that was exported keeps its weights."""
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
    if variant.quantize:
        maker.quantize(variant.quantize)
    return maker.exported, maker.graph


class _Maker:
    """An exported model and its task graph while both are changed step by step."""

    def __init__(self, exported: GraphModule, graph: TaskGraph) -> None:
        self.exported, self.graph = exported, graph
        self.node_of = {node.name: node for node in exported.graph.nodes if node.op == "call_function"}
        self._name_readers()

    def _name_readers(self) -> None:
        """Let every node that reads a weight do so by the task graph's name of it: tied weights have several."""
        names = {_tensor(self.exported, name).data_ptr(): name for name in reversed(list(self.graph.weights)) if _has(self.exported, name)}
        for node in self.exported.graph.nodes:
            if node.op == "get_attr" and tensors_of(node) and str(node.target) not in self.graph.weights:
                node.target = names.get(_tensor(self.exported, str(node.target)).data_ptr(), node.target)

    def readers(self, name: str) -> list[Node]:
        """The nodes that fetch a weight."""
        return [node for node in self.exported.graph.nodes if node.op == "get_attr" and node.target == name]

    def share(self, after: TaskGraph) -> None:
        """Read the weights that `after` reads."""
        for old, new in zip(self.graph.tasks, after.tasks, strict=True):
            for mine, theirs in zip(old.operands, new.operands, strict=True):
                if mine != theirs:
                    for node in self.readers(mine.removeprefix(WEIGHT_PREFIX)):
                        node.target = theirs.removeprefix(WEIGHT_PREFIX)
        self.graph = after

    def prune(self, ratio: float) -> None:
        """Take the weakest neurons, channels and heads out of all weights, and their number out of the calls that state it."""
        found = follow(self.graph)
        chosen = self._strongest(found, kept_sizes(found, ratio))
        after = prune(self.graph, ratio)
        for name, dims in found.weights.items():
            tensor = _tensor(self.exported, name)
            for axis, dimension in enumerate(dims):
                kept = found.dimensions.positions(dimension, chosen)
                if len(kept) < tensor.shape[axis]:
                    tensor = tensor.index_select(axis, torch.tensor(kept, device=tensor.device))
            _put(self.exported, name, tensor)
        for old, new in zip(self.graph.tasks, after.tasks, strict=True):
            if old.name in self.node_of and old != new:
                _restate_sizes(self.node_of[old.name], old, new)
        self.graph = after

    def _strongest(self, found: Followed, kept: Mapping[int, int]) -> dict[int, list[int]]:
        """The positions of every leaf that stay, by the magnitude of all weights that have it as an axis (Li et al. 2017)."""
        totals: dict[int, list[float]] = {}
        for name, dims in found.weights.items():
            magnitude = _tensor(self.exported, name).abs().double()
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
            narrow = tasks.get(f"{task.name}_narrow")
            if narrow is not None:
                first, second = (tasks[name].operands[1].removeprefix(WEIGHT_PREFIX) for name in (narrow.name, task.name))
                self._factor(self.node_of[task.name], task, narrow, first, second)
        self.graph = after

    def _factor(self, node: Node, task: Task, thin: Task, first: str, second: str) -> None:
        weight = _tensor(self.exported, task.operands[1].removeprefix(WEIGHT_PREFIX))
        rank = thin.shapes[0][-1 if weight.dim() == 2 else 1]
        left, values, right = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        root = values[:rank].sqrt()
        _put(self.exported, first, (root[:, None] * right[:rank]).view(rank, *weight.shape[1:]).to(weight.dtype).contiguous())
        wide = (left[:, :rank] * root).to(weight.dtype).view(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
        _put(self.exported, second, wide.contiguous())
        graph = self.exported.graph
        source, _, *rest = node.args
        with graph.inserting_before(node):
            narrow_weight, wide_weight = _fetch(graph, first), _fetch(graph, second)
            places = [] if weight.dim() == 2 else [None, *rest[1:]]
            narrow = graph.create_node("call_function", node.target, (source, narrow_weight, *places), name=thin.name)
            if rest and isinstance(rest[0], Node):
                rest[0] = _fetch(graph, _beside(second, str(rest[0].target)))
                _put(self.exported, str(rest[0].target), _tensor(self.exported, task.operands[2].removeprefix(WEIGHT_PREFIX)))
        node.args = (narrow, wide_weight, *rest[:1])
        self.node_of[thin.name] = narrow

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

    def quantize(self, weight_format: str) -> None:
        """Store the weights of products, convolutions and lookups in fewer bits."""
        names, packed = quantizable(self.graph), dict[Node, Node]()
        for name in sorted(names):
            tensor = _tensor(self.exported, name)
            for node in self.readers(name):
                for user in list(node.users):
                    self._quantize_use(user, node, name, tensor, weight_format, packed)
        self.graph = quantize(self.graph, weight_format)

    def _quantize_use(self, user: Node, node: Node, name: str, tensor: Tensor, weight_format: str, packed: dict[Node, Node]) -> None:
        graph, half = self.exported.graph, weight_format == "bf16"
        bias = user.args[2] if len(user.args) > 2 else None
        with graph.inserting_before(user):
            if half:
                stored = [_fetch(graph, self._store(name, "bf16", tensor.to(torch.bfloat16)))]
            elif _is_linear(user, node) and (bias is None or isinstance(bias, Node)):
                values = None if bias is None else _tensor(self.exported, str(bias.target))
                stored = [_fetch(graph, self._store(name, "int8_linear", pack_linear(tensor, values)))]
            else:
                rows, scale = quantize_rows(tensor)
                stored = [_fetch(graph, self._store(name, "int8", rows)), _fetch(graph, self._store(name, "scale", scale))]
            if _is_linear(user, node):
                user.target, user.args = (linear_bf16, (user.args[0], *stored, bias)) if half else (int8_linear(), (user.args[0], *stored))
            elif user.target is torch.ops.aten.embedding.default and user.args[0] is node:
                user.target, user.args = look_up, (tensor.dtype, user.args[1], *stored)
                user.kwargs = {}
            else:
                if node not in packed:
                    with graph.inserting_after(node):
                        packed[node] = graph.call_function(unpack, (tensor.dtype, *stored))
                    for source in reversed(stored):
                        packed[node].prepend(source)
                    packed[node].meta |= {"val": node.meta["val"], MADE_OF_WEIGHTS: True}
                user.replace_input_with(node, packed[node])

    def _store(self, name: str, suffix: str, value: Any) -> str:
        path = f"{name}_{suffix}"
        if not _has(self.exported, path):
            _put(self.exported, path, value)
        return path


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


# What stands for a quantized layer at run time.


def linear_bf16(source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer whose product is computed in bf16."""
    return linear(source.to(torch.bfloat16), weight, None if bias is None else bias.to(torch.bfloat16)).to(source.dtype)


def int8_linear() -> Callable[..., Tensor]:
    """torch's linear layer in int8 whose inputs are quantized as they come: `(source, packed weight) -> output`."""
    operator: Callable[..., Tensor] = torch.ops.quantized.linear_dynamic.default
    return operator


def pack_linear(weight: Tensor, bias: Tensor | None) -> Any:
    """Weight and bias as `int8_linear` takes them, with a scale per row."""
    scale = row_scales(weight).reshape(-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*deprecated")
        rows = torch.quantize_per_channel(weight.detach().float(), scale, torch.zeros(len(scale), dtype=torch.int64), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rows, None if bias is None else bias.detach().float())


def row_scales(weight: Tensor) -> Tensor:
    """What one step of int8 is worth in each row, in the shape that broadcasts over the weight."""
    return weight.detach().float().abs().amax(tuple(range(1, weight.dim())), keepdim=True).div(127).clamp(min=SMALLEST_SCALE)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values, and a scale for each row."""
    scale = row_scales(weight)
    return (weight.detach() / scale).round().to(torch.int8), scale.to(weight.dtype)


def unpack(dtype: torch.dtype, stored: Tensor, scale: Tensor | None = None) -> Tensor:
    """The weight as the job computes with it."""
    return stored.to(dtype) if scale is None else stored.to(dtype) * scale


def look_up(dtype: torch.dtype, indices: Tensor, stored: Tensor, scale: Tensor | None = None) -> Tensor:
    """Rows of a table, of which only those are unpacked."""
    if scale is None:
        return embedding(indices, stored).to(dtype)
    return stored[indices].to(dtype) * scale[indices]


# The exported module's weights and calls


def _is_linear(user: Node, weight: Node) -> bool:
    return user.target is torch.ops.aten.linear.default and user.args[1] is weight


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


def _beside(path: str, other: str) -> str:
    """The name of a layer's other weight."""
    return f"{path.rpartition('.')[0]}.{other.rpartition('.')[2]}".lstrip(".")


def _has(module: nn.Module, name: str) -> bool:
    try:
        _tensor(module, name)
    except AttributeError:
        return False
    return True


def _tensor(module: nn.Module, name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    value = getattr(module.get_submodule(path), attribute)
    return value.detach() if isinstance(value, Tensor) else value


def _put(module: nn.Module, name: str, value: Any) -> None:
    """Make `value` the module's weight of this name; the modules on its path are made where there are none."""
    path, _, attribute = name.rpartition(".")
    for part in path.split(".") if path else ():
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(getattr(module, attribute, None), nn.Parameter):
        value = nn.Parameter(value, requires_grad=False)
    setattr(module, attribute, value)


def _fetch(graph: Graph, name: str) -> Node:
    """A node that reads a weight, which may be put there later."""
    return graph.create_node("get_attr", name)
