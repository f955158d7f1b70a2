"""Bytes and seconds of codecs: how a tensor of fp32 values is shrunk for a link.

    codec   payload per value             encode reads+writes   decode reads+writes   summable on the way
    none    4 B                           0                     0                     yes
    fp16    2 B                           6 B, 1 kernel         6 B, 1 kernel         yes (all-reduce)
    bf16    2 B                           6 B, 1 kernel         6 B, 1 kernel         yes (all-reduce)
    int8    1 B + 4 B per block of 256    29 B, 5 kernels       13 B, 2 kernels       no (all-gather)

int8 scales each block by its largest magnitude (one scale for a whole bucket gives 13-15 % gradient error,
one per block below 1 %): magnitude (8 B), maximum (4 B), division (8 B), rounding (8 B in place) and
conversion (5 B) less the 4 B that stay in cache. Decoding converts (5 B) and multiplies (8 B).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from chinchilla_sim.cluster.topology import Device

INT8_BLOCK = 256
VALUE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Codec:
    """How one fp32 value travels, and what packing it costs in memory traffic."""

    name: str
    value_bytes: float
    block_bytes: float
    encode_bytes: float
    encode_kernels: int
    decode_bytes: float
    decode_kernels: int
    summable: bool


CODECS = {
    codec.name: codec
    for codec in (
        Codec("none", 4, 0, 0, 0, 0, 0, True),
        Codec("fp16", 2, 0, 6, 1, 6, 1, True),
        Codec("bf16", 2, 0, 6, 1, 6, 1, True),
        Codec("int8", 1, 4, 29, 5, 13, 2, False),
    )
}


def payload_bytes(codec: str, raw_bytes: float, value_bytes: float = VALUE_BYTES) -> float:
    """Bytes on the wire for `raw_bytes` of values of `value_bytes` each, without headers of the transport.

    >>> payload_bytes("int8", 4 * 1024)
    1040.0
    """
    kind = CODECS[codec]
    values = raw_bytes / value_bytes
    return values * min(kind.value_bytes, value_bytes) + kind.block_bytes * ceil(values / INT8_BLOCK)


def compression_ratio(codec: str, raw_bytes: float) -> float:
    """Payload bytes before / after; below 1 only for a few values that are smaller than their block's scale."""
    return raw_bytes / payload_bytes(codec, raw_bytes) if raw_bytes else 1.0


def encode_s(codec: str, raw_bytes: float, device: Device) -> float:
    """Seconds to pack `raw_bytes` of fp32 values."""
    kind = CODECS[codec]
    return _kernels_s(kind.encode_kernels, kind.encode_bytes, raw_bytes, device)


def decode_s(codec: str, raw_bytes: float, device: Device, copies: int = 1) -> float:
    """Seconds to unpack `copies` payloads and add them up (an all-gather delivers one per rank)."""
    kind = CODECS[codec]
    once_s = _kernels_s(kind.decode_kernels, kind.decode_bytes, raw_bytes, device)
    addition_s = _kernels_s(1, 3 * VALUE_BYTES, raw_bytes, device)
    return copies * once_s + (copies - 1) * addition_s


def _kernels_s(kernels: int, bytes_per_value: float, raw_bytes: float, device: Device) -> float:
    traffic = bytes_per_value * raw_bytes / VALUE_BYTES
    return kernels * device.elementwise_launch_s + traffic / device.elementwise_bandwidth_bytes_per_s
