"""Bytes that a rank holds: the 16 bytes per parameter of the literature, and what ZeRO makes of them."""

import pytest

from chinchilla_sim.cost.memory import loss_bytes, state_parts


@pytest.mark.parametrize(
    ("optimizer", "momentum", "precision", "per_parameter"),
    [("adam", 0.0, "fp32", 16), ("adam", 0.0, "bf16", 16), ("adam", 0.0, "fp16", 16), ("sgd", 0.0, "fp32", 8), ("sgd", 0.9, "fp32", 12),
     ("sgd", 0.0, "bf16", 8), ("sgd", 0.9, "bf16", 12)],
)  # fmt: skip
def test_state_per_parameter(optimizer: str, momentum: float, precision: str, per_parameter: float) -> None:
    """Adam holds 16 B per parameter in fp32 and in mixed precision (Rajbhandari et al. 2020); sgd 8 B, with momentum 12 B."""
    value_bytes = 4 if precision == "fp32" else 2
    assert sum(state_parts(value_bytes * 1000.0, optimizer, momentum, precision).values()) == 1000 * per_parameter


@pytest.mark.parametrize(("stage", "per_parameter"), [(0, 16), (1, 4 + 12 / 64), (2, 2 + 14 / 64), (3, 16 / 64)])
def test_zero_divides_state_as_published(stage: int, per_parameter: float) -> None:
    """Mixed precision with adam on 64 replicas: figure 1 of Rajbhandari et al. 2020 (120, 31.4, 16.6 and 1.9 GB for 7.5 B parameters)."""
    assert sum(state_parts(2 * 1000.0, "adam", 0.0, "bf16", stage, 64).values()) == pytest.approx(1000 * per_parameter)


def test_a_loss_holds_twelve_bytes_per_logit() -> None:
    """Logits, fp32 log-probabilities and their gradient; in half precision the gradient of the logits too."""
    for value_bytes in (2.0, 4.0):
        assert value_bytes + sum(loss_bytes(value_bytes, value_bytes)) == 12
