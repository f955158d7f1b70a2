"""What contradicts itself in a plan: for plans written or changed by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chinchilla_sim.cost.codec import GRADIENTS_ONLY
from chinchilla_sim.planner.action import PASSES, Action, Op, parse_action
from chinchilla_sim.planner.plan import CUSTOM, Plan
from chinchilla_sim.planner.schedules.registry import SCHEDULES

Found = Iterator[tuple[str, str]]


def mistakes_of(plan: Plan) -> list[tuple[str, str]]:
    """Every mistake as (field, what)."""
    found = [*_shape_mistakes(plan), *_width_mistakes(plan)]
    if not found:
        found = [*_batch_mistakes(plan), *(_stream_mistakes(plan) if plan.free_replicas else _layout_mistakes(plan))]
        found += _asynchrony_mistakes(plan)
    return found or list(_order_mistakes(plan))


def _shape_mistakes(plan: Plan) -> Found:
    stages = len(plan.stages)
    ranks = sorted({rank for row in plan.placement for rank in row})
    if not plan.stages or not all(plan.stages):
        yield "stages", "every stage needs at least one task"
    if not plan.placement or len(plan.placement) != stages or not all(plan.placement):
        yield "placement", f"needs one row per stage ({stages}), each with a rank per replica"
    if ranks != list(range(len(ranks))) or len(ranks) * plan.group_width != len(plan.slots):
        yield "placement", f"must use every rank from 0 to {len(plan.slots) // plan.group_width - 1} once"
    if len(set(plan.slots)) != len(plan.slots):
        yield "slots", "two ranks share a device slot"
    if len(plan.gradient_codecs) != stages:
        yield "gradient_codecs", f"needs {stages} entries, one per stage"
    if plan.recompute and len(plan.recompute) != stages:
        yield "recompute", f"needs {stages} entries, one per stage, or none at all"
    if len(plan.activation_codecs) != max(0, stages - 1):
        yield "activation_codecs", f"needs {max(0, stages - 1)} entries, one per boundary"
    groups = plan.shared_stages
    if list(groups) != sorted(set(groups)) or any(len(group) < 2 or list(group) != sorted({*group} & {*range(stages)}) for group in groups):
        yield "shared_stages", f"needs sets of two or more of the stages 0 to {stages - 1}, stages and sets in ascending order"
    whole = sorted({codec for codec in plan.gradient_codecs if codec in GRADIENTS_ONLY})
    if whole and plan.zero_stage == 3:
        yield "gradient_codecs", f"{' and '.join(whole)} keep a residual of whole gradients, which ZeRO 3 never has"


def _width_mistakes(plan: Plan) -> Found:
    if len(plan.slots) % plan.group_width:
        yield "slots", f"{len(plan.slots)} slots do not divide into groups of {plan.group_width} (tensor x context parallel)"
    if plan.placement and plan.data_parallel_degree % plan.expert_parallel_degree:
        yield "expert_parallel_degree", f"must divide the data parallel degree, {plan.data_parallel_degree}"
    if plan.sequence_parallel and plan.tensor_parallel_degree == 1:
        yield "sequence_parallel", "needs a tensor_parallel_degree above 1"


def _batch_mistakes(plan: Plan) -> Found:
    counts = plan.replica_microbatch_counts
    if counts and len(counts) != plan.data_parallel_degree:
        yield "replica_microbatch_counts", f"needs {plan.data_parallel_degree} entries, one per replica"
    elif plan.microbatch_size * sum(plan.microbatches_of(d) for d in range(plan.data_parallel_degree)) != plan.global_batch_size:
        product = sum(plan.microbatches_of(d) for d in range(plan.data_parallel_degree))
        field = "replica_microbatch_counts" if counts else "microbatch_count"
        yield field, f"{plan.global_batch_size} samples do not divide into {product} microbatches"
    if counts and len(set(counts)) > 1 and (plan.zero_stage == 3 or plan.expert_parallel_degree > 1):
        meeting = "ZeRO 3" if plan.zero_stage == 3 else "expert parallelism"
        yield "replica_microbatch_counts", f"replicas meet in every pass with {meeting}: give them equal counts"


def _asynchrony_mistakes(plan: Plan) -> Found:
    """What exchanges that are rarer or later than the steps cannot be combined with."""
    if not plan.asynchronous:
        return
    field = "local_steps" if plan.local_steps > 1 else "gradient_delay"
    plain = f"write {field} = {1 if plan.local_steps > 1 else 0}"
    if plan.local_steps > 1 and plan.gradient_delay:
        yield "gradient_delay", "replicas with local steps exchange no gradients that could be late: use one of both"
    if not plan.training:
        yield field, f"inference exchanges no gradients: {plain}"
    elif plan.data_parallel_degree == 1:
        yield field, f"needs two or more replicas, each a whole pipeline: {plain}"
    if plan.zero_stage:
        yield "zero_stage", f"ZeRO divides what replicas hold alike after every step: {plain}, or zero_stage = 0"
    if plan.context_parallel_degree * plan.expert_parallel_degree > 1:
        yield field, f"devices that share samples or experts sum gradients in every step: {plain}"


def _layout_mistakes(plan: Plan) -> Found:
    """Replicas must be pipelines of separate ranks, laid out as the schedule asks for."""
    pipelines = [plan.pipeline(replica) for replica in range(plan.data_parallel_degree)]
    ranks = plan.pipeline_parallel_degree
    if sum(map(len, pipelines)) != plan.rank_count or any(len(line) != ranks for line in pipelines):
        yield "placement", f"each replica needs {ranks} ranks of its own"
        return
    counts = plan.replica_microbatch_counts
    if plan.schedule == CUSTOM or (counts and len(counts) != plan.data_parallel_degree):
        return
    if plan.stage_count % ranks:
        yield "placement", f"{plan.stage_count} stages do not divide into {ranks} ranks"
        return
    schedule = SCHEDULES[plan.schedule]
    expected = [schedule.rank_of_stage(stage, ranks) for stage in range(plan.stage_count)]
    if any([line.index(row[replica]) for row in plan.placement] != expected for replica, line in enumerate(pipelines)):
        yield "placement", f"{plan.schedule} puts stages on the ranks of a replica in the order {expected}"
    for count in sorted({plan.microbatches_of(replica) for replica in range(plan.data_parallel_degree)}):
        refusal = schedule.refuses(ranks, plan.stages_per_rank, count)
        if refusal:
            yield "schedule", refusal


STREAMED = ("1f1b", "gpipe", "forward")
"""Schedules of stages with replica counts of their own."""


def _stream_mistakes(plan: Plan) -> Found:
    """What stages with replica counts of their own cannot be combined with."""
    counts = [len(row) for row in plan.placement]
    free = f"stages with replica counts of their own ({'/'.join(map(str, counts))})"
    if sum(counts) != plan.rank_count:
        yield "placement", f"{free} need ranks of their own: give each rank one stage"
    if plan.schedule not in STREAMED:
        yield "schedule", f"{free} play {', '.join(STREAMED)}, not {plan.schedule}: choose one of these, or equal replica counts"
    if plan.order:
        yield "order", f"{free} draw their own rows: leave it out"
    if plan.replica_microbatch_counts:
        yield "replica_microbatch_counts", f"{free} share one stream of microbatches: leave it out"
    if plan.zero_stage == 3:
        yield "zero_stage", f"{free} do not gather weights in every pass, as their ranks have unlike numbers of them: use 0, 1 or 2"
    if plan.microbatch_count < max(counts):
        yield (
            "microbatch_count",
            f"{plan.microbatch_count} microbatches leave some of {max(counts)} replicas without work: use {max(counts)} or more",
        )


def _order_mistakes(plan: Plan) -> Found:
    """Rows written out must hold every pass of every stage once, each behind the pass it needs."""
    needed = plan.schedule == CUSTOM or SCHEDULES[plan.schedule].row is None
    if not needed:
        if plan.order:
            yield "order", f"is for custom schedules; {plan.schedule} draws its own rows"
        return
    if plan.replica_microbatch_counts:
        yield "order", "rows written out hold for replicas of equal microbatch counts only"
        return
    ranks = plan.pipeline(0)
    if len(plan.order) != len(ranks):
        yield "order", f"needs {len(ranks)} rows, one per rank of a replica"
        return
    for index, (rank, text) in enumerate(zip(ranks, plan.order, strict=True)):
        try:
            row = [parse_action(word) for word in text.split()]
        except ValueError as error:
            yield f"order.{index}", str(error)
            continue
        yield from _row_mistakes(index, row, plan.position[rank][0], plan.microbatch_count)


def _row_mistakes(index: int, row: list[Action], stages: tuple[int, ...], microbatches: int) -> Found:
    counts = Counter(row)
    twice = [str(action) for action, count in counts.items() if count > 1]
    foreign = [str(a) for a in counts if a.op not in PASSES or a.stage not in stages or a.microbatch not in range(microbatches)]
    if twice or foreign:
        words = [f"{' '.join(twice[:5])} stand twice"] * bool(twice) + [f"{' '.join(foreign[:5])} do not belong here"] * bool(foreign)
        yield f"order.{index}", "; ".join(words)
        return
    passes: dict[tuple[int, int | None], list[Op]] = {}
    for action in row:
        passes.setdefault((action.stage, action.microbatch), []).append(action.op)
    for stage in stages:
        for microbatch in range(microbatches):
            present = passes.get((stage, microbatch), [])
            if present not in ([Op.F, Op.B], [Op.F, Op.I, Op.W]):
                written = " ".join(present) or "nothing"
                yield f"order.{index}", f"microbatch {microbatch} of stage {stage} needs F then B, or F, I, W in this order, not {written}"
                return
