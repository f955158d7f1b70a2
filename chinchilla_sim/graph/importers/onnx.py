"""ONNX models, by way of `graph.builder`: shapes by `onnx_shapes`, amounts by the formulas of `graph.operators`.

Weights. Stored tensors (initializers) are weights with the bytes of their type: float ones are trained parameters, quantized
ones frozen parameters, running statistics of a BatchNormalization and scales of a quantization buffers. Whole numbers and
scalars are constants: what is computed from them and from shapes alone costs nothing, and is a buffer where a task reads it as
data. External data is not loaded: the sizes stand in the model.

Tasks. A node is a task of the PyTorch operator that `onnx_operators.OP_OF` names: MatMul is matmul, Gemm is linear where its
weight is stored as PyTorch stores it (transB) and else addmm or mm, Gather from a stored table is embedding, Gather of one
constant index is select; the outputs of a node with several are `getitem` views, and Identity is no task. An operator without
a name here is counted by the bytes it reads and writes, and stands in the notes. The file has no loss: the graph ends with
the model's outputs.

Batch. `batch_size` is the first dimension of the first input; where that has no number it is 1. No other dimension of an input
may be without number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_sim.errors import why_unreadable
from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.importers.onnx_operators import (
    BUFFERS_FROM,
    CONSTANT_SOURCES,
    DATA_POSITIONS,
    FLOATING,
    INDEX_TYPES,
    OP_OF,
    VALUE_BYTES,
    VIEWS,
)
from chinchilla_sim.graph.importers.onnx_shapes import infer_types
from chinchilla_sim.graph.importers.reading import NOT_WHOLE, Report, show
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import WEIGHT_PREFIX, Shape, TaskGraph

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

RECURRENT = ("LSTM", "GRU", "RNN")
_NO_SHAPE = "save the model with the shapes of its inner tensors (value_info), for example by onnxruntime's symbolic_shape_infer"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and ONNX type of a tensor."""

    shape: Shape
    kind: str

    @property
    def value_bytes(self) -> float:
        """Bytes of one value."""
        return VALUE_BYTES.get(self.kind, 0.0)


def read_onnx(path: Path) -> tuple[TaskGraph, Profile]:
    """Graph of an ONNX model; the profile is empty."""
    report = Report(path)
    model = _load(report)
    batch_size, notes = _fix_batch(model.graph, report)
    report.stop_if_wrong()
    reader = _Reader(model.graph, _infer(model, report), batch_size, report)
    reader.read()
    report.stop_if_wrong()
    builder = reader.builder
    if not any(task.op != "input" for task in builder.tasks.values()):
        raise report.fail("graph.node", "no node computes anything", NOT_WHOLE)
    builder.notes += [*notes, *reader.notes()]
    return builder.finish("", path.stem, source=f"ONNX model {path.name}"), Profile()


def _load(report: Report) -> ModelProto:
    try:
        import onnx
    except ImportError as error:
        raise report.fail("", "needs the package onnx to be read", "pip install 'chinchilla-sim[onnx]'") from error
    try:
        model = onnx.load_model_from_string(report.path.read_bytes())
        if model.functions:
            from onnx.inliner import inline_local_functions

            model = inline_local_functions(model)
    except OSError as error:
        raise report.fail("", f"cannot be read: {why_unreadable(error)}", "check [model] graph") from error
    except Exception as error:  # protobuf's own DecodeError cannot be named without importing protobuf
        raise report.fail("", f"is no ONNX model: {error}", NOT_WHOLE) from error
    if not model.graph.node:
        raise report.fail("graph.node", "has no node", NOT_WHOLE)
    if not all(isinstance(name, str) for name in _names(model.graph)):
        raise report.fail("graph", "holds a name that is no text", NOT_WHOLE)
    return model


def _names(graph: GraphProto) -> Iterator[object]:
    """All names in a graph: protobuf gives them as bytes where they are no text."""
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _names(inner)
    yield from (tensor.name for tensor in graph.initializer)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        yield from (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))


def _fix_batch(graph: GraphProto, report: Report) -> tuple[int, list[str]]:
    """Give the batch a number, in every shape that names it; the batch size, and a note where it was chosen."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    first = next((value.type.tensor_type.shape.dim[0] for value in inputs if value.type.tensor_type.shape.dim), None)
    free = {value.type.tensor_type.shape.dim[0].dim_param for value in inputs if _is_free(value)}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in free:
                dim.dim_value = 1
    for value in inputs:
        if _is_free(value):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        for position, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                what = f"dimension {position} ({dim.dim_param or 'unnamed'}) has no number"
                report.add(f"graph.input.{value.name}", what, "export the model with fixed sizes, except the batch")
    if first is None:
        return 1, ["No input has a batch: one sample here is one run of the model."]
    if first.dim_value < 1:
        report.add("graph.input", f"the batch size is {first.dim_value}", "give the first dimension of the first input a number >= 1")
    return first.dim_value, ["The file leaves the batch size open: all amounts are for one sample."] if free else []


def _is_free(value: ValueInfoProto) -> bool:
    """Whether the first dimension of an input has no number."""
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and not dims[0].HasField("dim_value")


def _infer(model: ModelProto, report: Report) -> dict[str, TypeProto]:
    from onnx.shape_inference import InferenceError

    try:
        return infer_types(model)
    except (InferenceError, ValueError, TypeError, RuntimeError, UnicodeDecodeError) as error:
        raise report.fail("graph", f"its shapes cannot be inferred: {show(str(error))}", "check the model with onnx.checker") from error


class _Reader:
    """Turns ONNX nodes into tasks of a builder."""

    def __init__(self, graph: GraphProto, types: Mapping[str, TypeProto], batch_size: int, report: Report) -> None:
        from onnx import TensorProto

        self.graph, self.report = graph, report
        self._kind_name = TensorProto.DataType.Name
        stored = [self._stored(tensor) for tensor in graph.initializer]
        values = next((tensor.value_bytes for tensor in stored if tensor.kind in FLOATING), 4.0)
        self.builder = GraphBuilder(batch_size, training=False, value_bytes=values)
        self.tensors = {name: self._declared(kind) for name, kind in types.items()}
        self.tensors |= {tensor.name: info for tensor, info in zip(graph.initializer, stored, strict=True)}
        self.parameters = {tensor.name for tensor in graph.initializer if self._is_parameter(self.tensors[tensor.name])}
        self.constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in self.parameters}
        self.buffers = {name for node in graph.node for name in list(node.input)[BUFFERS_FROM.get(node.op_type, len(node.input)) :]}
        self.read_names = {name for node in graph.node for name in _reads(node)} | {value.name for value in graph.output}
        self.folded: set[str] = set(self.constants)
        self.operand_of: dict[str, str] = {}
        self.without_formula: dict[str, int] = {}

    def read(self) -> None:
        """All inputs and nodes, in the file's order."""
        for value in self.graph.input:
            name = value.name
            if name not in self.parameters and name not in self.constants:
                tensor = self._tensor(name, f"graph.input.{name}")
                if tensor:
                    self.operand_of[name] = self.builder.input(self._fresh(name), tensor.shape, tensor.value_bytes)
        self.report.stop_if_wrong()
        for index, node in enumerate(self.graph.node):
            where = f"graph.node.{index}" + (f" ({node.name})" if node.name else "")
            if self._fits(node, where):
                self._read_node(node, where)
            self.report.stop_if_wrong()

    def notes(self) -> list[str]:
        """What is not exact in the graph."""
        notes = []
        if any(weight.trained for weight in self.builder.weights.values()):
            notes.append("The file does not say which of its tensors are trained: all float parameters are taken to be.")
        if self.without_formula:
            listed = ", ".join(f"{op} ({count})" for op, count in self.without_formula.items())
            notes.append(f"These operators have no formula here and are counted by the bytes they read and write: {listed}.")
        return notes

    def _stored(self, tensor: TensorProto) -> Tensor:
        return Tensor(tuple(tensor.dims), self._kind(tensor.data_type))

    def _kind(self, number: int) -> str:
        try:
            return str(self._kind_name(number))
        except ValueError:
            return "UNDEFINED"

    def _declared(self, kind: TypeProto) -> Tensor:
        return Tensor(tuple(dim.dim_value for dim in kind.tensor_type.shape.dim), self._kind(kind.tensor_type.elem_type))

    @staticmethod
    def _is_parameter(tensor: Tensor) -> bool:
        return tensor.kind not in INDEX_TYPES and tensor.shape != ()

    def _tensor(self, name: str, where: str) -> Tensor | None:
        tensor = self.tensors.get(name)
        if tensor and min(tensor.shape, default=0) >= 0 and tensor.kind in VALUE_BYTES:
            return tensor
        self.report.add(where, f"the shape or type of tensor {show(name)} is not known", _NO_SHAPE)
        return None

    def _fits(self, node: NodeProto, where: str) -> bool:
        """Whether all that the node reads is there already, and what it makes is not."""
        known = self.operand_of.keys() | self.folded | self.parameters
        unknown = [name for name in _reads(node) if name not in known]
        twice = [name for name in node.output if name and name in known]
        for name in unknown:
            self.report.add(where, f"reads {show(name)}, which no input or earlier node makes", "list nodes in topological order")
        for name in twice:
            self.report.add(where, f"makes {show(name)}, which is there already", "give each output its own name")
        return not unknown and not twice

    def _read_node(self, node: NodeProto, where: str) -> None:
        """A task for the node, or nothing where its outputs are known without the data."""
        outputs = [name for name in node.output if name]
        reads = _reads(node)
        if node.op_type in CONSTANT_SOURCES or self._is_constant(reads):
            self.folded.update(outputs)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t") and outputs:
                    self.tensors[outputs[0]] = self._stored(attribute.t)
                    self.constants[outputs[0]] = attribute.t
            return
        if node.op_type == "Identity" and len(outputs) == len(reads) == 1:
            if operand := self._operand(reads[0], where):
                self.operand_of[outputs[0]] = operand
            return
        made = [name for name in outputs if name in self.read_names] or outputs[:1]
        tensors = [tensor for name in made if (tensor := self._tensor(name, where))]
        if not made or len(tensors) < len(made):
            return
        try:
            self._add(node, where, made, tensors)
        except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            self.report.add(where, f"its inputs do not fit {node.op_type}: {error}", "check the model with onnx.checker")

    def _is_constant(self, reads: Sequence[str]) -> bool:
        """Whether a node reads constants alone; one stored number beside them is a constant too."""
        others = [name for name in reads if name not in self.folded]
        return all(name in self.parameters and prod(self.tensors[name].shape) == 1 for name in others) and len(others) < max(1, len(reads))

    def _add(self, node: NodeProto, where: str, made: list[str], tensors: list[Tensor]) -> None:
        attributes = _attributes(node)
        op, operands = self._call(node, where, attributes)
        if self.report.mistakes:
            return
        name = self._fresh(node.name or made[0])
        task = self.builder.apply(
            op,
            operands,
            [tensor.shape for tensor in tensors],
            name=name,
            attributes=attributes,
            view=node.op_type in VIEWS or op in ("alias", "select"),
            output_bytes=float(sum(prod(tensor.shape) * tensor.value_bytes for tensor in tensors)),
            floating=tensors[0].kind in FLOATING,
            value_bytes=tensors[0].value_bytes,
        )
        for index, (output, tensor) in enumerate(zip(made, tensors, strict=True)):
            self.operand_of[output] = task if len(made) == 1 else self._item(task, index, tensor)

    def _item(self, task: str, index: int, tensor: Tensor) -> str:
        """One of several outputs of a task."""
        return self.builder.apply(
            "getitem",
            [task],
            [tensor.shape],
            name=self._fresh(f"{task}.{index}"),
            attributes={"index": index},
            view=True,
            floating=tensor.kind in FLOATING,
            value_bytes=tensor.value_bytes,
        )

    def _call(self, node: NodeProto, where: str, attributes: dict[str, Any]) -> tuple[str, list[str]]:
        """Our operator and its operands; `attributes` are completed."""
        op_type = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        inputs = list(node.input)
        names = [inputs[i] for i in DATA_POSITIONS.get(op_type, range(len(inputs))) if i < len(inputs) and inputs[i]]
        if op_type in RECURRENT and set(inputs[1:3]) <= self.parameters:
            attributes |= {"bidirectional": attributes.get("direction") == "bidirectional", "batch_first": attributes.get("layout") == 1}
            return OP_OF[op_type], self._recurrent(inputs, where)
        if op_type in RECURRENT or (op_type not in OP_OF and op_type not in ("Gemm", "Attention")):
            return self._unknown(node, op_type, where)
        if op_type == "Gemm":
            return self._gemm(names, where, attributes)
        operands = self._operands(names, where)
        if op_type == "Attention":
            same_heads = attributes.get("q_num_heads") == attributes.get("kv_num_heads")
            if len(self.tensors[names[0]].shape) == 4 or same_heads:
                return "scaled_dot_product_attention", operands
            return self._unknown(node, op_type, where)
        if op_type in ("BatchNormalization", "Dropout"):
            attributes["training"] = bool(attributes.pop("training_mode", 0)) or self._is_true(inputs[2:3])
        if op_type == "Dropout" and not attributes["training"]:
            return "alias", operands
        if op_type == "Gather" and names[0] in self.parameters and not attributes.get("axis"):
            return "embedding", operands
        if op_type == "Gather" and names[1] in self.folded and self._is_scalar(names[1]):
            return "select", operands[:1]
        if op_type == "Resize" and attributes.get("mode") in ("linear", "cubic"):
            return "upsample_bilinear2d", operands
        return OP_OF[op_type].format(rank=max(1, len(self.tensors[names[0]].shape) - 2)), operands

    def _unknown(self, node: NodeProto, op_type: str, where: str) -> tuple[str, list[str]]:
        """An operator that is counted by bytes."""
        self.without_formula[op_type] = self.without_formula.get(op_type, 0) + 1
        return op_type, self._operands(_reads(node), where)

    def _gemm(self, names: Sequence[str], where: str, attributes: dict[str, Any]) -> tuple[str, list[str]]:
        """Gemm adds C to the product of A (transposed where transA) and B."""
        first, second, *added = self._operands(names, where)
        if attributes.pop("transA", 0):
            rows, columns = self.builder.shape(first)
            first = self.builder.apply("t", [first], [(columns, rows)], name=self._fresh(f"{where}.t"), view=True)
        if attributes.pop("transB", 0):
            return "linear", [first, second, *added]
        return ("addmm", [*added, first, second]) if added else ("mm", [first, second])

    def _recurrent(self, inputs: Sequence[str], where: str) -> list[str]:
        """Data, then the matrices and the bias of each direction, as PyTorch keeps them, then the initial states."""
        stored = [name for name in inputs[1:4] if name in self.parameters]
        operands = self._operands(inputs[:1], where)
        for direction in range(self.tensors[stored[0]].shape[0]):
            for name in stored:
                tensor = self.tensors[name]
                operands.append(self.builder.weight(f"{name}.{direction}", tensor.shape[1:], tensor.value_bytes, tensor.kind in FLOATING))
        states = [name for name in inputs[5:] if name and name in self.operand_of]
        return operands + self._operands(states, where)

    def _operands(self, names: Iterable[str], where: str) -> list[str]:
        return [operand for name in names if name and (operand := self._operand(name, where))]

    def _operand(self, name: str, where: str) -> str | None:
        """The task or weight that a tensor is; None, and a mistake, where its size is not known."""
        if name in self.operand_of:
            return self.operand_of[name]
        tensor = self._tensor(name, where)
        if tensor is None:
            return None
        buffer = name in self.buffers or name not in self.parameters
        return self.builder.weight(name, tensor.shape, tensor.value_bytes, tensor.kind in FLOATING and not buffer, buffer)

    def _is_scalar(self, name: str) -> bool:
        return name in self.tensors and self.tensors[name].shape == ()

    def _is_true(self, names: Sequence[str]) -> bool:
        """Whether a stored flag is set."""
        from onnx.numpy_helper import to_array

        return any(name in self.constants and bool(to_array(self.constants[name]).any()) for name in names)

    def _fresh(self, name: str) -> str:
        """A task name that no task has: the given one, numbered where it is taken."""
        name = name.removeprefix(WEIGHT_PREFIX) or "task"
        count, fresh = 0, name
        while fresh in self.builder.tasks:
            count += 1
            fresh = f"{name}_{count}"
        return fresh


def _attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes that are numbers, texts or lists of them, by ONNX's names."""
    from onnx.helper import get_attribute_value

    plain: dict[str, Any] = {}
    for attribute in node.attribute:
        value = get_attribute_value(attribute)
        if isinstance(value, bytes):
            plain[attribute.name] = value.decode(errors="replace")
        elif isinstance(value, int | float):
            plain[attribute.name] = value
        elif not attribute.HasField("g") and all(isinstance(item, int | float) for item in _items(value)):
            plain[attribute.name] = tuple(value)
    return plain


def _items(value: Any) -> Iterable[Any]:
    return value if hasattr(value, "__iter__") else (value,)


def _reads(node: NodeProto) -> list[str]:
    """Tensors that a node reads, also those that only the graphs inside it do (If, Loop, Scan)."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            inner |= {name for child in graph.node for name in child.output}
            outer = [name for child in graph.node for name in _reads(child)] + [value.name for value in graph.output]
            names += [name for name in outer if name not in inner]
    return list(dict.fromkeys(names))
