"""Codecs in plain torch: tensors to bytes on the wire and back; sizes equal `cost/codec.py`.

int8 has one scale for every INT8_BLOCK values in a row of memory, not one for each row of the tensor: rows longer than a block get
several (finer than one per row), shorter rows share one. So the payload depends on the number of values alone, as the plan's bytes do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from chinchilla_sim.cost.codec import INT8_BLOCK

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
SMALLEST_SCALE = 1e-30
SCALE_BYTES = 4


def encode(codec: str, values: Tensor) -> Tensor:
    """Pack fp32 or bf16 `values` (any shape) into a flat payload: their own type, fp16, bf16, or bytes for int8."""
    flat = values.reshape(-1)
    if codec == "none":
        return flat
    if codec in HALF:
        return flat.to(HALF[codec])
    return _encode_int8(flat.to(torch.float32))


def decode(codec: str, payload: Tensor, count: int) -> Tensor:
    """Inverse of `encode` for `count` values; returns them flat, in fp32 (of codec none as they are)."""
    if codec == "none":
        return payload
    if codec in HALF:
        return payload.to(torch.float32)
    return _decode_int8(payload, count)


def block_count(values: int) -> int:
    """Blocks that so many values start."""
    return -(-values // INT8_BLOCK)


def quantize(blocks: Tensor, scale: Tensor, values: Tensor, scratch: Tensor | None = None) -> None:
    """Rows of INT8_BLOCK fp32 values into int8 `values` (as many as it holds) and one `scale` a row; `scratch` may be `blocks` itself."""
    torch.maximum(blocks.amax(dim=1), blocks.amin(dim=1).neg_(), out=scale).div_(127).clamp_(min=SMALLEST_SCALE)
    scaled = torch.div(blocks, scale[:, None], out=scratch).round_()
    values.copy_(scaled.view(-1)[: values.numel()])


def split_scales(payload: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Scales of so many blocks, and the bytes behind them; `payload` starts at a multiple of four bytes."""
    return payload[: SCALE_BYTES * blocks].view(torch.float32), payload[SCALE_BYTES * blocks :]


def aligned(payload: Tensor) -> Tensor:
    """Bytes that start at a multiple of four in memory: themselves, or a copy."""
    return payload.clone() if payload.storage_offset() % SCALE_BYTES else payload


def _encode_int8(flat: Tensor) -> Tensor:
    """One fp32 scale per block of INT8_BLOCK values, then the int8 values, as one tensor of bytes."""
    count = flat.numel()
    missing = -count % INT8_BLOCK
    blocks = (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(-1, INT8_BLOCK)
    payload = torch.empty(SCALE_BYTES * len(blocks) + count, dtype=torch.uint8, device=flat.device)
    scale, values = split_scales(payload, len(blocks))
    quantize(blocks, scale, values.view(torch.int8))
    return payload


def _decode_int8(payload: Tensor, count: int) -> Tensor:
    scale, values = split_scales(payload, block_count(count))
    whole = count - count % INT8_BLOCK
    flat = values.view(torch.int8).to(torch.float32)
    flat[:whole].view(-1, INT8_BLOCK).mul_(scale[: whole // INT8_BLOCK, None])
    if whole < count:
        flat[whole:].mul_(scale[-1])
    return flat


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and type of one tensor of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """Number of values."""
        return prod(self.shape)


class MessageCodec:
    """Packs the tensors that cross a boundary into one message; floating ones through the codec, others as they are."""

    def __init__(self, codec: str, specs: Sequence[TensorSpec]) -> None:
        self.specs = tuple(specs)
        self._codecs = [codec if spec.dtype.is_floating_point else "none" for spec in specs]
        examples = [encode(kind, torch.zeros(spec.shape, dtype=spec.dtype)) for kind, spec in zip(self._codecs, specs, strict=True)]
        self._sizes = [example.numel() * example.element_size() for example in examples]
        self._types = [example.dtype for example in examples]

    @property
    def wire_bytes(self) -> int:
        """Payload of one message."""
        return sum(self._sizes)

    def empty(self, device: torch.device) -> Tensor:
        """A buffer to receive one message."""
        return torch.empty(self.wire_bytes, dtype=torch.uint8, device=device)

    def encode(self, tensors: Sequence[Tensor]) -> Tensor:
        """One message of bytes; a single uncompressed tensor is sent from where it lies."""
        parts = [encode(kind, tensor.detach()).view(torch.uint8) for kind, tensor in zip(self._codecs, tensors, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode(self, message: Tensor) -> list[Tensor]:
        """The tensors of one message."""
        tensors, start = [], 0
        for kind, spec, size, dtype in zip(self._codecs, self.specs, self._sizes, self._types, strict=True):
            part = message[start : start + size]
            if start % 8:
                part = part.clone()
            tensors.append(decode(kind, part.view(dtype), spec.count).view(spec.shape).to(spec.dtype))
            start += size
        return tensors
