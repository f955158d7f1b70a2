"""Codecs: bytes on the wire and seconds to pack them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.codec import (
    CODECS,
    between_rounds_s,
    compression_ratio,
    decode_s,
    encode_s,
    exchange_kind,
    matrices_of,
    packing_s,
    payload_bytes,
)
from chinchilla_sim.graph.task import Weight

DEVICE = Device("slow", 1.0, 1.0, elementwise_bandwidth_bytes_per_s=100.0, elementwise_launch_s=0.5)
names = st.sampled_from(sorted(CODECS))
values = st.integers(2, 10**7)


@given(names, values)
def test_payload_is_never_larger_than_the_tensor(codec: str, count: int) -> None:
    """compression_ratio >= 1 from two values on."""
    assert compression_ratio(codec, 4.0 * count) >= 1


@given(names, values, values)
def test_more_values_never_travel_in_fewer_bytes(codec: str, one: int, other: int) -> None:
    """The payload grows with the tensor, and packing with it."""
    low, high = 4.0 * min(one, other), 4.0 * max(one, other)
    assert payload_bytes(codec, low) <= payload_bytes(codec, high)
    assert encode_s(codec, low, DEVICE) <= encode_s(codec, high, DEVICE)
    assert decode_s(codec, low, DEVICE) <= decode_s(codec, high, DEVICE)


@given(values)
def test_no_codec_costs_nothing(count: int) -> None:
    """`none` sends what there is, at once."""
    raw = 4.0 * count
    assert (payload_bytes("none", raw), encode_s("none", raw, DEVICE), decode_s("none", raw, DEVICE)) == (raw, 0, 0)


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("none", 4096),
        ("fp16", 2048),
        ("bf16", 2048),
        ("int8", 1024 + 4 * 4),
        ("one-bit", 128 + 4 * 4),
        ("top-k", 11 * 8),
        ("low-rank", 4 * 4 * (32 + 32)),
    ],
)
def test_payload_by_hand(codec: str, payload: float) -> None:
    """1,024 values: 4, 2, 2, 1 byte or 1 bit, and 4 B per block of 256; 11 values with index; 32 x 32 as 4 + 4 vectors."""
    assert payload_bytes(codec, 4096.0) == payload
    assert payload_bytes(codec, 0.0) == 0 and compression_ratio(codec, 0.0) == 1


def test_started_blocks_and_bytes_are_whole() -> None:
    """257 values are two blocks, and 33 bytes of signs."""
    assert payload_bytes("int8", 4.0 * 257) == 257 + 8
    assert payload_bytes("one-bit", 4.0 * 257) == 33 + 8


def test_packing_by_hand() -> None:
    """100 values at 100 B/s: fp16 one kernel and 6 B each, int8 nine kernels and 29 B each; copied before are int8 and none."""
    assert encode_s("fp16", 400.0, DEVICE) == pytest.approx(0.5 + 6.0)
    assert encode_s("int8", 400.0, DEVICE) == pytest.approx(9 * 0.5 + 29.0)
    assert [packing_s(name, 400.0, DEVICE) for name in ("none", "fp16", "int8", "one-bit")] == pytest.approx([8.5, 0, 8.5, 0])


def test_unpacking_a_gather_adds_every_copy() -> None:
    """Three int8 payloads are unpacked (two kernels, 13 B), two of them onto the first (two kernels, 17 B)."""
    assert decode_s("int8", 400.0, DEVICE, copies=3) == pytest.approx(2 * 0.5 + 13.0 + 2 * (2 * 0.5 + 17.0))


def test_only_sums_of_plain_numbers_are_sums() -> None:
    """A sum of payloads with different scales or indices is no payload: they are gathered, plain numbers and factors reduced."""
    assert {name for name, codec in CODECS.items() if codec.summable} == {"none", "fp16", "bf16", "low-rank"}
    assert [exchange_kind(name) for name in ("none", "int8", "top-k", "low-rank")] == [
        "all_reduce",
        "all_gather",
        "all_gather",
        "all_reduce",
    ]
    # Every rank needs all of P and Q; of plain sums ZeRO's share is enough.
    assert [exchange_kind(name, 1) for name in ("none", "int8", "low-rank")] == ["reduce_scatter", "all_gather", "all_reduce"]


def test_low_rank_by_hand() -> None:
    """100 x 20 and a vector of 20: 4 (100 + 20) values and 20; 10 x 5 stays whole, as 60 values are more than 50."""
    assert payload_bytes("low-rank", 4.0 * 2020, matrices=[(100, 20)]) == 4 * (480 + 20)
    assert payload_bytes("low-rank", 4.0 * 50, matrices=[(10, 5)]) == 200
    device = replace(DEVICE, flop_per_s=1000.0)
    # Feedback 12 B of all values; P takes one kernel, 2 n m r flop and M once.
    encoding_s = (0.5 + 12 * 20.2) + 0.5 + 2 * 2000 * 4 / 1000 + 4 * 20.0
    assert encode_s("low-rank", 4.0 * 2020, device, [(100, 20)]) == pytest.approx(encoding_s)
    # Orthogonal columns 4 n r^2, Q as P; then the residual (8 B) and the result (4 B), 2 n m r flop each.
    between_s = 4 * 0.5 + (2 * 2000 * 4 + 4 * 100 * 16) / 1000 + 4 * 20.0
    assert between_rounds_s("low-rank", 4.0 * 2020, device, [(100, 20)]) == pytest.approx(between_s)
    decoding_s = between_s + 2 * 0.5 + 4 * 2000 * 4 / 1000 + 12 * 20.0
    assert decode_s("low-rank", 4.0 * 2020, device, matrices=[(100, 20)]) == pytest.approx(decoding_s)
    assert between_rounds_s("int8", 4.0 * 2020, device, [(100, 20)]) == 0


def test_matrices_are_the_first_axis_by_all_others() -> None:
    """A convolution 8 x 4 x 3 x 3 is 8 x 36, half of it 4 x 36; a bias is none; a long vector or an unknown shape is a square."""
    weights = [Weight(1152, (8, 4, 3, 3)), Weight(576, (8, 4, 3, 3)), Weight(32, (8,)), Weight(400), Weight(4.0 * 10**6, (10**6,))]
    assert matrices_of(weights, 4.0) == [(8, 36), (4, 36), (10, 10), (1000, 1000)]


def test_sparse_payloads_are_added_where_their_values_belong() -> None:
    """100 values, three payloads of one value: 20 B and a kernel each, onto zeros (4 B and a kernel); packing 37 B in 14 kernels."""
    assert decode_s("top-k", 400.0, DEVICE, copies=3) == pytest.approx(0.5 + 4.0 + 3 * (0.5 + 0.2))
    assert encode_s("top-k", 400.0, DEVICE) == pytest.approx(14 * 0.5 + 37.0)
    assert encode_s("one-bit", 400.0, DEVICE) == pytest.approx(10 * 0.5 + 59.0)
