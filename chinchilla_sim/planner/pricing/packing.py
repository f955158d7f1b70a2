"""Seconds of packing and unpacking what leaves a stage: messages to its neighbours, and gradients for its replicas."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.codec import CODECS, Matrices, between_rounds_s, decode_s, encode_s, packing_s
from chinchilla_sim.cost.compute import agreement_s, difference_s
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan


def boundary_codec_s(plan: Plan, stage: int, raw: Sequence[float], raw_gradients: Sequence[float], device: Device) -> dict[Op, float]:
    """Seconds of the codecs at a stage's two boundaries; `raw` and `raw_gradients` are bytes that a device sends over each boundary."""
    seconds = {}
    if stage > 0:
        codec = plan.activation_codecs[stage - 1]
        seconds[Op.DECODE_F] = decode_s(codec, raw[stage - 1], device)
        seconds[Op.ENCODE_B] = encode_s(codec, raw_gradients[stage - 1], device)
    if stage < plan.stage_count - 1:
        codec = plan.activation_codecs[stage]
        seconds[Op.ENCODE_F] = encode_s(codec, raw[stage], device)
        seconds[Op.DECODE_B] = decode_s(codec, raw_gradients[stage], device)
    return seconds


def gradient_codec_s(plan: Plan, stage: int, raw_bytes: float, device: Device, matrices: Matrices) -> dict[Op, float]:
    """Seconds to pack the gradients of a stage into its bucket and to unpack the result."""
    if plan.exchange_degree_of(stage) == 1 or plan.zero_stage == 3:
        return {}
    codec = plan.gradient_codecs[stage]
    copies = 1 if CODECS[codec].summable else plan.exchange_degree_of(stage)
    return {
        Op.ENCODE_GRAD: packing_s(codec, raw_bytes, device) + encode_s(codec, raw_bytes, device, matrices),
        Op.DECODE_GRAD: decode_s(codec, raw_bytes, device, copies, matrices),
    }


def local_steps_s(plan: Plan, fp32_bytes: float, momentum: float, device: Device) -> dict[Op, float]:
    """Seconds that local steps add: the difference of weights before it is packed, and the shared weights that follow the mean."""
    if plan.local_steps == 1:
        return {}
    return {Op.ENCODE_GRAD: difference_s(fp32_bytes, device), Op.AGREE: agreement_s(fp32_bytes, momentum, device)}


def between_rounds_of(plan: Plan, stage: int, raw_bytes: float, device: Device, matrices: Matrices) -> float:
    """Seconds of unpacking the gradients of a stage that their second collective waits for."""
    exchanged = plan.exchange_degree_of(stage) > 1 and plan.zero_stage < 3
    return between_rounds_s(plan.gradient_codecs[stage], raw_bytes, device, matrices) if exchanged else 0.0


MESSAGES_OF_A_PAIR = {Op.F: 2, Op.B: 4}
"""Sent and awaited by a rank of two in a pass under ZeRO 3: one gather, and behind a backward pass a scatter."""


def sharding_s(plan: Plan, stage: int, weight_share: float, measured_s: Sequence[float], device: Device) -> dict[Op, float]:
    """Seconds that FSDP2 takes itself in each pass of a stage with that share of the model's weights, as measured on two ranks.

    Small weights are copied one by one, so each counts alike. The messages in what was measured are priced as such.
    """
    if plan.zero_stage < 3 or plan.exchange_degree_of(stage) == 1:
        return {}
    return {
        op: max(0.0, weight_share * seconds / device.core_share - MESSAGES_OF_A_PAIR[op] * device.host_message_s)
        for op, seconds in zip((Op.F, Op.B), measured_s, strict=False)
    }
