"""A lower bound on the step of one plan: what no order of events, and no idle network, can beat.

Stage s cannot start before the first microbatch has passed the stages before it; it then does all its own work
on one stream; after its last backward pass that microbatch still has to return to stage 0. With F, B per
microbatch (codecs included), x the idle transfer over a boundary, m microbatches, and R, O for the gradient
exchange and optimizer of a stage:

    head_s = sum over k < s of (F_k + x_k)            tail_s = sum over k < s of (x'_k + B_k)
    step >= max over s of  head_s + m (F_s + B_s) + max(R_s + O_s, tail_s + R_0 + O_0)

Every term is a lower bound of what the simulator does (contention, rendezvous and waiting only add), so a plan
whose bound is above another plan's simulated step cannot win and need not be simulated.
"""

from __future__ import annotations

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing import Pricing, StagePrice
from chinchilla_sim.planner.program import Op


def step_lower_bound_s(plan: Plan, pricing: Pricing, cluster: Cluster) -> float:
    """Seconds below which the step of this plan cannot fall; the slowest replica counts."""
    return max(_replica_bound_s(plan, pricing, cluster, replica) for replica in range(plan.data_parallel_degree))


def _replica_bound_s(plan: Plan, pricing: Pricing, cluster: Cluster, replica: int) -> float:
    ranks = [plan.rank_of(stage, replica) for stage in range(plan.pipeline_parallel_degree)]
    forward, backward = [], []
    head_s = tail_s = bound_s = 0.0
    end_s = [_end_s(pricing, stage, pricing.ranks[rank]) for stage, rank in enumerate(ranks)]
    for stage, rank in enumerate(ranks):
        price = pricing.ranks[rank]
        forward.append(_passes_s(price, Op.DECODE_F, Op.F, Op.ENCODE_F))
        backward.append(_passes_s(price, Op.DECODE_B, Op.B, Op.ENCODE_B) if plan.training else 0.0)
        if stage:
            before, here = plan.slots[ranks[stage - 1]], plan.slots[rank]
            head_s += forward[-2] + cluster.idle_link(before, here).idle_transfer_s(pricing.boundary_bytes[stage - 1])
            if plan.training:
                tail_s += backward[-2] + cluster.idle_link(here, before).idle_transfer_s(pricing.boundary_gradient_bytes[stage - 1])
        later_s = max(0.0, price.later_backward_s - price.action_s[Op.B]) if plan.training else 0.0
        own_s = plan.microbatch_count * (forward[-1] + backward[-1]) + (plan.microbatch_count - 1) * later_s
        after_s = max(end_s[stage], tail_s + end_s[0]) if plan.training else 0.0
        bound_s = max(bound_s, head_s + own_s + after_s)
    return bound_s


def _passes_s(price: StagePrice, *ops: Op) -> float:
    return sum(price.action_s.get(op, 0.0) for op in ops)


def _end_s(pricing: Pricing, stage: int, price: StagePrice) -> float:
    return pricing.collective_s[stage] + _passes_s(price, Op.ENCODE_GRAD, Op.DECODE_GRAD, Op.OPTIM)
