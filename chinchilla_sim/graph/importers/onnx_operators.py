"""What ONNX calls its operators, and what we call them: the names of PyTorch that `graph.operators` has formulas for."""

from __future__ import annotations

from collections.abc import Mapping

OP_OF: Mapping[str, str] = {
    # products
    **{"MatMul": "matmul", "MatMulInteger": "matmul", "QLinearMatMul": "matmul", "Einsum": "einsum"},
    **{"Conv": "conv{rank}d", "ConvInteger": "conv{rank}d", "QLinearConv": "conv{rank}d", "ConvTranspose": "conv_transpose{rank}d"},
    **{"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"},
    # activations
    **{"Relu": "relu", "LeakyRelu": "leaky_relu", "PRelu": "prelu", "Elu": "elu", "Selu": "selu", "Celu": "celu", "Gelu": "gelu"},
    **{"Sigmoid": "sigmoid", "HardSigmoid": "hardsigmoid", "HardSwish": "hardswish", "Mish": "mish", "Swish": "silu", "Tanh": "tanh"},
    **{"Softplus": "softplus", "Softsign": "softsign", "ThresholdedRelu": "threshold", "Softmax": "softmax", "LogSoftmax": "log_softmax"},
    **{"Dropout": "dropout", "Clip": "clamp"},
    # elementwise
    **{"Add": "add", "Sum": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Neg": "neg", "Pow": "pow", "Mod": "remainder", "Abs": "abs"},
    **{"Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Erf": "erf", "Sin": "sin", "Cos": "cos", "Sign": "sign"},
    **{"Floor": "floor", "Ceil": "ceil", "Round": "round", "Max": "maximum", "Min": "minimum", "Mean": "mean", "Where": "where"},
    **{"Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le", "Not": "logical_not"},
    **{"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "IsNaN": "isnan", "IsInf": "isinf", "Cast": "to"},
    **{"CastLike": "type_as", "QuantizeLinear": "quantize", "DequantizeLinear": "dequantize"},
    # normalization and pooling
    **{"BatchNormalization": "batch_norm", "LayerNormalization": "layer_norm", "GroupNormalization": "group_norm"},
    **{"InstanceNormalization": "instance_norm", "RMSNormalization": "rms_norm", "LRN": "local_response_norm"},
    **{"MaxPool": "max_pool{rank}d", "AveragePool": "avg_pool{rank}d", "LpPool": "lp_pool{rank}d"},
    **{"GlobalAveragePool": "adaptive_avg_pool{rank}d", "GlobalMaxPool": "adaptive_max_pool{rank}d"},
    # reductions
    **{"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod", "ReduceL2": "norm"},
    **{"ReduceL1": "norm", "ReduceLogSumExp": "logsumexp", "ArgMax": "argmax", "ArgMin": "argmin", "CumSum": "cumsum", "TopK": "topk"},
    # moving and looking up
    **{"Concat": "cat", "Pad": "pad", "Tile": "repeat", "Resize": "upsample_nearest2d", "Upsample": "upsample_nearest2d"},
    **{"DepthToSpace": "pixel_shuffle", "SpaceToDepth": "pixel_unshuffle", "Trilu": "tril", "OneHot": "one_hot"},
    **{"Gather": "index_select", "GatherElements": "gather", "GatherND": "index", "ScatterND": "index_put", "ScatterElements": "scatter"},
    # views
    **{"Reshape": "reshape", "Flatten": "flatten", "Squeeze": "squeeze", "Unsqueeze": "unsqueeze", "Transpose": "permute"},
    **{"Slice": "slice", "Split": "split", "Expand": "expand"},
}
"""Our name of each ONNX operator; `{rank}` is the number of spatial dimensions."""

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Expand"})
"""Operators that only relabel memory, as in PyTorch."""

DATA_POSITIONS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            *("Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Expand", "Dropout", "Clip", "Pad", "Tile", "Resize", "Upsample"),
            *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp"),
            *("CumSum", "TopK", "Trilu", "OneHot", "CastLike"),
        ),
        (0,),
    ),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), (0, 1)),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (0, 3, 8),
}
"""Inputs that are data, in the order of our formulas; the others only say how to compute. All inputs where the operator is not listed."""

BUFFERS_FROM: Mapping[str, int] = {"BatchNormalization": 3, "QuantizeLinear": 1, "DequantizeLinear": 1}
"""The first input that is no parameter but a buffer, as are all behind it: running statistics, scales, zero points."""

CONSTANT_SOURCES = frozenset({"Constant", "Shape", "Size"})
"""Operators whose outputs are known without the data."""

VALUE_BYTES: Mapping[str, float] = {
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 8.0),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 4.0),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 2.0),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 1.0),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 0.5),
    **dict.fromkeys(("INT2", "UINT2"), 0.25),
    "COMPLEX128": 16.0,
}
"""Bytes of one value of each ONNX type."""

FLOATING = frozenset({"DOUBLE", "FLOAT", "FLOAT16", "BFLOAT16", "COMPLEX64", "COMPLEX128"})
"""Types that carry gradients."""

INDEX_TYPES = frozenset({"INT32", "INT64", "BOOL"})
"""Types of stored tensors that are no parameters: shapes, axes, indices, masks."""
