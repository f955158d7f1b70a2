"""Weights in fewer bits at run time: how each format is stored, and what a linear layer or another reader does with it.

Linear layers compute in the format (`LINEAR`), other readers unpack the weight (`unpack`), lookups only the rows that they take
(`look_up`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, pad

from chinchilla_sim.graph.compress.quantize import INT4_ROWS, INT8_COLUMNS, int4_group

SMALLEST_SCALE = 1e-30
SMALLEST_BF16_SCALE = 1e-20
INPUT_STEPS = 127
"""Steps of a quantized input: seven bits, because kernels without VNNI add pairs of products in 16."""

Range = tuple[float, float]
"""Least and largest value of a layer's input."""
Stored = Mapping[str, Any]
"""What a weight becomes: by suffix of its name, what is put into the module."""


@dataclass(frozen=True)
class LinearFormat:
    """Linear layers in one format: `pack(weight, bias)` stores, `apply(source, *stored[, scale, zero][, bias][, outputs])`."""

    pack: Callable[[Tensor, Tensor | None], Stored]
    apply: Callable[..., Tensor]
    packs_bias: bool = False
    scales_input: bool = False
    states_outputs: bool = False
    rounds_input: bool = False

    def arguments(self, stored: Iterable[Any], source_range: Range | None, bias: Any, outputs: int) -> tuple[Any, ...]:
        """What `apply` takes behind the source."""
        scale = input_scale(*source_range) if self.scales_input and source_range else ()
        return (*stored, *scale, *(() if self.packs_bias else (bias,)), *((outputs,) if self.states_outputs else ()))


def linear_bf16(source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer whose product is computed in bf16."""
    return linear(source.to(torch.bfloat16), weight, None if bias is None else bias.to(torch.bfloat16)).to(source.dtype)


def linear_int8(source: Tensor, packed: Any) -> Tensor:
    """A linear layer in int8 whose inputs are quantized as they come."""
    result: Tensor = torch.ops.quantized.linear_dynamic(source.float(), packed)
    return result.to(source.dtype)


def linear_int8_static(source: Tensor, packed: Any, scale: float, zero: int) -> Tensor:
    """A linear layer in int8 whose inputs are quantized by a scale that data have set."""
    result: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(source.float(), scale, zero, packed)
    return result.to(source.dtype)


def linear_int8_weights(source: Tensor, rows: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer of int8 weights and bf16 inputs."""
    flat = _padded(source, rows.shape[1])
    product = torch._weight_int8pack_mm(flat, rows, scale.view(-1)).to(source.dtype)
    return _finish(product, source, bias)


def linear_int4(source: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None, outputs: int = 0) -> Tensor:
    """A linear layer of int4 weights and bf16 inputs; rows and columns that pad the weight fall away."""
    columns = 2 * packed.shape[1]
    flat = _padded(source, columns)
    product = torch._weight_int4pack_mm_for_cpu(flat, packed, columns // scales.shape[0], scales).to(source.dtype)
    return _finish(product[:, :outputs], source, bias)


def _padded(source: Tensor, columns: int) -> Tensor:
    """The rows of an input in bf16, with zeros where the weight has them: torch's kernels read whole blocks, even beyond the end."""
    flat = source.reshape(-1, source.shape[-1]).to(torch.bfloat16)
    return pad(flat, (0, columns - flat.shape[1])) if flat.shape[1] < columns else flat


def _finish(product: Tensor, source: Tensor, bias: Tensor | None) -> Tensor:
    return (product if bias is None else product + bias).view(*source.shape[:-1], product.shape[-1])


def pack_linear(weight: Tensor, bias: Tensor | None) -> Any:
    """Weight and bias as torch's int8 layers take them, with a scale per row."""
    scale = row_scales(weight).reshape(-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*deprecated")
        rows = torch.quantize_per_channel(weight.detach().float(), scale, torch.zeros(len(scale), dtype=torch.int64), 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rows, None if bias is None else bias.detach().float())


def packed_linear_bytes(packed: Any) -> float:
    """Bytes of what `pack_linear` made: values, scales and bias."""
    weight, bias = torch.ops.quantized.linear_unpack(packed)
    return float(weight.numel() + 4 * weight.q_per_channel_scales().numel() + (4 * bias.numel() if bias is not None else 0))


def row_scales(weight: Tensor) -> Tensor:
    """What one step of int8 is worth in each row, in the shape that broadcasts over the weight."""
    return weight.detach().float().abs().amax(tuple(range(1, weight.dim())), keepdim=True).div(127).clamp(min=SMALLEST_SCALE)


def input_scale(least: float, largest: float) -> tuple[float, int]:
    """Scale and zero point that cover a range (with 0) in INPUT_STEPS steps of an unsigned byte.

    >>> input_scale(0.0, 1.27)
    (0.01, 0)
    """
    least, largest = min(0.0, least), max(0.0, largest)
    scale = max((largest - least) / INPUT_STEPS, SMALLEST_SCALE)
    return scale, round(-least / scale)


def store(weight: Tensor, weight_format: str) -> Stored:
    """A weight for readers that unpack it."""
    if weight_format == "bf16":
        return {"bf16": weight.detach().to(torch.bfloat16)}
    if weight_format == "int4":
        packed, scales = _int4(weight)
        return {"int4": packed, "scales": scales}
    if weight_format == "int8-weights":
        weight = weight.detach().flatten(1)
        scale = row_scales(weight).clamp(min=SMALLEST_BF16_SCALE).to(torch.bfloat16)
        return {"int8_rows": pad(_whole_steps(weight, scale), (0, -weight.shape[1] % INT8_COLUMNS)), "scale": scale}
    scale = row_scales(weight).to(weight.dtype)
    return {"int8": _whole_steps(weight, scale), "scale": scale}


def _whole_steps(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight.detach() / scale.to(weight.dtype)).round().clamp(-127, 127).to(torch.int8)


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two values of a row in a byte, (rows, columns / 2), and (groups, rows, 2): scale and zero of `(value - 8) scale + zero`."""
    rows, columns = weight.shape[0], prod(weight.shape[1:])
    group = int4_group(columns)
    flat = pad(weight.detach().reshape(rows, columns).float(), (0, -columns % group, 0, -rows % INT4_ROWS))
    groups = flat.view(flat.shape[0], -1, group)
    least, largest = groups.amin(2), groups.amax(2)
    scale = ((largest - least) / 15).clamp(min=SMALLEST_BF16_SCALE).to(torch.bfloat16).float()
    zero = (least + 8 * scale).to(torch.bfloat16).float()
    values = ((groups - zero[:, :, None]) / scale[:, :, None] + 8).round().clamp(0, 15).to(torch.uint8).view(flat.shape)
    return values[:, 1::2] << 4 | values[:, ::2], torch.stack([scale, zero], 2).transpose(0, 1).contiguous().to(torch.bfloat16)


def _unpacked_int4(packed: Tensor, scales: Tensor) -> Tensor:
    """All rows and columns, those that pad included."""
    values = torch.stack([packed & 15, packed >> 4], 2).to(torch.float32).view(packed.shape[0], scales.shape[0], -1)
    scale, zero = scales.float().transpose(0, 1).unsqueeze(2).unbind(3)
    return ((values - 8) * scale + zero).view(packed.shape[0], -1)


def unpack(dtype: torch.dtype, shape: tuple[int, ...], stored: Tensor, scale: Tensor | None = None) -> Tensor:
    """The weight as the job computes with it."""
    if stored.dtype == torch.uint8:
        assert scale is not None
        return _unpacked_int4(stored, scale)[: shape[0], : prod(shape[1:])].reshape(shape).to(dtype)
    if scale is None:
        return stored.to(dtype)
    return (stored.to(dtype) * scale.to(dtype)).flatten(1)[:, : prod(shape[1:])].reshape(shape)


def look_up(dtype: torch.dtype, shape: tuple[int, ...], indices: Tensor, stored: Tensor, scale: Tensor | None = None) -> Tensor:
    """Rows of a table, of which only those are unpacked."""
    if scale is None:
        return embedding(indices, stored).to(dtype)
    if stored.dtype == torch.uint8:
        flat = indices.reshape(-1)
        rows = _unpacked_int4(stored[flat], scale[:, flat])[:, : shape[1]]
        return rows.reshape(*indices.shape, shape[1]).to(dtype)
    return (stored[indices].to(dtype) * scale[indices].to(dtype))[..., : shape[1]]


def rounded_weight(weight: Tensor, weight_format: str) -> Tensor:
    """The weight as it will be stored, with the gradient of itself (straight-through, Bengio et al. 2013)."""
    with torch.no_grad():
        off = unpack(weight.dtype, tuple(weight.shape), *store(weight, weight_format).values()) - weight
    return weight + off


def rounded_input(source: Tensor) -> Tensor:
    """An input as int8 layers quantize it, with the gradient of itself."""
    with torch.no_grad():
        scale, zero = input_scale(float(source.min()), float(source.max()))
        off = torch.fake_quantize_per_tensor_affine(source.float(), scale, zero, 0, INPUT_STEPS).to(source.dtype) - source
    return source + off


def linear_rounded(weight_format: str, source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer that is trained for a format."""
    inputs = rounded_input(source) if LINEAR[weight_format].rounds_input else source
    return linear(inputs, rounded_weight(weight, weight_format), bias)


def _pack_int8_weights(weight: Tensor, bias: Tensor | None) -> Stored:
    return store(weight, "int8-weights")


def _pack_int4(weight: Tensor, bias: Tensor | None) -> Stored:
    stored = store(weight, "int4")
    packed = stored["int4"]
    values = torch.stack([packed & 15, packed >> 4], 2).view(packed.shape[0], -1).to(torch.int32)
    return {"int4_linear": torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1), "scales": stored["scales"]}


LINEAR: Mapping[str, LinearFormat] = {
    "bf16": LinearFormat(lambda weight, bias: store(weight, "bf16"), linear_bf16),
    "int8": LinearFormat(lambda weight, bias: {"int8_linear": pack_linear(weight, bias)}, linear_int8, packs_bias=True, rounds_input=True),
    "int8-static": LinearFormat(
        lambda weight, bias: {"int8_linear": pack_linear(weight, bias)},
        linear_int8_static,
        packs_bias=True,
        scales_input=True,
        rounds_input=True,
    ),
    "int8-weights": LinearFormat(_pack_int8_weights, linear_int8_weights),
    "int4": LinearFormat(_pack_int4, linear_int4, states_outputs=True),
}
