"""Stages in several pieces: as even as tasks allow, drawn in rows that every interpreter can play."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.schedules.listed import StageSeconds, list_rows
from chinchilla_sim.planner.selection.candidate import SearchResult
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate

BATCH = 8


def line(*gflop: float) -> TaskGraph:
    """A chain of tasks with so much work for a batch, a third of it forward, and small outputs."""
    names = [f"t{index}" for index in range(len(gflop))]
    tasks = [
        Task(name, "x", forward_flop=work * 1e9 / 3, input_gradient_flop=work * 2e9 / 3, output_bytes=8.0)
        for name, work in zip(names, gflop, strict=True)
    ]
    edges = list(zip(["input", *names], names, strict=False))
    return TaskGraph("line", BATCH, (Task("input", INPUT_OP, needs_gradient=False), *tasks), tuple(edges))


def switch_of(count: int, *others: dict[str, Any]) -> Cluster:
    """Nodes of 1 Gflop/s at a fast switch."""
    nodes = [{"name": "n", "count": count, "peak": "1 Gflop/s", "memory": "1 GB"}, *others]
    return build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": {"bandwidth": "1 Tbit/s", "latency": "1 us"}}), "fp32")


def find(graph: TaskGraph, cluster: Cluster, stage_tasks: str, **allowed: Any) -> SearchResult:
    """The best pipeline over all nodes."""
    search = SearchSpec.model_validate(
        {"executable": False, "data_parallel_degrees": [1], "pipeline_parallel_degrees": [cluster.rank_count], "stage_tasks": stage_tasks}
        | allowed
    )
    return find_plans(graph, cluster, JobSpec(global_batch_size=BATCH), search, simulate)


def test_first_and_last_task_share_a_rank() -> None:
    """2, 4 and 2 Gflop over two ranks of 1 Gflop/s: contiguous stages take 6 s and more, pieces (2 + 2, 4) about 4 s."""
    whole, pieces = (find(line(2, 4, 2), switch_of(2), kind) for kind in ("contiguous", "free"))
    plan = pieces.best.plan
    assert whole.best.step_s > 6 and pieces.best.step_s < 5
    assert plan.placement == ((0,), (1,), (0,)) and plan.schedule == "custom" and mistakes_of(plan) == []
    assert pieces.lower_bound_s <= pieces.best.step_s


def test_even_stages_stay_whole() -> None:
    """Where contiguous stages are even there is nothing to gain, and the plan is the same."""
    whole, pieces = (find(line(2, 2, 2, 2), switch_of(2), kind) for kind in ("contiguous", "free"))
    assert whole.best.plan == pieces.best.plan


def test_unlike_devices_keep_contiguous_stages() -> None:
    """The programme's processors are alike: with a faster node beside them stages stay contiguous."""
    cluster = switch_of(1, {"name": "fast", "peak": "3 Gflop/s", "memory": "1 GB"})
    assert find(line(2, 4, 2), cluster, "free").best.plan.schedule != "custom"


def test_rows_by_hand() -> None:
    """Two ranks, three stages of 1 s each way, two microbatches: rank 0 fills its wait for microbatch 0 with the next one."""
    rows, step_s = list_rows([0, 1, 0], [StageSeconds(1, 1)] * 3, 2, 2)
    assert [" ".join(map(str, row)) for row in rows] == ["0F0 0F1 2F0 2B0 2F1 0B0 2B1 0B1", "1F0 1F1 1B0 1B1"]
    assert step_s == 9


@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.25])), min_size=8, max_size=8),
    st.integers(1, 7),
    st.integers(1, 7),
)
def test_rows_hold_every_pass_once_within_bounds(ranks: list[int], costs: list[tuple[float, float]], count: int, in_flight: int) -> None:
    """Every pass comes once, F before B, no more microbatches are under way than allowed, and no rank is faster than its work."""
    seconds = [StageSeconds(forward, 2 * forward, transfer) for forward, transfer in costs[: len(ranks)]]
    rows, step_s = list_rows(ranks, seconds, count, in_flight)
    for rank in set(ranks):
        stages = [stage for stage, own in enumerate(ranks) if own == rank]
        wanted = {(stage, op, microbatch) for stage in stages for op in (Op.F, Op.B) for microbatch in range(count)}
        assert len(rows[rank]) == len(wanted) and {tuple(action) for action in rows[rank]} == wanted
        assert step_s >= sum(3 * seconds[stage].forward_s for stage in stages) * count * (1 - 1e-12)
    under_way = most = 0
    for action in rows[ranks[0]]:
        under_way += (action.stage == 0) * (1 if action.op is Op.F else -1)
        most = max(most, under_way)
    assert most <= in_flight
    alone = sum(3 * cost.forward_s for cost in seconds) + 2 * sum(cost.transfer_s for cost in seconds[:-1])
    assert step_s >= alone * (1 - 1e-12) and (count > 1 or step_s == pytest.approx(alone))
