"""Small random graphs for tests of solvers, and weights that several tasks share."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from hypothesis import strategies as st

from chinchilla_sim.graph.task import TaskGraph, Weight


def random_edges(count: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Some of the pairs (earlier, later) of so many tasks."""
    pairs = list(combinations(range(count), 2))
    return st.lists(st.sampled_from(pairs), unique=True, max_size=8) if pairs else st.just([])


def sharing(graph: TaskGraph, sets: Sequence[Sequence[int]], weight_bytes: float, trained: bool = True) -> TaskGraph:
    """The graph with one more weight for each set of compute tasks, which all tasks of the set use."""
    added = {f"shared{number}": Weight(weight_bytes, (int(weight_bytes / graph.value_bytes),), trained) for number in range(len(sets))}
    users: dict[str, tuple[str, ...]] = {}
    for name, indices in zip(added, sets, strict=True):
        for index in indices:
            task = graph.compute_tasks[index].name
            users[task] = (*users.get(task, ()), name)
    tasks = tuple(replace(task, parameters=(*task.parameters, *users.get(task.name, ()))) for task in graph.tasks)
    return replace(graph, tasks=tasks, weights={**graph.weights, **added})


def shared_sets(tasks: int) -> st.SearchStrategy[list[list[int]]]:
    """Up to three sets of two or more of so many tasks, or none."""
    one = st.lists(st.integers(0, tasks - 1), unique=True, min_size=2, max_size=tasks)
    return st.lists(one, max_size=3) if tasks > 1 else st.just([])
