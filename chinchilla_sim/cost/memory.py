"""Bytes that one rank holds while training or serving its stage.

    weights P + gradients P + optimizer state (adam 2 P, sgd 0, with momentum P), fp32; buffers and frozen weights once
    + saved activations of every microbatch in flight + receive buffers + the payload of the gradient codec

How many microbatches are in flight follows from the schedule. Mixed precision keeps 2-byte weights and gradients
beside fp32 masters: 2 + 2 + 4 + state, the same 16 B per parameter with adam. ZeRO divides by the replicas the
optimizer state and masters (stage 1), the gradients too (2), and the weights too (3) (Rajbhandari et al. 2020).
"""

from __future__ import annotations

STATE_COPIES = {"adam": 2.0, "sgd": 0.0, "sgd-momentum": 1.0}


def state_parts(
    parameter_bytes: float, optimizer: str, momentum: float, precision: str, zero_stage: int = 0, replicas: int = 1
) -> dict[str, float]:
    """Bytes of weights, gradients, and optimizer state with fp32 masters, of trained `parameter_bytes` (as stored at this precision).

    >>> state_parts(4.0, "adam", 0.0, "fp32", zero_stage=1, replicas=4)
    {'weights': 4.0, 'gradients': 4.0, 'optimizer state': 2.0}
    """
    copies = STATE_COPIES["sgd-momentum" if optimizer == "sgd" and momentum else optimizer]
    optimizer_copies = copies if precision == "fp32" else 2.0 * (1.0 + copies)
    weights, gradients, state = (1.0 / replicas if zero_stage >= stage else 1.0 for stage in (3, 2, 1))
    parts = {"weights": weights, "gradients": gradients, "optimizer state": optimizer_copies * state}
    return {name: parameter_bytes * share for name, share in parts.items()}
