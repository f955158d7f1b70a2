"""Bytes and seconds of codecs: how a tensor of fp32 values is shrunk for a link.

    codec     payload per value                    encode             decode the first   each further   summable on the way
    none      4 B                                  0                  0                  -              yes
    fp16      2 B                                  6 B, 1 kernel      6 B, 1             -              yes (all-reduce)
    bf16      2 B                                  6 B, 1             6 B, 1             -              yes (all-reduce)
    int8      1 B + 4 B per block of 256           29 B, 9            13 B, 2            17 B, 2        no (all-gather)
    one-bit   1/8 B + 4 B per block of 256         59 B, 10           18 B, 5            22 B, 5        no (all-gather)
    top-k     of 1 %: value + 4 B index            37 B, 14           4.2 B, 2           0.2 B, 1       no (all-gather)
    low-rank  of a matrix n x m: r (n + m) values  12 B, see below    12 B, see below    -              yes (all-reduce, twice)

Bytes read and written per value and kernels started: counts of the operators in runtime/exchanges/ (codecs.py, gradient_codecs.py and
low_rank.py). Gradients are first copied side by side (8 B, `packing_s`), except by fp16 and bf16, which convert as they copy, and by
codecs with feedback, which add them to the residual.

int8 scales each block by its largest magnitude (one scale for a whole bucket gives 13-15 % gradient error, one per block below 1 %):
maximum (4 B), minimum (4 B), division (8 B), rounding (8 B in place), conversion (5 B), and four kernels on scales alone. Decoding
converts (5 B) and multiplies (8 B), or multiplies and adds (12 B).

The last three lose so much that they are for gradients only, with error feedback: what was not sent is kept in a residual (a copy of
the gradients in memory) and added to those of the next step, which reads both and writes one (12 B).

one-bit   signs and the mean magnitude of each block (1-bit SGD, Seide et al. 2014; with feedback Karimireddy et al. 2019, EF-signSGD):
          beside feedback magnitudes (8 B) and their sums (4 B), signs as bytes (5 B) packed to bits (2 B with their copy), and the scale
          with each sign (8 B, 8 B) taken off the residual (12 B). Decoding unpacks (1 B), makes +1 and -1 (4 B), and goes on as int8.
top-k     the 1 % largest magnitudes (Aji & Heafield 2017; with memory Stich et al. 2018): beside feedback magnitudes (8 B), maxima of 16
          (4 B) and a selection among those (1 B), comparison with the last one selected (5 B, and 2 B to turn it round), a search (1 B),
          and about 4 B for what passes. Decoding zeroes (4 B); per sent value 8 B are read and 12 B read and written.
low-rank  PowerSGD (Vogels, Karimireddy & Jaggi 2019) of rank r = 4: P = M Q is summed over the ranks and made orthonormal, then
          Q = M^T P is summed, and P Q^T is the result. Encoding takes 2 n m r flop and reads M. What stands between the two collectives
          (`between_rounds_s`) takes 2 n m r + 4 n r^2 flop and reads M again; behind the second the residual is read and written and the
          result written, for 4 n m r flop. Tensors of one axis, and matrices that would not shrink, travel whole. Matrices of one
          shape share their kernels: 1, 4 and 2.

low-rank depends on shapes: callers give `matrices` (rows, columns) of what they know (`matrices_of`); what is not in them travels whole.
Without any all values are taken to be one square matrix, which shrinks most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, isqrt, prod, sqrt

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.graph.task import Weight

INT8_BLOCK = 256
VALUE_BYTES = 4
INDEX_BYTES = 4
TOP_SHARE = 0.01
LOW_RANK = 4
LONGEST_VECTOR = 2**17
"""A longer tensor of one axis is no bias, but a flattened one of unknown shape: taken as a square matrix."""

Matrices = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Codec:
    """How one fp32 value travels, and what packing it costs in memory traffic.

    `decode_*` unpack the first payload, `further_*` each other one and add it. `rounds` collectives exchange a payload; with `feedback` a
    residual as large as the gradients is kept, and the codec is for them only. `copied` gradients are laid side by side first.
    """

    name: str
    value_bytes: float
    block_bytes: float
    encode_bytes: float
    encode_kernels: int
    decode_bytes: float
    decode_kernels: int
    further_bytes: float = 0.0
    further_kernels: int = 0
    summable: bool = False
    copied: bool = False
    feedback: bool = False
    rounds: int = 1


CODECS = {
    codec.name: codec
    for codec in (
        Codec("none", 4, 0, 0, 0, 0, 0, summable=True, copied=True),
        Codec("fp16", 2, 0, 6, 1, 6, 1, summable=True),
        Codec("bf16", 2, 0, 6, 1, 6, 1, summable=True),
        Codec("int8", 1, 4, 29, 9, 13, 2, 17, 2, copied=True),
        Codec("one-bit", 1 / 8, 4, 59, 10, 18, 5, 22, 5, feedback=True),
        Codec("top-k", TOP_SHARE * (VALUE_BYTES + INDEX_BYTES), 0, 37, 14, 4 + TOP_SHARE * 20, 2, TOP_SHARE * 20, 1, feedback=True),
        Codec("low-rank", 0, 0, 12, 1, 12, 0, summable=True, feedback=True, rounds=2),
    )
}
GRADIENTS_ONLY = tuple(name for name, codec in CODECS.items() if codec.feedback)


def payload_bytes(codec: str, raw_bytes: float, value_bytes: float = VALUE_BYTES, matrices: Matrices | None = None) -> float:
    """Bytes on the wire for `raw_bytes` of values of `value_bytes` each, without headers of the transport.

    >>> payload_bytes("int8", 4 * 1024), payload_bytes("top-k", 4 * 1000), payload_bytes("low-rank", 4 * 10_000)
    (1040, 80.0, 3200.0)
    """
    kind = CODECS[codec]
    values = raw_bytes / value_bytes
    if codec == "top-k":
        # As ceil(values / 100), but exact.
        return -(-values // round(1 / TOP_SHARE)) * (min(VALUE_BYTES, value_bytes) + INDEX_BYTES)
    if codec == "low-rank":
        return value_bytes * (values - sum(n * m - LOW_RANK * (n + m) for n, m in _shrinking(values, matrices)))
    return ceil(values * min(kind.value_bytes, value_bytes)) + kind.block_bytes * ceil(values / INT8_BLOCK)


def least_payload_bytes(codec: str, raw_bytes: float, value_bytes: float, matrices: Matrices) -> float:
    """What a weight adds to a payload at least: nothing is rounded up to whole blocks or values, so that weights add up.

    >>> round(least_payload_bytes("top-k", 4 * 10, 4, []), 3), payload_bytes("top-k", 4 * 10)
    (0.8, 8.0)
    """
    kind = CODECS[codec]
    values = raw_bytes / value_bytes
    if codec == "low-rank":
        return payload_bytes(codec, raw_bytes, value_bytes, matrices)
    if codec == "top-k":
        return values * TOP_SHARE * (min(VALUE_BYTES, value_bytes) + INDEX_BYTES)
    return values * (min(kind.value_bytes, value_bytes) + kind.block_bytes / INT8_BLOCK)


def compression_ratio(codec: str, raw_bytes: float) -> float:
    """Payload bytes before / after; below 1 only for a few values that are smaller than their block's scale or a value's index."""
    return raw_bytes / payload_bytes(codec, raw_bytes) if raw_bytes else 1.0


def exchange_kind(codec: str, zero_stage: int = 0) -> str:
    """The collective that exchanges gradients; where ZeRO divides them it reduces plain sums only to the share of each rank.

    What cannot be summed on the way is gathered. Factors of low rank are needed whole by every rank.
    """
    if not CODECS[codec].summable:
        return "all_gather"
    return "reduce_scatter" if zero_stage and CODECS[codec].rounds == 1 else "all_reduce"


def matrices_of(weights: Iterable[Weight], value_bytes: float) -> list[tuple[float, float]]:
    """Rows and columns of the gradients of weights; of tensors in parts the rows are fewer."""
    found: list[tuple[float, float]] = []
    for weight in weights:
        values = weight.bytes / value_bytes
        if len(weight.shape) > 1:
            columns = prod(weight.shape[1:])
            found.append((values / columns, float(columns)))
        elif not weight.shape or values > LONGEST_VECTOR:
            found.append((float(isqrt(int(values))),) * 2)
    return found


def gradient_matrix(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of a tensor: the first axis by all others; of a long vector the largest square in it; None of a short one.

    >>> gradient_matrix((8, 4, 3, 3)), gradient_matrix((2**18 + 5,)), gradient_matrix((10,))
    ((8, 36), (512, 512), None)
    """
    if len(shape) > 1:
        return shape[0], prod(shape[1:])
    values = prod(shape)
    return (isqrt(values), isqrt(values)) if values > LONGEST_VECTOR else None


def _shrinking(values: float, matrices: Matrices | None) -> list[tuple[float, float]]:
    """The matrices whose factors are smaller than they are."""
    given = [(sqrt(values), sqrt(values))] if matrices is None else matrices
    return [(n, m) for n, m in given if LOW_RANK * (n + m) < n * m]


def second_factor_bytes(matrices: Matrices | None, values: float) -> float:
    """Bytes in fp32 of the second low-rank factors of all matrices that shrink."""
    return VALUE_BYTES * LOW_RANK * sum(m for _, m in _shrinking(values, matrices))


def packing_s(codec: str, raw_bytes: float, device: Device) -> float:
    """Seconds to lay gradients side by side before they are encoded."""
    return _kernels_s(1, 8, raw_bytes, device) if CODECS[codec].copied else 0.0


def encode_s(codec: str, raw_bytes: float, device: Device, matrices: Matrices | None = None) -> float:
    """Seconds to pack `raw_bytes` of fp32 values."""
    kind = CODECS[codec]
    seconds = _kernels_s(kind.encode_kernels, kind.encode_bytes, raw_bytes, device)
    return seconds + _factors_s(raw_bytes, device, matrices, 1, 2, 0, VALUE_BYTES) if codec == "low-rank" else seconds


def between_rounds_s(codec: str, raw_bytes: float, device: Device, matrices: Matrices | None = None) -> float:
    """Seconds of decoding that the second collective waits for, of a codec that has one."""
    return _factors_s(raw_bytes, device, matrices, 4, 2, 4, VALUE_BYTES) if CODECS[codec].rounds > 1 else 0.0


def decode_s(codec: str, raw_bytes: float, device: Device, copies: int = 1, matrices: Matrices | None = None) -> float:
    """Seconds to unpack `copies` payloads and add them up (an all-gather delivers one per rank)."""
    kind = CODECS[codec]
    if codec == "low-rank":
        behind_s = _factors_s(raw_bytes, device, matrices, 2, 4, 0, kind.decode_bytes)
        return between_rounds_s(codec, raw_bytes, device, matrices) + behind_s
    further_s = _kernels_s(kind.further_kernels, kind.further_bytes, raw_bytes, device)
    return _kernels_s(kind.decode_kernels, kind.decode_bytes, raw_bytes, device) + (copies - 1) * further_s


def _factors_s(
    raw_bytes: float, device: Device, matrices: Matrices | None, launches: int, products: int, squares: int, bytes_per_value: float
) -> float:
    """Seconds of work on low-rank factors: `launches` for each shape, flop of `products` n m r + `squares` n r^2, traffic of each value."""
    shrinking = _shrinking(raw_bytes / VALUE_BYTES, matrices)
    flop = sum(products * n * m * LOW_RANK + squares * n * LOW_RANK**2 for n, m in shrinking)
    moved = bytes_per_value * sum(n * m for n, m in shrinking)
    return _products_s(launches * len(set(shrinking)), flop, moved, device)


def _products_s(launches: int, flop: float, moved_bytes: float, device: Device) -> float:
    moving_s = moved_bytes / device.elementwise_bandwidth_bytes_per_s
    return launches * device.elementwise_launch_s + flop / device.flop_per_s + moving_s


def _kernels_s(kernels: int, bytes_per_value: float, raw_bytes: float, device: Device) -> float:
    traffic = bytes_per_value * raw_bytes / VALUE_BYTES
    return kernels * device.elementwise_launch_s + traffic / device.elementwise_bandwidth_bytes_per_s
