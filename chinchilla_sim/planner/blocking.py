"""Seconds of the collectives that a pass waits for: those between its operators, and those that make what has arrived whole.

Each process of a tensor-parallel rank sends its share of a boundary's whole tensors to its counterpart; they are gathered on arrival,
within the pass that takes them (Narayanan et al. 2021's scatter and gather).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.collective import collective_s, measured_table
from chinchilla_sim.graph.shard import Collective, ShardedGraph, collectives_of
from chinchilla_sim.graph.task import Task
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.buckets import bucket_ends, trained_sizes
from chinchilla_sim.planner.plan import Plan


def inside_s(part: ShardedGraph, cluster: Cluster, plan: Plan, stage: int, tasks: Sequence[Task]) -> dict[Op, float]:
    """Seconds of collectives inside a forward and a backward pass (of which I has all)."""
    forward = backward = 0.0
    for segment in _segments(part, plan, stage, tasks):
        there, back = collectives_of(part.collectives[task.name] for task in segment)
        forward += sum(_collective_s(part, cluster, plan, stage, one) for one in there)
        backward += sum(_collective_s(part, cluster, plan, stage, one) for one in back)
    return {Op.F: forward, Op.B: backward, Op.I: backward}


def arrival_s(part: ShardedGraph, cluster: Cluster, plan: Plan, stage: int) -> dict[Op, float]:
    """Seconds in which the devices of a rank make whole what came over a stage's boundaries."""
    if plan.tensor_parallel_degree == 1 or plan.sequence_parallel:
        return {}
    forward = _joining_s(part, cluster, plan, stage, stage - 1, gradients=False)
    backward = _joining_s(part, cluster, plan, stage, stage, gradients=True) if plan.training else 0.0
    return {Op.F: forward, Op.B: backward, Op.I: backward}


def arrival_bytes(part: ShardedGraph, plan: Plan, boundary: int, gradients: bool) -> float:
    """What each device gives to the all-gather of a boundary's whole tensors, for the graph's batch."""
    crossing = part.graph.live_after(part.graph.position[plan.stages[boundary][-1]])
    whole = [task for task in crossing if task.name not in part.divided and (task.needs_gradient or not gradients)]
    return sum(task.output_bytes for task in whole) / plan.tensor_parallel_degree


def _joining_s(part: ShardedGraph, cluster: Cluster, plan: Plan, stage: int, boundary: int, gradients: bool) -> float:
    if not (0 <= boundary < plan.stage_count - 1 and plan.crosses(boundary)):
        return 0.0
    payload = arrival_bytes(part, plan, boundary, gradients)
    return _collective_s(part, cluster, plan, stage, Collective("tensor", "all_gather", payload)) if payload else 0.0


def _segments(part: ShardedGraph, plan: Plan, stage: int, tasks: Sequence[Task]) -> list[Sequence[Task]]:
    """The parts of a stage that the runtime cuts where a bucket of its gradients is complete."""
    if not plan.training or plan.gradient_buckets == 1 or plan.exchange_degree_of(stage) == 1:
        return [tasks]
    ends = bucket_ends(trained_sizes(part.graph, tasks), plan.gradient_buckets)
    return [tasks[start:end] for start, end in pairwise([0, *ends])]


def _collective_s(part: ShardedGraph, cluster: Cluster, plan: Plan, stage: int, collective: Collective) -> float:
    first = plan.slots_of(plan.placement[stage][0])
    slots: Sequence[int] = {
        "tensor": first[: plan.tensor_parallel_degree],
        "context": first[:: plan.tensor_parallel_degree],
        "expert": [plan.slots_of(rank)[0] for rank in plan.placement[stage][: plan.expert_parallel_degree]],
    }[collective.axis]
    if len(slots) < 2:
        return 0.0
    table = measured_table(cluster, collective.kind, slots)
    payload = collective.payload_bytes * plan.microbatch_size / part.graph.batch_size
    return collective_s(collective.kind, payload, len(slots), cluster.slowest_pair(slots), cluster.backend, table)
