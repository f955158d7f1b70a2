"""bf16 on the wire and what is refused."""

import pytest
import torch

from chinchilla_sim.cost.codec import CODECS, GRADIENTS_ONLY, payload_bytes
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.running import check_runnable
from chinchilla_sim.runtime.exchanges.codecs import MessageCodec, TensorSpec
from chinchilla_sim.scenario.schema import Scenario

LARGEST_ERROR = {"none": 0.0, "fp16": 8e-3, "bf16": 0.0, "int8": 2e-2}


@pytest.mark.parametrize("codec", sorted(set(CODECS) - set(GRADIENTS_ONLY)))
def test_bf16_messages_are_as_long_as_the_cost_model_says(codec: str) -> None:
    """Values of two bytes: no codec makes them longer, int8 halves them, and they come back as bf16."""
    values = torch.randn(7, 100, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    message = MessageCodec(codec, [TensorSpec((7, 100), torch.bfloat16)])
    wire = message.encode([values])
    assert wire.numel() == payload_bytes(codec, 2 * 700, value_bytes=2)
    (restored,) = message.decode(wire)
    assert restored.dtype == torch.bfloat16 and restored.shape == values.shape
    assert float((restored.float() - values.float()).norm() / values.float().norm()) <= LARGEST_ERROR[codec]


def test_only_fp16_is_refused(own: Scenario) -> None:
    """bf16 runs; fp16 needs its loss scaled, and the error says what to write."""
    jobs = {name: own.job.model_copy(update={"precision": name}) for name in ("fp32", "bf16", "fp16")}
    for name in ("fp32", "bf16"):
        check_runnable(own.model_copy(update={"job": jobs[name]}))
    with pytest.raises(ScenarioError, match=r'job\.precision: fp16 needs its loss scaled.*write job\.precision = "bf16"'):
        check_runnable(own.model_copy(update={"job": jobs["fp16"]}))
