"""Step times of thousands of plans at once, in closed form: a lower bound that proves, and an estimate that ranks.

Stage s of plan n takes F, B per microbatch (codecs included; I of it is the input gradient) and E at the end (gradient
exchange and update); x, x' are the idle transfers forward and back over the boundary behind it, y, y' the part of them
that keeps the link busy. With m microbatches:

    head_s = sum over k < s of (F_k + x_k)            tail_s = sum over k < s of (x'_k + B_k)
    bound  = max over s of  head_s + m (F_s + B_s) + max(E_s, tail_s + E_0)          (bound.py; B without W where split)

    period = max over s of  F_s + B_s,  y_s,  y'_s,  and in 1F1B  round trip from s / (stages - s)
    gpipe    sum (F + x + x' + B)  + (m-1) (max(F, y) + max(B, y'))  + E
    1f1b     sum (F + x + x' + B)  + (m-1) period                    + E
    zb-h1    as 1f1b, with every stage but the slowest giving back its W to the ramp (Qi et al. 2023)

With H local steps the exchange in E is a H-th of what it takes. Where gradients are one step late it is not in E but beside all the
rest: no step takes less than max over s of  R_s + E_s, with R the exchange.

The round trip from s is sum over k >= s of (F_k + B_k + x_k + x'_k): only `stages - s` microbatches are under way there.
Contention, rendezvous and imbalance at the ramps are left out: tests state how far the estimate is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.space.bound import codecs_around_s, end_of_step_s, forward_pass_s, late_exchange_s, whole_s

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ESTIMATED = ("gpipe", "1f1b", "zb-h1", "forward")
"""Schedules with a closed form, by their code in a batch."""


@dataclass(frozen=True)
class PlanBatch:
    """Plans as rows, stages as columns; columns beyond a plan's stages hold zeros. Seconds per microbatch, `end_s` per step.

    `late_s` are those of an exchange beside the passes, and of the end behind it.
    `link_s[0]` forward and `link_s[1]` back are seconds until a message over the boundary behind a stage has arrived,
    `busy_s` how long it keeps the link. `schedules` are positions in ESTIMATED.
    """

    stage_counts: Integers
    microbatch_counts: Integers
    schedules: Integers
    forward_s: Floats
    backward_s: Floats
    weight_s: Floats
    end_s: Floats
    late_s: Floats
    link_s: tuple[Floats, Floats]
    busy_s: tuple[Floats, Floats]


def lower_bounds_s(batch: PlanBatch) -> Floats:
    """Seconds below which no step can fall, by plan."""
    split = (batch.schedules == ESTIMATED.index("zb-h1"))[:, None]
    returned_s = batch.backward_s - np.where(split, batch.weight_s, 0.0)
    head_s = _sums_before(batch.forward_s + batch.link_s[0])
    tail_s = _sums_before(returned_s + batch.link_s[1])
    counts = batch.microbatch_counts[:, None]
    own_s = head_s + counts * (batch.forward_s + batch.backward_s) + batch.end_s
    back_s = head_s + counts * (batch.forward_s + returned_s) + tail_s + batch.end_s[:, :1]
    exists = np.arange(batch.forward_s.shape[1])[None, :] < batch.stage_counts[:, None]
    forward_only = (batch.schedules == ESTIMATED.index("forward"))[:, None]
    both_s = np.where(forward_only, own_s, np.maximum(own_s, back_s))
    bounds: Floats = np.where(exists, np.maximum(both_s, batch.late_s), 0.0).max(axis=1)
    return bounds


def estimates_s(batch: PlanBatch) -> Floats:
    """What a step takes about, by plan; never below its lower bound."""
    forward_s, backward_s = batch.forward_s, batch.backward_s
    (out_s, back_s), (out_busy_s, back_busy_s) = batch.link_s, batch.busy_s
    later = np.maximum(batch.microbatch_counts - 1, 0)
    whole_s = forward_s + backward_s
    once_s = (whole_s + out_s + back_s).sum(axis=1)
    end_s = batch.end_s.max(axis=1)
    links_s = np.maximum(out_busy_s, back_busy_s).max(axis=1)
    gpipe_s = once_s + later * (np.maximum(forward_s, out_busy_s).max(axis=1) + np.maximum(backward_s, back_busy_s).max(axis=1)) + end_s
    round_trip_s = np.cumsum((whole_s + out_s + back_s)[:, ::-1], axis=1)[:, ::-1]
    under_way = np.maximum(batch.stage_counts[:, None] - np.arange(forward_s.shape[1])[None, :], 1)
    period_s = np.maximum(whole_s.max(axis=1), links_s)
    waiting_s = np.where(batch.microbatch_counts[:, None] > under_way, round_trip_s / under_way, 0.0).max(axis=1)
    one_f_one_b_s = once_s + later * np.maximum(period_s, waiting_s) + end_s
    ramp_s = batch.weight_s.sum(axis=1) - batch.weight_s.max(axis=1)
    zero_bubble_s = np.maximum(one_f_one_b_s - ramp_s, batch.microbatch_counts * period_s + end_s)
    forward_only_s = once_s + later * np.maximum(forward_s.max(axis=1), links_s)
    chosen = np.choose(batch.schedules, [gpipe_s, one_f_one_b_s, zero_bubble_s, forward_only_s])
    estimates: Floats = np.maximum(chosen, lower_bounds_s(batch))
    return estimates


def _sums_before(values: Floats) -> Floats:
    """Sum of the columns to the left of each."""
    sums: Floats = np.cumsum(values, axis=1) - values
    return sums


def batch_of(plans: Sequence[tuple[Plan, Pricing]], cluster: Cluster) -> PlanBatch:
    """Plans of one stage per rank and schedules in ESTIMATED as a batch; each replica must cost the same (the first counts)."""
    widest = max(plan.stage_count for plan, _ in plans)
    columns = {name: np.zeros((len(plans), widest)) for name in ("F", "B", "W", "E", "R", "out", "back", "out_busy", "back_busy")}
    for row, (plan, pricing) in enumerate(plans):
        for stage in range(plan.stage_count):
            for name, seconds in _stage_seconds(plan, pricing, cluster, stage).items():
                columns[name][row, stage] = seconds
    return PlanBatch(
        stage_counts=np.array([plan.stage_count for plan, _ in plans]),
        microbatch_counts=np.array([plan.microbatches_of(0) for plan, _ in plans]),
        schedules=np.array([ESTIMATED.index(plan.schedule) for plan, _ in plans]),
        forward_s=columns["F"],
        backward_s=columns["B"],
        weight_s=columns["W"],
        end_s=columns["E"],
        late_s=columns["R"],
        link_s=(columns["out"], columns["back"]),
        busy_s=(columns["out_busy"], columns["back_busy"]),
    )


def _stage_seconds(plan: Plan, pricing: Pricing, cluster: Cluster, stage: int) -> dict[str, float]:
    price = pricing.stages[stage][0]
    seconds = {"F": forward_pass_s(plan, price, stage, 0)}
    if plan.training:
        later = (plan.microbatches_of(0) - 1) / plan.microbatches_of(0)
        codecs_s = codecs_around_s(plan, price, stage, 0, Op.ENCODE_B, Op.DECODE_B)
        seconds["B"] = whole_s(price, Op.B) + codecs_s + later * price.accumulation_s
        seconds["W"] = price.action_s.get(Op.W, 0.0)
        seconds["E"] = end_of_step_s(plan, pricing, stage, 0)
        seconds["R"] = seconds["E"] + late_exchange_s(plan, pricing, stage) if plan.gradient_delay else 0.0
    if stage < plan.stage_count - 1:
        here, there = (plan.slots_of(plan.rank_of(index, 0))[0] for index in (stage, stage + 1))
        out, back = cluster.idle_link(here, there), cluster.idle_link(there, here)
        header = cluster.backend.header_factor / plan.group_width
        seconds["out"] = out.idle_transfer_s(pricing.boundary_bytes[stage] * header)
        seconds["out_busy"] = seconds["out"] - out.latency_s
        if plan.training:
            seconds["back"] = back.idle_transfer_s(pricing.boundary_gradient_bytes[stage] * header)
            seconds["back_busy"] = seconds["back"] - back.latency_s
    return seconds
