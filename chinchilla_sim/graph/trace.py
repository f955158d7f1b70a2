"""Trace a PyTorch model on the meta device (no memory for weights) into a TaskGraph through torch.export."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.operators import FLOP_OF, WITHOUT_GRADIENT, forward_flop
from chinchilla_sim.graph.record import failing_line, only_relabels, record_model
from chinchilla_sim.graph.task import VALUE_BYTES, TaskGraph

DTYPE_OF = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAY_COPY = frozenset({"reshape", "flatten", "contiguous", "to"})
"""Operators whose schema says view, and that copy where the memory's order asks for it."""
DROPOUTS = frozenset({"dropout", "alpha_dropout", "feature_dropout"})


def trace_job(job: TrainingJob, batch_size: int, training: bool, name: str, precision: str = "fp32") -> TaskGraph:
    """Graph of one batch of the job's model, with its loss when training.

    What torch.export refuses is recorded from one run of the model instead, with a note that names the line; raises
    ScenarioError where that fails too.
    """
    try:
        model, inputs = _prepared(job, batch_size, training, precision, "meta")
        nodes = list(export_module(model, inputs).graph.nodes)
    except ScenarioError:
        raise
    except Exception as error:
        return _recorded(job, batch_size, training, name, precision, error)
    return graph_of(model, nodes, batch_size, training, name)


def _prepared(job: TrainingJob, batch_size: int, training: bool, precision: str, device: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The job's model and example inputs on a device, at a precision."""
    with torch.device(device):
        model = job.model()
        inputs, _ = job.example_batch(batch_size)
    dtype = DTYPE_OF[precision]
    tensors = tuple(tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype) for tensor in as_tuple(inputs))
    return model.to(device, dtype).train(training), tensors


def _recorded(job: TrainingJob, batch_size: int, training: bool, name: str, precision: str, refusal: Exception) -> TaskGraph:
    """The graph of what one run of the model does, on the meta device or else on the CPU."""
    where = failing_line(refusal)
    for device in ("meta", "cpu"):
        builder = GraphBuilder(batch_size, training, VALUE_BYTES[precision])
        try:
            model, inputs = _prepared(job, batch_size, training, precision, device)
            output = record_model(model, inputs, builder)
        except Exception:
            continue
        reason = str(refusal).strip().partition("\n")[0]
        builder.notes.append(
            f"torch.export cannot trace {where or 'the model'} ({reason}): its operators were recorded from one run, "
            "which holds for inputs like the example batch; such a plan can be simulated, not run"
        )
        return builder.finish(output, name, source=f"recorded on {device}, torch {torch.__version__}")
    what = f"torch.export cannot trace the model: {refusal}"
    cure = f"see {where}" if where else "see the operator and line named above"
    raise ScenarioError([Mistake("model.factory", what, cure)]) from refusal


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """The contract's inputs as positional arguments: one tensor or a tuple of them."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def export_module(model: nn.Module, inputs: Any, dynamic: bool = False) -> GraphModule:
    """The exported model: operators in topological order, parameters as `get_attr` nodes that share the model's storage.

    A `dynamic` one takes any number of samples (the first dim of every input); raises what torch.export raises where it cannot.
    """
    with warnings.catch_warnings():
        # Recurrent modules keep their weights in a list besides, which export says on every call.
        warnings.filterwarnings("ignore", message="The tensor attributes? .*_flat_weights", category=UserWarning)
        tensors = as_tuple(inputs)
        shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in tensors) if dynamic else None
        exported = torch.export.export(model, tensors, strict=False, dynamic_shapes=shapes)
    module = exported.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def graph_of(model: nn.Module, nodes: list[Node], batch_size: int, training: bool, name: str) -> TaskGraph:
    """The task graph of exported nodes."""
    floating = next((p.element_size() for p in model.parameters() if p.is_floating_point()), 4)
    reader = _Reader(model, GraphBuilder(batch_size, training, float(floating)))
    for node in nodes:
        reader.read(node)
    reader.add_unused()
    output = next(node for node in nodes if node.op == "output")
    result = next(parent for parent in output.all_input_nodes if parent in reader.name_of)
    return reader.builder.finish(reader.name_of[result], name, source=f"torch.export, torch {torch.__version__}")


class _Reader:
    """Turns fx nodes into tasks of a builder."""

    def __init__(self, model: nn.Module, builder: GraphBuilder) -> None:
        self.model, self.builder = model, builder
        self.name_of: dict[Node, str] = {}
        self._weights: dict[str, tuple[str, torch.Tensor, bool]] = {}
        first: dict[int, str] = {}
        for key, parameter in model.named_parameters(remove_duplicate=False):
            self._weights[key] = first.setdefault(id(parameter), key), parameter, False
        for key, buffer in model.named_buffers(remove_duplicate=False):
            self._weights[key] = first.setdefault(id(buffer), key), buffer, True

    def read(self, node: Node) -> None:
        """Add what the node stands for: an input, a weight or a task."""
        if not tensors_of(node):
            return
        if node.op == "placeholder":
            self.name_of[node] = self.builder.input(str(node.target), _shapes(node)[0], _value_bytes(node))
        elif node.op == "get_attr":
            self.name_of[node] = self._weight(str(node.target), tensors_of(node)[0])
        elif node.op == "call_function":
            self._call(node)

    def _weight(self, target: str, value: torch.Tensor) -> str:
        # A tensor that the code made while it was traced is constant: it is kept like a buffer.
        name, tensor, buffer = self._weights.get(target, (target, value, True))
        return self.builder.weight(name, tuple(tensor.shape), tensor.element_size(), tensor.requires_grad, buffer)

    def _call(self, node: Node) -> None:
        op = _op_name(node)
        parents = [leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node) and leaf in self.name_of]
        if getattr(node.target, "namespace", "aten") != "aten" and op not in FLOP_OF:
            where = user_line(node)
            self._note(
                f"{node.target}{f' at {where}' if where else ''} has no formula here: it is counted by the bytes it reads and writes"
            )
        self.name_of[node] = self.builder.apply(
            op,
            [self.name_of[parent] for parent in parents],
            _shapes(node),
            name=node.name,
            attributes=_attributes(node),
            view=_is_view(node),
            output_bytes=float(sum(prod(shape_of(tensor)) * tensor.element_size() for tensor in tensors_of(node))),
            floating=any(tensor.is_floating_point() for tensor in tensors_of(node)) and op != "detach",
            module=_module_path(node),
            value_bytes=_value_bytes(node),
        )

    def _note(self, text: str) -> None:
        if text not in self.builder.notes:
            self.builder.notes.append(text)

    def add_unused(self) -> None:
        """Parameters that no task reads occupy memory all the same."""
        unused = []
        for key, (name, tensor, buffer) in self._weights.items():
            if not buffer and name == key and name not in self.builder.weights:
                self.builder.weight(name, tuple(tensor.shape), tensor.element_size(), tensor.requires_grad)
                unused.append(name)
        if unused:
            self._note(f"{len(unused)} parameters are never used, such as {unused[0]}: they are counted, but belong to no task")


def user_line(node: Node) -> str:
    """`file:line` of the user's code that made this call, or ""."""
    frames = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File ")]
    own = [frame for frame in frames if "/torch/" not in frame] or frames
    if not own:
        return ""
    file, _, rest = own[-1].removeprefix('File "').partition('", line ')
    return f"{file}:{rest.partition(',')[0]}"


def tensors_of(node: Node) -> list[torch.Tensor]:
    """The tensors that a node returns, as torch.export describes them."""
    value = node.meta.get("val")
    if node.op == "get_attr" and value is None:
        return []
    return [item for item in (value if isinstance(value, tuple | list) else (value,)) if isinstance(item, torch.Tensor)]


def _shapes(node: Node) -> list[tuple[int, ...]]:
    return [shape_of(tensor) for tensor in tensors_of(node)]


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Its shape, with the example's number of samples where any would do."""
    # To ask a symbolic size for its value would fix it.
    return tuple(int(n.node.hint) if isinstance(n, torch.SymInt) else int(n) for n in tensor.shape)


def _value_bytes(node: Node) -> float:
    return float(tensors_of(node)[0].element_size())


def _op_name(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    # The underscore of an operator that works in place does not change what it costs.
    name = str(packet).rpartition(".")[2].rstrip("_") if packet is not None else getattr(node.target, "__name__", str(node.target))
    return "conv_transpose2d" if name == "convolution" and len(node.args) > 6 and node.args[6] else name


def _attributes(node: Node) -> dict[str, Any]:
    """Arguments that are no tensors, by the schema's names, where they differ from its defaults."""
    schema = getattr(node.target, "_schema", None)
    if _op_name(node) == WITHOUT_GRADIENT and node.args[0] is False:
        return {"flop": _inner_flop(node), "no_grad": True}
    if schema is None:
        return {"index": node.args[1]} if node.target is operator.getitem else {}
    given: dict[str, Any] = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    defaults = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    plain = {key: _plain(value) for key, value in given.items() if _is_plain(value) and defaults.get(key, _plain) != value}
    return _renamed(plain)


def _inner_flop(node: Node) -> float:
    """Flop of the operators in a region that code has marked, such as with `torch.no_grad()`; regions lie within regions."""
    region, flop = _region(node), 0.0
    for inner in region.graph.nodes if region else ():
        if inner.op == "call_function" and tensors_of(inner):
            shapes = [shape for leaf in tree_leaves((inner.args, inner.kwargs)) if isinstance(leaf, Node) for shape in _shapes(leaf)[:1]]
            flop += forward_flop(_op_name(inner), shapes, _shapes(inner)[0], _attributes(inner)) or _inner_flop(inner)
    return flop


def _region(node: Node) -> GraphModule | None:
    """The graph that a higher-order operator runs."""
    owner = node.graph.owning_module
    for argument in node.args:
        if isinstance(argument, Node) and argument.op == "get_attr" and owner is not None and "." not in str(argument.target):
            module = getattr(owner, str(argument.target), None)
            if isinstance(module, GraphModule):
                return module
    return None


def _renamed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"training" if key == "train" else key: value for key, value in attributes.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def _module_path(node: Node) -> str:
    """Path of the innermost module in the user's model, such as `layers.3.attention`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed([entry[0] for entry in stack.values()]), "") if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _is_view(node: Node) -> bool:
    """Whether the operator only relabels memory (or is a `getitem`)."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return _drops_nothing(node) or (only_relabels(schema) and not (_op_name(node) in MAY_COPY and _copies(node)))


def _drops_nothing(node: Node) -> bool:
    """A dropout without effect returns its very input."""
    given = _attributes(node)
    return _op_name(node) in DROPOUTS and not (given.get("p") and given.get("training"))


def _copies(node: Node) -> bool:
    source, result = tensors_of(node.all_input_nodes[0])[0], tensors_of(node)[0]
    if source.dtype != result.dtype:
        return True
    if _op_name(node) == "contiguous":
        return not source.is_contiguous()
    try:
        torch.empty_strided(tuple(source.shape), source.stride(), device="meta").view(tuple(result.shape))
    except RuntimeError:
        return True
    return False
