"""Codecs in torch: sizes equal the cost model's, errors stay small."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cost.codec import CODECS, GRADIENTS_ONLY, payload_bytes
from chinchilla_sim.runtime.exchanges.codecs import MessageCodec, TensorSpec, decode, encode

LARGEST_ERROR = {"none": 0.0, "fp16": 1e-3, "bf16": 8e-3, "int8": 1e-2}


@pytest.mark.parametrize("codec", sorted(set(CODECS) - set(GRADIENTS_ONLY)))
@given(count=st.integers(1, 3000), seed=st.integers(0, 100))
def test_wire_bytes_equal_the_cost_model(codec: str, count: int, seed: int) -> None:
    """A payload has as many bytes as cost/codec.py says, and comes back with a small error."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    payload = encode(codec, values)
    assert payload.numel() * payload.element_size() == payload_bytes(codec, 4 * count)
    restored = decode(codec, payload, count)
    assert float((restored - values).norm() / values.norm()) <= LARGEST_ERROR[codec]


@pytest.mark.parametrize("codec", sorted(set(CODECS) - set(GRADIENTS_ONLY)))
def test_message_of_several_tensors_round_trips(codec: str) -> None:
    """Shapes and integers survive exactly, fp32 within the codec's error, whatever the alignment."""
    tensors = [torch.randn(3, 7), torch.arange(5), torch.randn(2, 2, 2), torch.tensor([True, False])]
    message = MessageCodec(codec, [TensorSpec(tuple(t.shape), t.dtype) for t in tensors])
    wire = message.encode(tensors)
    assert wire.numel() == message.wire_bytes == message.empty(torch.device("cpu")).numel()
    for ours, theirs in zip(message.decode(wire), tensors, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2 * LARGEST_ERROR[codec], atol=5 * LARGEST_ERROR[codec])


def test_zeros_stay_zeros_in_int8() -> None:
    """A block of zeros has no largest magnitude to divide by."""
    assert decode("int8", encode("int8", torch.zeros(300)), 300).abs().max() == 0
