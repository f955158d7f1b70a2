"""Cut a line of tasks into contiguous stages, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from chinchilla_sim.graph.task import TaskGraph


def allowed_cuts(graph: TaskGraph, training: bool, shared: bool = True) -> list[bool]:
    """Whether a stage may end behind each compute task.

    Not behind a view alone, and in training not where no crossing tensor carries a gradient. With `shared` a weight that is used on
    both sides is held on both (`sharing.py`); without, there is no cut between its users.
    """
    tasks = graph.compute_tasks
    last_use = {name: index for index, task in enumerate(tasks) for name in task.parameters}
    first_use = {name: index for index, task in reversed(list(enumerate(tasks))) for name in task.parameters}
    spans = [(first_use[name], last_use[name]) for name in last_use if not shared and first_use[name] != last_use[name]]
    allowed = []
    for index, task in enumerate(tasks[:-1]):
        crossing = graph.live_after(graph.position[task.name])
        carries = not training or any(producer.needs_gradient for producer in crossing)
        splits_parameter = any(first <= index < last for first, last in spans)
        allowed.append(carries and not splits_parameter and tasks[index + 1].launch_count > 0)
    return [*allowed, True]


def balance_stages(
    task_s: Sequence[Sequence[float]],
    boundary_s: Sequence[float],
    can_end: Sequence[bool],
    fits: Callable[[int, int, int], bool],
) -> list[int] | None:
    """Cut tasks over pipeline positions in order, so that the busiest stage or boundary is as fast as can be.

    `task_s[d][i]` are seconds of task i on position d, `boundary_s[i]` seconds of the link behind task i,
    `fits(d, j, i)` whether tasks j..i-1 fit into the memory of position d. Exact dynamic programme over (first d
    positions, first i tasks), O(positions * tasks^2):

        best[d][i] = min over j of  max(best[d-1][j], boundary_s[j-1], sum(task_s[d-1][j:i]))

    Among equal prefixes the smaller sum of boundaries wins, then the faster busiest stage, then the earlier cut.
    Returns the number of tasks of each position, or None where nothing fits.

    >>> balance_stages([[3, 3, 3, 3], [1, 1, 1, 1]], [0, 0, 0, 0], [True] * 4, lambda d, j, i: True)
    [1, 3]
    """
    positions, tasks = len(task_s), len(can_end)
    prefix = [list(accumulate(row, initial=0.0)) for row in task_s]
    unreachable = (float("inf"), float("inf"), float("inf"))
    best: list[list[tuple[float, float, float]]] = [[unreachable] * (tasks + 1) for _ in range(positions + 1)]
    origin = [[0] * (tasks + 1) for _ in range(positions + 1)]
    best[0][0] = (0.0, 0.0, 0.0)
    for d in range(1, positions + 1):
        for i in range(d, tasks - (positions - d) + 1):
            if not can_end[i - 1]:
                continue
            for j in range(d - 1, i):
                slowest, links, busiest = best[d - 1][j]
                if slowest == float("inf"):
                    continue
                link_s = boundary_s[j - 1] if j else 0.0
                busiest = max(busiest, prefix[d - 1][i] - prefix[d - 1][j])
                candidate = (max(slowest, link_s, busiest), links + link_s, busiest)
                if candidate < best[d][i] and fits(d - 1, j, i):
                    best[d][i], origin[d][i] = candidate, j
    if best[positions][tasks] == unreachable:
        return None
    sizes, end = [], tasks
    for d in range(positions, 0, -1):
        sizes.append(end - origin[d][end])
        end = origin[d][end]
    return sizes[::-1]
