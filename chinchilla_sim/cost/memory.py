"""Bytes that one rank holds while training or serving its stage.

    weights P + gradients P + optimizer state (adam 2 P, sgd 0, with momentum P), fp32; buffers and frozen weights once
    + saved activations of every microbatch in flight + receive buffers + the payload of the gradient codec

How many microbatches are in flight follows from the schedule. Mixed precision keeps 2-byte weights and gradients
beside fp32 masters: 2 + 2 + 4 + state, the same 16 B per parameter with adam. ZeRO divides by the replicas the
optimizer state and masters (stage 1), the gradients too (2), and the weights too (3) (Rajbhandari et al. 2020).
What an exchange of gradients keeps from step to step in this project's runtime (runtime/exchanges), of n values of v bytes each:

    none                v n, the buffer that is summed                        int8       8 n, payload, and one of each rank
    fp16, bf16          v n, payload (which is the buffer where types agree)   one-bit    8 n and n of signs, payloads likewise
    top-k               4 n and n of marks, payloads likewise                  low-rank   4 n, payload, the rank's own second factor
    error feedback 4 n on top of the last three; of half-precision gradients the sum in their own type, v n, where n is counted in fp32

A loss over a vocabulary holds 12 B per logit at its peak in either precision (`loss_bytes`): logits 2 or 4, log-probabilities in
fp32 4, their gradient 4, and in half precision that gradient again 2.
"""

from __future__ import annotations

from chinchilla_sim.cost.codec import CODECS, Matrices, payload_bytes, second_factor_bytes

FP32_BYTES = 4.0
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


FP32_COPIES = {"int8": 2, "one-bit": 2, "top-k": 1, "low-rank": 1}
"""Of the gradients, beside a residual: the sum, and scratch where payloads are added up."""
MARKED = ("one-bit", "top-k")
"""Codecs that note a byte for each value: its sign, or that it is too small."""


def exchange_parts(codec: str, raw_bytes: float, value_bytes: float, replicas: int, matrices: Matrices | None) -> dict[str, float]:
    """Bytes that the exchange of gradients of `raw_bytes` keeps on each rank from step to step.

    >>> exchange_parts("none", 4000.0, 4.0, 2, None), exchange_parts("int8", 4096.0, 4.0, 2, None)
    ({'exchange buffers': 4000.0}, {'exchange buffers': 11312.0})
    """
    values, payload = raw_bytes / value_bytes, payload_bytes(codec, raw_bytes, value_bytes, matrices)
    if codec not in FP32_COPIES:
        own_type = codec == "none" or (codec == "bf16" and value_bytes < FP32_BYTES)
        return {"exchange buffers": raw_bytes + (0.0 if own_type else payload)}
    kept = values * (FP32_COPIES[codec] * FP32_BYTES + (codec in MARKED)) + (raw_bytes if value_bytes < FP32_BYTES else 0.0)
    kept += second_factor_bytes(matrices, values) + payload if CODECS[codec].summable else (1 + replicas) * payload
    return {"exchange buffers": kept} | ({"error feedback": values * FP32_BYTES} if CODECS[codec].feedback else {})


def loss_bytes(logit_bytes: float, value_bytes: float) -> tuple[float, float]:
    """Bytes beside the logits: kept from the loss's forward pass on, and while its backward pass runs.

    >>> loss_bytes(2.0, 2.0), loss_bytes(4.0, 4.0)
    ((4.0, 6.0), (4.0, 4.0))
    """
    fp32 = logit_bytes * FP32_BYTES / value_bytes
    return fp32, fp32 + (logit_bytes if value_bytes < FP32_BYTES else 0.0)
