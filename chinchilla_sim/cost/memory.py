"""Bytes that one rank holds while training or serving its stage.

    weights P + gradients P + optimizer state (adam 2 P, sgd 0, with momentum P), fp32; buffers and frozen weights once
    + saved activations of every microbatch in flight + receive buffers + the payload of the gradient codec

1F1B keeps min(stages - stage, microbatches) microbatches in flight, GPipe all of them (Narayanan et al. 2021).
Mixed precision keeps 2-byte weights and gradients beside fp32 masters: 2 + 2 + 4 + state, the same 16 B per
parameter with adam (Rajbhandari et al. 2020).
"""

from __future__ import annotations

STATE_COPIES = {"adam": 2.0, "sgd": 0.0, "sgd-momentum": 1.0}


def state_bytes(parameter_bytes: float, optimizer: str, momentum: float, precision: str) -> float:
    """Weights, gradients, fp32 masters and optimizer state of trained `parameter_bytes` (as stored at this precision)."""
    kind = "sgd-momentum" if optimizer == "sgd" and momentum else optimizer
    if precision == "fp32":
        return parameter_bytes * (2.0 + STATE_COPIES[kind])
    return parameter_bytes * (2.0 + 2.0 * (1.0 + STATE_COPIES[kind]))


def microbatches_in_flight(schedule: str, stage: int, stage_count: int, microbatch_count: int) -> int:
    """How many microbatches a stage has started and not finished at most.

    >>> [microbatches_in_flight("1f1b", stage, 4, 8) for stage in range(4)]
    [4, 3, 2, 1]
    """
    return min(stage_count - stage, microbatch_count) if schedule == "1f1b" else microbatch_count
