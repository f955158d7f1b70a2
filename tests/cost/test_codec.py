"""Codecs: bytes on the wire and seconds to pack them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.codec import CODECS, compression_ratio, decode_s, encode_s, payload_bytes

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


@pytest.mark.parametrize(("codec", "payload"), [("none", 4096), ("fp16", 2048), ("bf16", 2048), ("int8", 1024 + 4 * 4)])
def test_payload_by_hand(codec: str, payload: float) -> None:
    """1,024 values: 4, 2, 2 or 1 byte each, and a 4-byte scale per block of 256 for int8."""
    assert payload_bytes(codec, 4096.0) == payload
    assert payload_bytes(codec, 0.0) == 0 and compression_ratio(codec, 0.0) == 1


def test_started_block_has_a_whole_scale() -> None:
    """257 values are two blocks of int8."""
    assert payload_bytes("int8", 4.0 * 257) == 257 + 8


def test_packing_by_hand() -> None:
    """100 values at 100 B/s: fp16 one kernel and 6 B each, int8 five kernels and 29 B each."""
    assert encode_s("fp16", 400.0, DEVICE) == pytest.approx(0.5 + 6.0)
    assert encode_s("int8", 400.0, DEVICE) == pytest.approx(5 * 0.5 + 29.0)


def test_unpacking_a_gather_adds_every_copy() -> None:
    """Three int8 payloads are unpacked three times (two kernels, 13 B) and added twice (one kernel, 12 B)."""
    assert decode_s("int8", 400.0, DEVICE, copies=3) == pytest.approx(3 * (2 * 0.5 + 13.0) + 2 * (0.5 + 12.0))


def test_only_sums_of_plain_numbers_are_sums() -> None:
    """A sum of int8 payloads with different scales is no int8 payload: they are gathered, the others reduced."""
    assert {name for name, codec in CODECS.items() if codec.summable} == {"none", "fp16", "bf16"}
