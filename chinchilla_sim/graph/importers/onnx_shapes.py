"""Shapes of all tensors of an ONNX model: onnx's own inference, and node by node what that leaves open.

onnx follows values through some operators only (not through Div or Cast of a shape, which exporters write before a Reshape).
Here small values that follow from constants and shapes alone are computed by onnx's reference evaluator, and each node's
output shapes are inferred with these values in hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, TypeProto

_MOST_VALUES = 4096


def infer_types(model: ModelProto) -> dict[str, TypeProto]:
    """Type of each tensor whose shape follows in numbers."""
    from onnx.shape_inference import infer_shapes

    graph = infer_shapes(model, data_prop=True).graph
    types = {value.name: value.type for value in [*graph.input, *graph.value_info, *graph.output] if is_known(value.type)}
    types |= {tensor.name: _type_of(tensor.data_type, tensor.dims) for tensor in graph.initializer}
    if all(name in types for node in graph.node for name in node.output if name):
        return types
    values = {tensor.name: tensor for tensor in graph.initializer if prod(tensor.dims) <= _MOST_VALUES}
    for node in graph.node:
        if any(name and name not in types for name in node.output):
            types |= _output_types(node, types, values, model)
        values |= _small_values(node, types, values, model)
    return types


def is_known(kind: TypeProto) -> bool:
    """Whether a type is that of a tensor whose dimensions are all numbers."""
    tensor = kind.tensor_type
    return kind.HasField("tensor_type") and tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _type_of(number: int, dims: Any) -> TypeProto:
    from onnx.helper import make_tensor_type_proto

    return make_tensor_type_proto(number, list(dims))


def _small_values(
    node: NodeProto, types: Mapping[str, TypeProto], values: Mapping[str, TensorProto], model: ModelProto
) -> dict[str, TensorProto]:
    """Outputs of a node that follow from constants and shapes alone, where they are small; {} for other nodes."""
    from onnx.numpy_helper import from_array

    inputs = [name for name in node.input if name]
    outputs = [name for name in node.output if name]
    if node.op_type in ("Shape", "Size") and not node.domain and len(inputs) == len(outputs) == 1 and inputs[0] in types:
        shape = _lengths(types[inputs[0]])
        start, end = (next((a.i for a in node.attribute if a.name == key), None) for key in ("start", "end"))
        return {outputs[0]: from_array(np.array(shape[start:end] if node.op_type == "Shape" else prod(shape), np.int64), outputs[0])}
    constant = node.op_type == "Constant" or (inputs and all(name in values for name in inputs))
    if not constant or not all(name in types and prod(_lengths(types[name])) <= _MOST_VALUES for name in outputs):
        return {}
    try:
        return _evaluated(node, outputs, values, model)
    except Exception:  # whatever onnx raises for a node that it cannot run: the value stays unknown
        return {}


def _evaluated(node: NodeProto, outputs: list[str], values: Mapping[str, TensorProto], model: ModelProto) -> dict[str, TensorProto]:
    from onnx.helper import make_graph, make_model
    from onnx.numpy_helper import from_array
    from onnx.reference import ReferenceEvaluator

    stored = [values[name] for name in dict.fromkeys(node.input) if name]
    graph = make_graph([node], "constant", [], [_untyped(name) for name in outputs], stored)
    runner = ReferenceEvaluator(make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version))
    results = runner.run(None, {})
    return {name: from_array(np.asarray(result), name) for name, result in zip(outputs, results, strict=True)}


def _untyped(name: str) -> Any:
    from onnx.helper import make_empty_tensor_value_info

    return make_empty_tensor_value_info(name)


def _lengths(kind: TypeProto) -> list[int]:
    return [dim.dim_value for dim in kind.tensor_type.shape.dim]


def _output_types(
    node: NodeProto, types: Mapping[str, TypeProto], values: Mapping[str, TensorProto], model: ModelProto
) -> dict[str, TypeProto]:
    """Types of a node's outputs that follow from the types and values it reads."""
    from onnx.defs import get_schema
    from onnx.shape_inference import infer_node_outputs

    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    inputs = [name for name in node.input if name]
    try:
        schema = get_schema(node.op_type, versions[node.domain or "ai.onnx"], node.domain)
        found = infer_node_outputs(
            schema,
            node,
            {name: types[name] for name in inputs},
            {name: values[name] for name in inputs if name in values},
            opset_imports=list(model.opset_import),
            ir_version=model.ir_version,
        )
    except Exception:  # whatever onnx raises for a node that it does not know or that does not fit: the shape stays unknown
        return {}
    return {name: kind for name, kind in found.items() if is_known(kind) and name not in types}
