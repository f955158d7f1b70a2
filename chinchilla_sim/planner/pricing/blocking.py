"""Seconds and bytes of the collectives that a pass waits for: those between its operators, and those that make what has arrived whole.

Each process of a tensor-parallel rank sends its share of a boundary's whole tensors to its counterpart; they are gathered on arrival,
within the pass that takes them (Narayanan et al. 2021's scatter and gather).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.collective import collective_s, measured_table, sent_bytes
from chinchilla_sim.graph.shard import Axis, Collective, ShardedGraph, collectives_of
from chinchilla_sim.graph.task import Task
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.buckets import bucket_ends, trained_sizes


def blocking_of(
    part: ShardedGraph, cluster: Cluster, plan: Plan, stage: int, tasks: Sequence[Task], again: frozenset[str], scale: float
) -> tuple[dict[Op, float], dict[Op, float]]:
    """Seconds that passes wait for a microbatch of `scale` times the graph's batch, and bytes that all devices of the rank send in them."""
    forward, backward = in_passes(part, plan, stage, tasks, again)
    there_s, back_s = (seconds_of(row, cluster, plan, stage, scale) for row in (forward, backward))
    there, back = (plan.group_width * sum(sent_of(one, plan, scale) for one in row) for row in (forward, backward))
    return {Op.F: there_s, Op.B: back_s, Op.I: back_s}, {Op.F: there, Op.B: back, Op.I: back}


def in_passes(
    part: ShardedGraph, plan: Plan, stage: int, tasks: Sequence[Task], again: frozenset[str]
) -> tuple[list[Collective], list[Collective]]:
    """All that a stage waits for, forward and backward: between operators, once more where a forward pass runs `again`, and on arrival."""
    forward, backward = inside(part, plan, stage, tasks)
    repeated, _ = inside(part, plan, stage, [task for task in tasks if task.name in again])
    arrived, returned = arriving(part, plan, stage)
    return [*forward, *arrived], [*backward, *repeated, *returned]


def sent_of(collective: Collective, plan: Plan, scale: float) -> float:
    """Bytes that one device sends, for `scale` times the graph's batch; none where it has no partner."""
    degree = degrees_of(plan)[collective.axis]
    return sent_bytes(collective.kind, collective.payload_bytes * scale, degree) if degree > 1 else 0.0


def degrees_of(plan: Plan) -> dict[Axis, int]:
    """How many devices work together along each axis."""
    return {"tensor": plan.tensor_parallel_degree, "context": plan.context_parallel_degree, "expert": plan.expert_parallel_degree}


def inside(part: ShardedGraph, plan: Plan, stage: int, tasks: Sequence[Task]) -> tuple[list[Collective], list[Collective]]:
    """Collectives between the operators of a stage, forward and backward."""
    rows = [collectives_of(part.collectives[task.name] for task in segment) for segment in _segments(part, plan, stage, tasks)]
    return [one for forward, _ in rows for one in forward], [one for _, backward in rows for one in backward]


def arriving(part: ShardedGraph, plan: Plan, stage: int) -> tuple[list[Collective], list[Collective]]:
    """All-gathers of what comes over a stage's boundaries, forward and backward."""
    if plan.tensor_parallel_degree == 1 or plan.sequence_parallel:
        return [], []
    return _joining(part, plan, stage - 1, False), _joining(part, plan, stage, True) if plan.training else []


def _joining(part: ShardedGraph, plan: Plan, boundary: int, gradients: bool) -> list[Collective]:
    """What each device gives of a boundary's whole tensors, or of their gradients."""
    if not (0 <= boundary < plan.stage_count - 1 and plan.crosses(boundary)):
        return []
    crossing = part.graph.live_after(part.graph.position[plan.stages[boundary][-1]])
    whole = [task for task in crossing if task.name not in part.divided and (task.needs_gradient or not gradients)]
    payload = sum(task.output_bytes for task in whole) / plan.tensor_parallel_degree
    return [Collective("tensor", "all_gather", payload)] if payload else []


def seconds_of(collectives: Sequence[Collective], cluster: Cluster, plan: Plan, stage: int, scale: float) -> float:
    """Seconds of collectives one behind the other, for `scale` times the graph's batch."""
    return sum(_collective_s(cluster, plan, stage, one, scale) for one in collectives)


def _segments(part: ShardedGraph, plan: Plan, stage: int, tasks: Sequence[Task]) -> list[Sequence[Task]]:
    """The parts of a stage that the runtime cuts where a bucket of its gradients is complete."""
    if not plan.training or plan.gradient_buckets == 1 or plan.exchange_degree_of(stage) == 1:
        return [tasks]
    names = [task.name for task in tasks]
    whole = [part.graph.tasks[part.graph.position[name]] for name in plan.stages[stage]]
    ends = bucket_ends(trained_sizes(part.graph, whole), plan.gradient_buckets)
    return [[task for task in whole[start:end] if task.name in names] for start, end in pairwise([0, *ends])]


def _collective_s(cluster: Cluster, plan: Plan, stage: int, collective: Collective, scale: float) -> float:
    first = plan.slots_of(plan.placement[stage][0])
    slots: Sequence[int] = {
        "tensor": first[: plan.tensor_parallel_degree],
        "context": first[:: plan.tensor_parallel_degree],
        "expert": [plan.slots_of(rank)[0] for rank in plan.placement[stage][: plan.expert_parallel_degree]],
    }[collective.axis]
    if len(slots) < 2:
        return 0.0
    table = measured_table(cluster, collective.kind, slots)
    return collective_s(collective.kind, collective.payload_bytes * scale, len(slots), cluster.slowest_pair(slots), cluster.backend, table)
