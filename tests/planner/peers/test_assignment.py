"""Units on accelerators and CPUs: contiguous and free plans against brute force over the objective spelled out."""

from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.planner.peers import free_assignment
from chinchilla_sim.planner.peers.assignment import AssignmentProblem, assign_contiguous, units_of
from chinchilla_sim.planner.peers.free_assignment import assign_freely
from tests.planner.graphs import random_edges

amounts = st.integers(0, 9).map(float)


def slowest(problem: AssignmentProblem, processor: tuple[int, ...]) -> float:
    """The objective as data/README.md states it; infinite where a limit is broken."""
    loads = []
    for own in range(problem.accelerators + problem.cpus):
        tasks = {task for unit, place in enumerate(processor) if place == own for task in problem.units[unit]}
        if own >= problem.accelerators:
            loads.append(sum(problem.cpu_s[task] for task in tasks))
            continue
        received = {a for a, b in problem.edges if b in tasks and a not in tasks}
        sent = {a for a, b in problem.edges if a in tasks and b not in tasks}
        fits = sum(problem.held_bytes[task] for task in tasks) <= problem.memory_bytes
        moved = sum(problem.output_s[task] for task in received) + sum(problem.output_s[task] for task in sent)
        loads.append(sum(problem.accelerator_s[task] for task in tasks) + moved if fits else inf)
    return max(loads)


def is_contiguous(problem: AssignmentProblem, processor: tuple[int, ...]) -> bool:
    """Whether processors can be put in an order that every edge of the forward pass respects."""
    edges = {(processor[a], processor[b]) for a, b in problem.order if processor[a] != processor[b]}
    left = set(processor)
    while left:
        first = {own for own in left if not any(b == own and a in left for a, b in edges)}
        if not first:
            return False
        left -= first
    return True


def best_of_all(problem: AssignmentProblem, contiguous: bool) -> float:
    plans = product(range(problem.accelerators + problem.cpus), repeat=len(problem.units))
    return min(slowest(problem, plan) for plan in plans if not contiguous or is_contiguous(problem, plan))


@st.composite
def problems(draw: st.DrawFn) -> AssignmentProblem:
    count = draw(st.integers(1, 6))
    edges = draw(random_edges(count))
    figures = st.lists(amounts, min_size=count, max_size=count)
    classes = draw(st.lists(st.sampled_from([None, None, "a", "b"]), min_size=count, max_size=count))
    units, order = units_of(count, edges, classes, draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return AssignmentProblem(
        accelerator_s=draw(st.lists(amounts | st.just(inf), min_size=count, max_size=count)),
        cpu_s=draw(figures),
        output_s=draw(figures),
        held_bytes=draw(figures),
        edges=edges,
        units=units,
        order=order,
        accelerators=draw(st.integers(1, 2)),
        cpus=draw(st.integers(0, 1)),
        memory_bytes=float(draw(st.integers(0, 30))),
    )


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_best_contiguous_plan_is_found(problem: AssignmentProblem) -> None:
    """Oracle: equal to brute force wherever it says optimal, and never worse than a bound that holds."""
    result, expected = assign_contiguous(problem), best_of_all(problem, contiguous=True)
    if result is None:
        assert expected == inf or any(size > 0 for size in problem.held_bytes)
        return
    assert slowest(problem, result.processor) == pytest.approx(result.slowest_s)
    assert is_contiguous(problem, result.processor)
    assert result.lower_bound_s <= expected + 1e-9
    assert result.slowest_s == pytest.approx(expected) if result.optimal else result.slowest_s >= expected - 1e-9


@settings(max_examples=25, deadline=None)
@given(problems())
def test_the_best_free_plan_is_found(problem: AssignmentProblem) -> None:
    """Oracle: equal to brute force over all assignments, to the gap that is proven."""
    free_assignment.MOVES, moves = 200, free_assignment.MOVES
    try:
        result = assign_freely(problem, budget_s=20.0)
    finally:
        free_assignment.MOVES = moves
    expected = best_of_all(problem, contiguous=False)
    if expected == inf:
        assert result is None
        return
    assert result is not None
    assert result.optimal
    assert slowest(problem, result.processor) == pytest.approx(result.slowest_s)
    assert expected - 1e-9 <= result.slowest_s <= expected * 1.001 + 1e-9


def line(*seconds: float) -> AssignmentProblem:
    """Tasks in a line on two accelerators, free transfers."""
    count = len(seconds)
    edges = [(index, index + 1) for index in range(count - 1)]
    return AssignmentProblem(
        seconds, [99.0] * count, [0.0] * count, [1.0] * count, edges, [[task] for task in range(count)], edges, 2, 0, 99.0
    )


def test_giving_up_contiguity_can_be_faster() -> None:
    """By hand: 1, 6, 2, 3 s in a line cut into 7 + 5; the middle alone and the rest together are 6 + 6."""
    contiguous, free = assign_contiguous(line(1, 6, 2, 3)), assign_freely(line(1, 6, 2, 3), budget_s=5.0)
    assert contiguous is not None
    assert free is not None
    assert (contiguous.slowest_s, free.slowest_s) == (7.0, 6.0)


def test_the_limit_of_memory_binds() -> None:
    """By hand: 2 + 2 + 2 s of 1 byte each with room for 2 bytes takes 4 s; with room for 1 byte nothing fits on two accelerators."""
    problem = line(2, 2, 2)
    fits = assign_contiguous(replace(problem, memory_bytes=2.0))
    assert fits is not None
    assert fits.slowest_s == 4.0
    assert assign_contiguous(replace(problem, memory_bytes=1.0)) is None
    assert assign_freely(replace(problem, memory_bytes=1.0), budget_s=5.0) is None


def test_loads_as_stated() -> None:
    """By hand: a task read twice elsewhere is sent once and received once; a CPU pays for no transfer."""
    problem = AssignmentProblem(
        [1.0, 2.0, 4.0], [9.0, 9.0, 9.0], [8.0, 0.0, 0.0], [0.0] * 3, [(0, 1), (0, 2)], [[0], [1], [2]], [(0, 1), (0, 2)], 2, 1, 1.0
    )
    assert problem.loads((0, 1, 1)) == [9.0, 14.0, 0.0]
    assert problem.loads((0, 2, 0)) == [13.0, 0.0, 9.0]
    assert np.isclose(slowest(problem, (0, 1, 1)), 14.0)
