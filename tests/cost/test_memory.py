"""Bytes that a rank holds: the 16 bytes per parameter of the literature, and microbatches in flight."""

import pytest

from chinchilla_sim.cost.memory import microbatches_in_flight, state_bytes


@pytest.mark.parametrize(
    ("optimizer", "momentum", "precision", "per_parameter"),
    [("adam", 0.0, "fp32", 16), ("adam", 0.0, "bf16", 16), ("adam", 0.0, "fp16", 16), ("sgd", 0.0, "fp32", 8), ("sgd", 0.9, "fp32", 12),
     ("sgd", 0.0, "bf16", 8), ("sgd", 0.9, "bf16", 12)],
)  # fmt: skip
def test_state_per_parameter(optimizer: str, momentum: float, precision: str, per_parameter: float) -> None:
    """Adam holds 16 B per parameter in fp32 and in mixed precision (Rajbhandari et al. 2020); sgd 8 B, with momentum 12 B."""
    value_bytes = 4 if precision == "fp32" else 2
    assert state_bytes(value_bytes * 1000.0, optimizer, momentum, precision) == 1000 * per_parameter


def test_microbatches_in_flight_by_hand() -> None:
    """Narayanan et al. 2021: 1F1B holds 4, 3, 2, 1 of 8 microbatches on four stages, and never more than there are; GPipe all."""
    assert [microbatches_in_flight("1f1b", stage, 4, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert [microbatches_in_flight("1f1b", stage, 4, 2) for stage in range(4)] == [2, 2, 2, 1]
    assert [microbatches_in_flight("gpipe", stage, 4, 8) for stage in range(4)] == [8] * 4
