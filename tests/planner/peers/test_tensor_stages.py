"""Stages with replicas, tensor-parallel degrees and recompute: the fast search against the objective spelled out over all plans."""

from itertools import product
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.graph.profile import Variant
from chinchilla_sim.planner.peers.ideals import list_ideals
from chinchilla_sim.planner.peers.stage_choices import TensorProblem
from chinchilla_sim.planner.peers.tensor_stages import split_tensor_stages
from tests.planner.graphs import random_edges

INFINITE = float("inf")


def brute_force(problem: TensorProblem) -> float:
    """Least slowest stage over all nested cuts, degrees, replicas and variants."""
    count = len(problem.layers)
    ideals = [frozenset(row.nonzero()[0].tolist()) for row in list_ideals(count, list(problem.edge_bytes), 1 << 20).inside]
    best = INFINITE

    def stage_s(stage: frozenset[int], degree: int, replicas: int, behind: int) -> float:
        """Fastest variants that hold their microbatches, or infinite."""
        held = ceil((behind + replicas) / replicas)
        fastest = INFINITE
        for picks in product(*(problem.variants_at(layer, degree) for layer in sorted(stage))):
            memory = sum(pick.stash_bytes * held + pick.fixed_bytes for pick in picks)
            if memory > problem.memory_bytes:
                continue
            seconds = 0.0
            for layer, pick in zip(sorted(stage), picks, strict=True):
                cut = [b if a == layer else a for a, b in problem.edge_bytes if (a == layer) != (b == layer)]
                moved = sum(problem.cut_bytes(layer, other, pick) for other in cut if other not in stage)
                shared = 4 * (replicas - 1) * pick.parameter_bytes / (replicas * problem.microbatches)
                seconds += pick.seconds / replicas + (2 * moved / replicas + shared) / problem.bandwidth_bytes_per_s
            fastest = min(fastest, seconds)
        return fastest

    def extend(end: frozenset[int], devices: int, behind: int, slowest: float) -> None:
        nonlocal best
        if not end:
            best = min(best, slowest)
            return
        for start in ideals:
            if not start < end:
                continue
            for degree, replicas in product(problem.degrees, problem.replica_counts):
                if degree * replicas <= devices:
                    seconds = stage_s(end - start, degree, replicas, behind)
                    if max(seconds, slowest) < best:
                        extend(start, devices - degree * replicas, behind + replicas, max(seconds, slowest))

    extend(frozenset(range(count)), problem.devices, 0, 0.0)
    return best


variants = st.builds(
    Variant,
    tensor_parallel_degree=st.sampled_from([1, 2]),
    recompute=st.booleans(),
    seconds=st.integers(1, 9).map(float),
    parameter_bytes=st.integers(0, 4).map(float),
    stash_bytes=st.integers(0, 4).map(float),
    fixed_bytes=st.integers(0, 4).map(float),
)


@st.composite
def problems(draw: st.DrawFn) -> TensorProblem:
    count = draw(st.integers(1, 4))
    edges = draw(random_edges(count))
    choices = [tuple(draw(st.lists(variants, min_size=1, max_size=3))) for _ in range(count)]
    return TensorProblem(
        layers=[f"layer{index}" for index in range(count)],
        variants=choices,
        edge_bytes={edge: float(draw(st.integers(0, 3))) for edge in edges},
        devices=draw(st.integers(1, 4)),
        memory_bytes=float(draw(st.integers(4, 24))),
        bandwidth_bytes_per_s=draw(st.sampled_from([1.0, 3.0])),
        microbatches=draw(st.sampled_from([1, 2, 4, 6])),
    )


@settings(max_examples=150, deadline=None)
@given(problems())
def test_the_best_of_all_plans_is_found(problem: TensorProblem) -> None:
    """Oracle: equal to brute force; layers stand once, devices suffice."""
    result, expected = split_tensor_stages(problem), brute_force(problem)
    if expected == INFINITE:
        assert result is None
        return
    assert result is not None
    assert result.optimal
    assert result.slowest_s == pytest.approx(expected, rel=1e-9)
    assert sorted(layer for stage in result.stages for layer in stage.layers) == list(range(len(problem.layers)))
    assert sum(stage.tensor_parallel_degree * stage.replicas for stage in result.stages) <= problem.devices


def test_recompute_where_two_microbatches_are_held() -> None:
    """By hand: stage 0 holds 2 microbatches and only recomputed (4 s) fits; without it 2 devices need 6 s on one stage."""
    vanilla = Variant(1, False, 3.0, 0.0, 5.0, 0.0)
    again = Variant(1, True, 4.0, 0.0, 1.0, 0.0)
    problem = TensorProblem(["a", "b"], [(vanilla, again)] * 2, {(0, 1): 0.0}, 2, 5.0, 1.0, 1)
    result = split_tensor_stages(problem)
    assert result is not None
    assert [stage.layers for stage in result.stages] == [(0,), (1,)]
    assert result.slowest_s == 4.0
