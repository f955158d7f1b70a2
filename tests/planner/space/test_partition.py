"""Cutting a line of tasks: exact against every possible cut, and only where a cut is allowed."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.space.partition import Line, allowed_cuts, balance, best_cuts


class Problem:
    """A small problem with whole seconds, so that sums are exact in any order."""

    def __init__(self, task_s: list[list[int]], boundary_s: list[int], can_end: list[bool], size: list[int], room: list[int]) -> None:
        self.task_s, self.boundary_s, self.size, self.room = task_s, boundary_s, size, room
        self.can_end = [*can_end[:-1], True]

    def __repr__(self) -> str:
        return f"Problem({self.task_s}, {self.boundary_s}, {self.can_end}, {self.size}, {self.room})"

    def fits(self, position: int, first: int, end: int) -> bool:
        """Whether the tasks are within the memory of the position."""
        return sum(self.size[first:end]) <= self.room[position]

    def cuts(self) -> Iterator[tuple[int, ...]]:
        """Ends of the stages of every feasible partition."""
        tasks = len(self.can_end)
        for inner in combinations(range(1, tasks), len(self.task_s) - 1):
            ends = (0, *inner, tasks)
            if all(self.can_end[end - 1] and self.fits(d, first, end) for d, (first, end) in enumerate(pairwise(ends))):
                yield ends

    def slowest_s(self, ends: tuple[int, ...]) -> int:
        """Seconds of the busiest stage or boundary."""
        stages = [sum(self.task_s[d][first:end]) for d, (first, end) in enumerate(pairwise(ends))]
        return max(*stages, *(self.boundary_s[end - 1] for end in ends[1:-1]), 0)

    def links_s(self, ends: tuple[int, ...]) -> int:
        """Seconds of all boundaries."""
        return sum(self.boundary_s[end - 1] for end in ends[1:-1])

    def line(self) -> Line:
        """The same problem as matrices: a microbatch takes a tenth of a step everywhere, links there and back."""
        tasks, inf = len(self.can_end), float("inf")
        busy = []
        for d, row in enumerate(self.task_s):
            matrix = np.full((tasks + 1, tasks + 1), inf)
            for first in range(tasks):
                for end in range(first + 1, tasks + 1):
                    if self.fits(d, first, end):
                        matrix[first, end] = sum(row[first:end])
            busy.append(matrix)
        behind = np.array([0.0, *self.boundary_s[:-1], 0.0])
        links = [np.zeros(tasks + 1), *[behind] * (len(busy) - 1)]
        return Line([matrix / 10 for matrix in busy], busy, [link / 5 for link in links], links, self.can_end)

    def once_s(self, ends: tuple[int, ...]) -> float:
        """Seconds of one microbatch through all stages and links."""
        stages = [sum(self.task_s[d][first:end]) for d, (first, end) in enumerate(pairwise(ends))]
        return sum(stages) / 10 + self.links_s(ends) / 5

    def solve(self) -> tuple[int, ...] | None:
        """Ends of the stages of the balanced cut."""
        cut = balance(self.line())
        return None if cut is None else ends_of(cut.sizes)


def ends_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """Ends of stages of these sizes, from 0."""
    return tuple(sum(sizes[:count]) for count in range(len(sizes) + 1))


def balanced(task_s: list[list[int]], boundary_s: list[int]) -> tuple[int, ...] | None:
    """Sizes of the balanced cut where every cut is allowed and fits."""
    count = len(boundary_s)
    cut = balance(Problem(task_s, boundary_s, [True] * count, [0] * count, [1] * len(task_s)).line())
    return cut.sizes if cut else None


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to 7 tasks over up to 4 positions of different speed, links and memory."""
    tasks = draw(st.integers(1, 7))
    positions = draw(st.integers(1, 4))
    seconds, sizes = st.integers(0, 9), st.integers(0, 5)
    return Problem(
        draw(st.lists(st.lists(seconds, min_size=tasks, max_size=tasks), min_size=positions, max_size=positions)),
        draw(st.lists(seconds, min_size=tasks, max_size=tasks)),
        draw(st.lists(st.booleans() | st.just(True), min_size=tasks, max_size=tasks)),
        draw(st.lists(sizes, min_size=tasks, max_size=tasks)),
        draw(st.lists(st.integers(3, 20), min_size=positions, max_size=positions)),
    )


@settings(max_examples=300)
@given(problems())
def test_no_cut_is_faster_than_the_chosen_one(problem: Problem) -> None:
    """The busiest stage or boundary equals the best of all partitions; None only where there is none."""
    best = min((problem.slowest_s(ends) for ends in problem.cuts()), default=None)
    chosen = problem.solve()
    assert (chosen is None) == (best is None)
    if chosen is not None:
        assert problem.slowest_s(chosen) == best


@settings(max_examples=300)
@given(problems())
def test_chosen_cut_is_allowed_and_fits(problem: Problem) -> None:
    """Every stage has a task, ends where it may end, and is within its memory."""
    chosen = problem.solve()
    assert chosen is None or chosen in set(problem.cuts())


@settings(max_examples=300)
@given(problems(), st.sampled_from([1, 2, 4, 10]))
def test_no_cut_makes_a_shorter_step(problem: Problem, microbatches: int) -> None:
    """Once through all stages, and the busiest for the other microbatches: equal to the best of all partitions."""
    share = 1 - 1 / microbatches
    best = min((problem.once_s(ends) + share * problem.slowest_s(ends) for ends in problem.cuts()), default=None)
    found = best_cuts(problem.line(), microbatches)
    assert bool(found) == (best is not None)
    if found:
        assert found[0].step_s(microbatches) == pytest.approx(best, rel=1e-8)
        assert found[0].step_s(microbatches) == pytest.approx(problem.once_s(ends_of(found[0].sizes)) + share * found[0].busiest_s)
        assert all(ends_of(cut.sizes) in set(problem.cuts()) for cut in found)


def test_faster_devices_get_more_tasks() -> None:
    """Four equal tasks over devices of speed 1 and 3 are cut 1 : 3; over three equal devices the free link decides."""
    assert balanced([[3] * 4, [1] * 4], [0] * 4) == (1, 3)
    assert balanced([[1] * 4] * 3, [1, 0, 1, 0]) == (1, 1, 2)


def test_one_microbatch_goes_where_it_is_fastest() -> None:
    """Over devices of speed 1 and 3 one microbatch alone leaves the slow one a single task; four balance them."""
    line = Problem([[3] * 6, [1] * 6], [0] * 6, [True] * 6, [0] * 6, [1, 1]).line()
    assert best_cuts(line, 1)[0].sizes == (1, 5)
    assert best_cuts(line, 100)[0].sizes == (1, 5) and balance(line).sizes == (1, 5)  # type: ignore[union-attr]


def test_slow_link_is_avoided() -> None:
    """A boundary that takes longer than an uneven stage moves the cut away from it."""
    assert balanced([[1] * 4] * 2, [0, 9, 0, 0]) == (1, 3)


def test_more_positions_than_tasks_is_impossible() -> None:
    """Every position needs a task."""
    assert balanced([[1], [1]], [0]) is None


def small(*tasks: Task, edges: tuple[tuple[str, str], ...], **sizes: float) -> TaskGraph:
    """A graph with an input."""
    return TaskGraph("small", 1, (Task("input", INPUT_OP, needs_gradient=False), *tasks), edges, sizes)


LINE = (("input", "a"), ("a", "b"), ("b", "c"))


def test_chain_may_be_cut_anywhere() -> None:
    """Behind every task of a chain there is a tensor with a gradient."""
    assert allowed_cuts(chain(4, 8, 1.0, 4.0, 1), training=True) == [True] * 4
    assert allowed_cuts(mlp([4, 3, 2], 1), training=True) == [True] * 4


def test_stages_may_split_a_shared_parameter() -> None:
    """Between two users of one weight there is a cut behind every task: both stages hold it."""
    graph = small(Task("a", "x", parameters=("w",)), Task("b", "x"), Task("c", "x", parameters=("w",)), edges=LINE, w=4.0)
    for training in (True, False):
        assert allowed_cuts(graph, training) == [True, True, True]


def test_frozen_part_is_not_cut_in_training() -> None:
    """Where no crossing tensor has a gradient there is nothing to send back; inference may cut there."""
    graph = small(Task("a", "x", needs_gradient=False), Task("b", "x"), Task("c", "x"), edges=LINE)
    assert allowed_cuts(graph, training=True) == [False, True, True]
    assert allowed_cuts(graph, training=False) == [True, True, True]


def test_view_stays_with_what_it_views() -> None:
    """No stage starts with a view: it relabels memory that the stage before would have to send twice."""
    graph = small(Task("a", "x"), Task("b", "view", launch_count=0), Task("c", "x"), edges=LINE)
    assert allowed_cuts(graph, training=True) == [False, True, True]
