"""What a pass of a tensor-parallel rank waits for, and what measured times say of its parts, by hand."""

import pytest

from chinchilla_sim.cost.collective import ring_all_gather_s, ring_all_reduce_s
from chinchilla_sim.graph.profile import Profile, TaskTime
from chinchilla_sim.graph.shard import shard_graph
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.blocking import arriving, inside
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.scenario.job import JobSpec
from tests.planner.selection.test_search import cluster_of

BATCH = 64
GRAPH = mlp([96, 128, 80, 128, 10], BATCH)
NAMES = tuple(task.name for task in GRAPH.compute_tasks)


def two_stages(end: int, width: int = 2) -> Plan:
    """The first `end` tasks on one group, the others on another."""
    stages, slots = (NAMES[:end], NAMES[end:]), tuple(range(2 * width))
    return Plan(stages, ((0,), (1,)), slots, BATCH, 1, "1f1b", ("none",) * 2, ("none",), tensor_parallel_degree=width)


def test_whole_tensors_are_gathered_where_they_arrive() -> None:
    """Behind the second layer 80 whole features cross: half of each way's bytes comes over either connection."""
    plan, part = two_stages(4), shard_graph(GRAPH, 2)
    share = BATCH * 80 * 4 / 2
    assert [[(one.kind, one.payload_bytes) for one in way] for way in arriving(part, plan, 1)] == [[("all_gather", share)], []]
    assert [[(one.kind, one.payload_bytes) for one in way] for way in arriving(part, plan, 0)] == [[], [("all_gather", share)]]
    cluster = cluster_of(*[{}] * 4)
    price = Pricer(GRAPH, cluster, JobSpec(global_batch_size=BATCH)).price(plan).stages[1][0]
    link, backend = cluster.slowest_pair((2, 3)), cluster.backend
    gather_s, sum_s = ring_all_gather_s(share, 2, link, backend), ring_all_reduce_s(BATCH * 10 * 4.0, 2, link, backend)
    back_s = ring_all_reduce_s(BATCH * 80 * 4.0, 2, link, backend)
    assert price.blocking_s[Op.F] == pytest.approx(gather_s + sum_s) and price.blocking_s[Op.B] == pytest.approx(back_s)
    # Between two each sends its half once to gather, and as many bytes as there are to sum; both devices count.
    assert price.blocking_bytes[Op.F] == 2 * (share + BATCH * 10 * 4.0) and price.blocking_bytes[Op.B] == 2 * BATCH * 80 * 4.0


def test_parts_cross_as_they_are() -> None:
    """Behind the first layer each device has half of the features, and the next product takes them so: nothing is gathered."""
    plan, part = two_stages(2), shard_graph(GRAPH, 2)
    assert NAMES[1] in part.divided and arriving(part, plan, 1) == arriving(part, plan, 0) == ([], [])
    assert [one.kind for one in inside(part, plan, 0, [part.graph.tasks[1], part.graph.tasks[2]])[0]] == []


def test_measured_times_of_whole_tasks_say_what_parts_take() -> None:
    """A machine that takes ten times the formula for a product takes ten times the formula for its part."""
    plan, cluster, job = two_stages(4), cluster_of(*[{}] * 4), JobSpec(global_batch_size=BATCH)
    plain = Pricer(GRAPH, cluster, job)
    device = plain.device_of(plan, 0)
    task = GRAPH.tasks[GRAPH.position[NAMES[0]]]
    forward_s, backward_s, _ = plain.task_s(task, BATCH, device, 4)
    slow = Pricer(GRAPH, cluster, job, Profile((TaskTime(task.name, BATCH, 10 * forward_s, 10 * backward_s),)))
    parts = [pricer.for_devices(plan) for pricer in (plain, slow)]
    part = parts[0].graph.tasks[parts[0].graph.position[task.name]]
    expected, found = (pricer.task_s(part, BATCH, device, 4)[:2] for pricer in parts)
    assert found == pytest.approx([10 * seconds for seconds in expected]) and found[0] < 10 * forward_s
