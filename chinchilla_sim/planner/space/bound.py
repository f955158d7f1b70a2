"""A lower bound on the step of one plan: what no order of events, and no idle network, can beat.

Stage s cannot start before the first microbatch has passed the stages before it; it then does all its own work
on one stream; after its last backward pass that microbatch still has to return to stage 0. With F, B per
microbatch (codecs included), x the idle transfer over a boundary, m microbatches, and R, O for the gradient
exchange and optimizer of a stage:

    head_s = sum over k < s of (F_k + x_k)            tail_s = sum over k < s of (x'_k + B_k)
    step >= max over s of  head_s + m (F_s + B_s) + max(R_s + O_s, tail_s + R_0 + O_0)

Where stages have replica counts of their own, rank d of the r_s of stage s first gets microbatch d, and runs every r_s-th. With t(j, s)
the earliest start of microbatch j there, and L the last microbatch of the rank, which is its n-th:

    t(j, s) = max(t(j, s-1) + F_(s-1) + x_(s-1), t(j - r_s, s) + F_s)
    step >= max over ranks of  t(d, s) + n (F_s + B_s) + max(R_s + O_s, tail_s(L) + R_0 + O_0)

R holds what a stage exchanges with others that share its weights, too. Where the backward pass is split into I and W only I lies on the
way back, and W may follow later. The replicas' part of R counts as 0 where
buckets leave during the backward pass. A rank with several stages is also bounded by the work of all of them.

With H local steps every H-th step exchanges, which counts as R / H in each: the mean of largest sums is at least the largest sum of
means. With gradients one step late R runs beside the passes, and only what unpacks it comes behind:  step >= max over s of  R_s + O_s.

Every term is a lower bound of what the simulator does (contention, rendezvous and waiting only add), so a plan
whose bound is above another plan's simulated step cannot win and need not be simulated.
"""

from __future__ import annotations

from math import lcm

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Pricing, StagePrice


def step_lower_bound_s(plan: Plan, pricing: Pricing, cluster: Cluster) -> float:
    """Seconds below which the step of this plan cannot fall; the slowest replica (or rank, with a stream) counts."""
    if plan.free_replicas:
        return _stream_bound_s(plan, pricing, cluster)
    return max(_replica_bound_s(plan, pricing, cluster, replica) for replica in range(plan.data_parallel_degree))


def _replica_bound_s(plan: Plan, pricing: Pricing, cluster: Cluster, replica: int) -> float:
    head_s = tail_s = bound_s = 0.0
    count = plan.microbatches_of(replica)
    end_s = [end_of_step_s(plan, pricing, stage, replica) for stage in range(plan.stage_count)]
    busy_s = dict.fromkeys(plan.pipeline(replica), 0.0)
    passes: list[tuple[float, float]] = []
    for stage in range(plan.stage_count):
        price, rank = pricing.stages[stage][replica], plan.rank_of(stage, replica)
        passes.append((forward_pass_s(plan, price, stage, replica), _backward_s(plan, price, stage, replica)))
        if stage:
            head_s += passes[-2][0]
            tail_s += passes[-2][1]
            if plan.crosses(stage - 1, replica):
                out_s, back_s = _transfers_s(plan, pricing, cluster, stage - 1, replica)
                head_s += out_s
                tail_s += back_s
        accumulation_s = (count - 1) * price.accumulation_s if plan.training else 0.0
        later_s = price.action_s.get(Op.W, 0.0) if plan.splits_backward else 0.0
        own_s = count * (sum(passes[-1]) + later_s) + accumulation_s
        returned_s = count * sum(passes[-1]) + (0.0 if plan.splits_backward else accumulation_s)
        bound_s = max(bound_s, head_s + own_s)
        if plan.training:
            bound_s = max(bound_s, head_s + own_s + end_s[stage], head_s + returned_s + tail_s + end_s[0])
            bound_s = max(bound_s, late_exchange_s(plan, pricing, stage) + end_s[stage])
        busy_s[rank] += own_s
    return max(bound_s, *busy_s.values())


def _transfers_s(plan: Plan, pricing: Pricing, cluster: Cluster, boundary: int, lane: int) -> tuple[float, float]:
    """Idle transfers over a boundary that changes ranks, forward and back."""
    here, there = (plan.slots_of(plan.rank_of(stage, lane))[0] for stage in (boundary, boundary + 1))
    out_s = cluster.idle_link(here, there).idle_transfer_s(pricing.boundary_bytes[boundary] / plan.group_width)
    if not plan.training:
        return out_s, 0.0
    return out_s, cluster.idle_link(there, here).idle_transfer_s(pricing.boundary_gradient_bytes[boundary] / plan.group_width)


def _stream_bound_s(plan: Plan, pricing: Pricing, cluster: Cluster) -> float:
    """The bound of stages with replica counts of their own."""
    counts = [len(row) for row in plan.placement]
    forward_s, backward_s = (
        [[one_pass_s(plan, price, stage, 0) for price in row] for stage, row in enumerate(pricing.stages)]
        for one_pass_s in (forward_pass_s, _backward_s)
    )
    end_s = [[end_of_step_s(plan, pricing, stage, place) for place in range(len(row))] for stage, row in enumerate(pricing.stages)]
    # One way per microbatch: the arrival of the first ones, and the way back of the last ones.
    ready_s = [0.0] * max(counts)
    returned_s = [0.0] * plan.microbatch_count
    bound_s = 0.0
    for stage, replicas in enumerate(counts):
        if stage:
            below = counts[stage - 1]
            ways = lcm(below, replicas)
            moved = [_transfers_s(plan, pricing, cluster, stage - 1, lane) for lane in range(ways)]
            ready_s = [ready + forward_s[stage - 1][j % below] + moved[j % ways][0] for j, ready in enumerate(ready_s)]
            returned_s = [back + backward_s[stage - 1][j % below] + moved[j % ways][1] for j, back in enumerate(returned_s)]
        for j in range(replicas, len(ready_s)):
            ready_s[j] = max(ready_s[j], ready_s[j - replicas] + forward_s[stage][j % replicas])
        for place, price in enumerate(pricing.stages[stage]):
            count = plan.share_of(stage, place)
            own_s = ready_s[place] + count * (forward_s[stage][place] + backward_s[stage][place])
            if plan.training:
                last = place + (count - 1) * replicas
                own_s += (count - 1) * price.accumulation_s
                own_s += max(end_s[stage][place], returned_s[last] + end_s[0][last % counts[0]])
            bound_s = max(bound_s, own_s)
    return bound_s


def forward_pass_s(plan: Plan, price: StagePrice, stage: int, replica: int) -> float:
    """Seconds of one forward pass, with the collectives in it and the codecs around it."""
    return whole_s(price, Op.F) + codecs_around_s(plan, price, stage, replica, Op.DECODE_F, Op.ENCODE_F)


def _backward_s(plan: Plan, price: StagePrice, stage: int, replica: int) -> float:
    if not plan.training:
        return 0.0
    return whole_s(price, Op.I if plan.splits_backward else Op.B) + codecs_around_s(plan, price, stage, replica, Op.ENCODE_B, Op.DECODE_B)


def codecs_around_s(plan: Plan, price: StagePrice, stage: int, replica: int, below: Op, above: Op) -> float:
    """Seconds of the codecs at a stage's two boundaries, where they change ranks."""
    seconds = 0.0
    if stage and plan.crosses(stage - 1, replica):
        seconds += price.action_s.get(below, 0.0)
    if stage < plan.stage_count - 1 and plan.crosses(stage, replica):
        seconds += price.action_s.get(above, 0.0)
    return seconds


def whole_s(price: StagePrice, *ops: Op) -> float:
    """Seconds of actions with the collectives inside them."""
    return sum(price.action_s.get(op, 0.0) + price.blocking_s.get(op, 0.0) for op in ops)


def end_of_step_s(plan: Plan, pricing: Pricing, stage: int, replica: int) -> float:
    """Seconds of the exchange and the optimizer of a stage in a mean step, with nothing else on the links."""
    price, shared_s = pricing.stages[stage][replica], pricing.shared_s(plan, stage, replica)
    shared_s += pricing.norm_of(replica).idle_s + whole_s(price, Op.NORM_GRAD)
    update_s = shared_s + whole_s(price, Op.OPTIM)
    if plan.buckets_leave_early or plan.zero_stage == 3:
        return update_s
    packed_s = whole_s(price, Op.ENCODE_GRAD, *([Op.AGREE] if plan.local_steps > 1 else []))
    packed_s += price.action_s.get(Op.DECODE_GRAD, 0.0) if plan.gradient_codecs[stage] != "none" else 0.0
    if plan.gradient_delay:
        return update_s + packed_s
    return update_s + (_idle_exchange_s(plan, pricing, stage) + packed_s) / plan.local_steps


def late_exchange_s(plan: Plan, pricing: Pricing, stage: int) -> float:
    """Seconds of an exchange that runs while the passes do; 0 where the passes are over by then."""
    return _idle_exchange_s(plan, pricing, stage) if plan.gradient_delay else 0.0


def _idle_exchange_s(plan: Plan, pricing: Pricing, stage: int) -> float:
    """The exchange of a stage's gradients, at least: a measured table may have any shape, so nothing is known of its buckets."""
    exchange = pricing.gradients[stage]
    return 0.0 if plan.gradient_buckets > 1 and exchange.table else exchange.idle_s
