"""Bytes that one rank holds while training or serving its stage.

    weights P + gradients P + optimizer state (adam 2 P, sgd 0, with momentum P), fp32
    + saved activations of every microbatch in flight + receive buffers + the payload of the gradient codec

1F1B keeps min(stages - stage, microbatches) microbatches in flight, GPipe all of them (Narayanan et al. 2021).
Mixed precision keeps 2-byte weights and gradients beside fp32 masters: 2 + 2 + 4 + state, the same 16 B per
parameter with adam (Rajbhandari et al. 2020).
"""

from __future__ import annotations

STATE_COPIES = {"adam": 2.0, "sgd": 0.0, "sgd-momentum": 1.0}


def state_bytes(parameter_bytes: float, optimizer: str, momentum: float, precision: str) -> float:
    """Weights, gradients and optimizer state of fp32 `parameter_bytes`, held for the whole run of a training job."""
    kind = "sgd-momentum" if optimizer == "sgd" and momentum else optimizer
    copies = 2.0 if precision == "fp32" else 1.0 + 0.5 + 0.5
    return parameter_bytes * (copies + STATE_COPIES[kind])


def inference_bytes(parameter_bytes: float, precision: str) -> float:
    """Weights alone."""
    return parameter_bytes * (1.0 if precision == "fp32" else 0.5)


def microbatches_in_flight(schedule: str, stage: int, stage_count: int, microbatch_count: int) -> int:
    """How many microbatches a stage has started and not finished at most.

    >>> [microbatches_in_flight("1f1b", stage, 4, 8) for stage in range(4)]
    [4, 3, 2, 1]
    """
    return min(stage_count - stage, microbatch_count) if schedule == "1f1b" else microbatch_count
