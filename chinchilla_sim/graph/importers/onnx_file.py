"""ONNX files: loading, the size of the batch, shapes, and what a node reads and states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from chinchilla_sim.errors import why_unreadable
from chinchilla_sim.graph.importers.onnx_shapes import infer_types
from chinchilla_sim.graph.importers.reading import NOT_WHOLE, Report, show

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto


def load_model(report: Report) -> ModelProto:
    """The model of a file, with its own functions opened; external data stays where it is."""
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


def fix_batch(graph: GraphProto, report: Report) -> tuple[int, list[str]]:
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


def types_of(model: ModelProto, report: Report) -> dict[str, TypeProto]:
    """Type and shape of every tensor of the model, by name."""
    from onnx.shape_inference import InferenceError

    try:
        return infer_types(model)
    except (InferenceError, ValueError, TypeError, RuntimeError, UnicodeDecodeError) as error:
        raise report.fail("graph", f"its shapes cannot be inferred: {show(str(error))}", "check the model with onnx.checker") from error


def attributes_of(node: NodeProto) -> dict[str, Any]:
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


def reads_of(node: NodeProto) -> list[str]:
    """Tensors that a node reads, also those that only the graphs inside it do (If, Loop, Scan)."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            inner |= {name for child in graph.node for name in child.output}
            outer = [name for child in graph.node for name in reads_of(child)] + [value.name for value in graph.output]
            names += [name for name in outer if name not in inner]
    return list(dict.fromkeys(names))
