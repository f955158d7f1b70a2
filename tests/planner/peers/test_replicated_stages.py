"""Stages with replicas over levels of machines: the fast programme against the objective spelled out over all plans."""

from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.planner.peers.ideals import list_ideals
from chinchilla_sim.planner.peers.replicated_stages import MachineLevel, ReplicationProblem, replicate_stages
from tests.planner.graphs import random_edges

INFINITE = float("inf")
amounts = st.integers(0, 9).map(float)


def brute_force(problem: ReplicationProblem) -> float:
    """Least slowest stage, by recursion over levels, ideals and replicas as PipeDream's objective says."""
    count = len(problem.compute_s)
    ideals = [frozenset(row.nonzero()[0].tolist()) for row in list_ideals(count, problem.edges, 1 << 20).inside]
    everything = frozenset(range(count))

    def cut_s(ideal: frozenset[int], bandwidth: float, replicas: int) -> float:
        if problem.activation_compression_ratio is None or ideal == everything:
            return 0.0
        crossing = {a for a, b in problem.edges if a in ideal and b not in ideal}
        moved = sum(problem.output_bytes[task] for task in crossing)
        return 2 * moved / (bandwidth * replicas * problem.activation_compression_ratio)

    @cache
    def best(level: int, start: frozenset[int], end: frozenset[int], machines: int) -> float:
        bandwidth = problem.levels[level].bandwidth_bytes_per_s
        below = problem.levels[level - 1].machines if level else 1
        whole = stage_s(level, start, end, machines, bandwidth * below)
        options = [whole if machines == 1 or not problem.straight else INFINITE]
        for middle in ideals:
            if not start < middle < end:
                continue
            for replicas in range(1, machines):
                if replicas > 1 and problem.straight:
                    continue
                own = max(
                    stage_s(level, middle, end, replicas, bandwidth),
                    cut_s(middle, bandwidth, replicas),
                    cut_s(end, bandwidth, replicas),
                )
                options.append(max(best(level, start, middle, machines - replicas), own))
        return min(options)

    def stage_s(level: int, start: frozenset[int], end: frozenset[int], replicas: int, bandwidth: float) -> float:
        own = end - start
        compute = sum(problem.compute_s[t] for t in own) if level == 0 else best(level - 1, start, end, problem.levels[level - 1].machines)
        parameters = sum(problem.parameter_bytes[t] for t in own)
        return (compute + 4 * (replicas - 1) * parameters / (bandwidth * replicas)) / replicas

    top = len(problem.levels) - 1
    return best(top, frozenset(), everything, problem.levels[top].machines)


@st.composite
def problems(draw: st.DrawFn) -> ReplicationProblem:
    count = draw(st.integers(1, 5))
    figures = st.lists(amounts, min_size=count, max_size=count)
    levels = draw(st.lists(st.builds(MachineLevel, st.integers(1, 3), st.sampled_from([1.0, 4.0])), min_size=1, max_size=2))
    ratio = draw(st.sampled_from([None, 1.0, 2.0]))
    return ReplicationProblem(
        draw(figures), draw(figures), draw(figures), draw(random_edges(count)), levels, ratio, straight=draw(st.booleans())
    )


@settings(max_examples=150, deadline=None)
@given(problems())
def test_the_best_of_all_plans_is_found(problem: ReplicationProblem) -> None:
    """Oracle: equal to brute force; the stages hold every task once and use all machines."""
    result, expected = replicate_stages(problem), brute_force(problem)
    if expected == INFINITE:
        assert result is None
        return
    assert result is not None
    assert result.optimal
    assert result.slowest_s == pytest.approx(expected, rel=1e-12)
    tasks = [task for stage in result.stages for task in stage.tasks]
    assert sorted(tasks) == list(range(len(problem.compute_s)))
    assert sum(stage.replicas for stage in result.stages) == problem.levels[-1].machines


def ideals_of_stages(result_stages: tuple[tuple[int, ...], ...]) -> Iterator[set[int]]:
    """Growing unions of the stages."""
    done: set[int] = set()
    for stage in result_stages:
        done |= set(stage)
        yield done


@given(problems())
@settings(max_examples=50, deadline=None)
def test_every_cut_is_an_ideal(problem: ReplicationProblem) -> None:
    """Law: no stage reads what a later one makes."""
    result = replicate_stages(problem)
    if result:
        for ideal in ideals_of_stages(tuple(stage.tasks for stage in result.stages)):
            assert all(a in ideal or b not in ideal for a, b in problem.edges)


def test_a_branch_may_be_cut_across() -> None:
    """By hand: two branches of 3 s and 1 s + 2 s on two machines: only a cut that no single order of the file has is even."""
    problem = ReplicationProblem([3.0, 1.0, 2.0], [9.0] * 3, [0.0] * 3, [(1, 2)], [MachineLevel(2, 1.0)])
    result = replicate_stages(problem)
    assert result is not None
    assert result.slowest_s == 3.0
