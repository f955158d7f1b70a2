"""Merge neighbouring tasks into groups, so that a planner decides about tens of tasks instead of thousands.

A group is an interval of the topological order with at most one output that anybody outside reads. What crosses a
cut behind a group is therefore exactly what crosses it in the fine graph, and every total stays the same to the byte.
Repeated blocks are cut at the same places. Within a stretch the cuts minimise the most expensive group:

    best[g][i] = min over j of  max(best[g-1][j], cost(j, i))        where (j, i) has one output at most
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from chinchilla_sim.graph.repeats import Repeat, find_repeats
from chinchilla_sim.graph.task import INPUT_OP, LOSS_OP, Task, TaskGraph

BYTE_COST_FLOP = 10.0
"""A byte moved weighs as much as so many flop: the balance of current devices, only used to size groups evenly."""
LONGEST_EXACT = 250
GROUP_OP = "block"


def coarsen(graph: TaskGraph, maximum_tasks: int) -> TaskGraph:
    """The graph with at most `maximum_tasks` compute tasks (more only where no interval has a single output).

    A graph that is small enough comes back as it is.
    """
    if len(graph.compute_tasks) <= maximum_tasks:
        return graph
    ends = _Cutter(graph, maximum_tasks).ends()
    groups = [graph.compute_tasks[first:end] for first, end in zip([0, *ends[:-1]], ends, strict=True)]
    merged = [_merge(graph, group) for group in groups]
    group_of = {member.name: task.name for group, task in zip(groups, merged, strict=True) for member in group}
    group_of |= {task.name: task.name for task in graph.tasks if task.op == INPUT_OP}
    tasks = [replace(task, saved=tuple(dict.fromkeys(group_of[name] for name in task.saved))) for task in merged]
    edges = dict.fromkeys((group_of[a], group_of[b]) for a, b in graph.edges if group_of[a] != group_of[b])
    inputs = [task for task in graph.tasks if task.op == INPUT_OP]
    return replace(graph, tasks=(*inputs, *tasks), edges=tuple(edges))


def expand(names: Sequence[str], coarse: TaskGraph) -> tuple[str, ...]:
    """Names of the tasks in the named groups, in order."""
    return tuple(member.name for name in names for member in coarse.tasks[coarse.position[name]].kernels)


class _Cutter:
    """Decides where groups end."""

    def __init__(self, graph: TaskGraph, maximum: int) -> None:
        self.graph, self.tasks, self.maximum = graph, graph.compute_tasks, maximum
        offset = len(graph.tasks) - len(self.tasks)
        self.last_use = [graph.last_use[task.name] - offset for task in self.tasks]
        self.prefix = list(accumulate((_cost(task) for task in self.tasks), initial=0.0))

    def ends(self) -> list[int]:
        """Positions behind the last task of each group."""
        repeats = [self._aligned(repeat) for repeat in find_repeats(self.graph)]
        body = len(self.tasks) - (self.tasks[-1].op == LOSS_OP)
        ends = self._ends(repeats, body)
        while len(ends) > self.maximum:
            joined = self._joined(ends, body)
            if joined is None:
                break
            ends = joined
        return ends

    def _joined(self, ends: list[int], body: int) -> list[int] | None:
        """Two neighbouring groups merged into one, the cheapest pair that has a single output together."""
        starts = [0, *ends[:-1]]
        pairs = [
            (self.prefix[ends[index + 1]] - self.prefix[starts[index]], index)
            for index in range(len(ends) - 1)
            if ends[index + 1] <= body and self._single_output(starts[index], ends[index + 1])
        ]
        return None if not pairs else [end for index, end in enumerate(ends) if index != min(pairs)[1]]

    def _ends(self, repeats: Sequence[Repeat], body: int) -> list[int]:
        ends, position = [], 0
        budget = self.maximum - (body < len(self.tasks))
        for repeat in repeats:
            ends += self._stretch(position, repeat.start, budget)
            ends += self._blocks(repeat, max(1, round(budget * self._share(repeat.start, repeat.end))))
            position = repeat.end
        ends += self._stretch(position, body, budget)
        return sorted({*ends, len(self.tasks)})

    def _share(self, first: int, end: int) -> float:
        return (self.prefix[end] - self.prefix[first]) / self.prefix[-1] if self.prefix[-1] else 0.0

    def _aligned(self, repeat: Repeat) -> Repeat:
        """The same repeat, begun where the fewest bytes cross between its blocks."""
        length = repeat.length
        crossing = {shift: self._crossing_bytes(repeat.start + length + shift) for shift in range(length)}
        shift = min(crossing, key=lambda shift: (crossing[shift], shift))
        return Repeat(repeat.start + shift, length, repeat.count - (shift > 0))

    def _crossing_bytes(self, end: int) -> float:
        return sum(self.tasks[i].output_bytes for i in range(max(0, end - LONGEST_EXACT), end) if self.last_use[i] >= end)

    def _blocks(self, repeat: Repeat, budget: int) -> list[int]:
        """Every block cut alike; several blocks in one group where there are more blocks than groups."""
        per_block = max(1, budget // repeat.count)
        template = [end - repeat.start for end in self._stretch(repeat.start, repeat.start + repeat.length, self.maximum, per_block)]
        together = -(-repeat.count // budget) if per_block == 1 else 1
        starts = range(repeat.start, repeat.end, repeat.length)
        ends = [start + end for start in starts for end in template]
        if together > 1 and len(template) == 1:
            kept = [*ends[together - 1 :: together], ends[-1]]
            joined = sorted(set(kept))
            if all(self._single_output(a, b) for a, b in zip([repeat.start, *joined[:-1]], joined, strict=True)):
                return joined
        return ends

    def _stretch(self, first: int, end: int, budget: int, groups: int | None = None) -> list[int]:
        """Ends of groups of a stretch; as many groups as its share of the budget, more where one output does not suffice."""
        if first >= end:
            return []
        wanted = groups or max(1, round(budget * self._share(first, end)))
        if end - first <= LONGEST_EXACT:
            for count in range(wanted, end - first + 1):
                found = self._balanced(first, end, count)
                if found:
                    return found
        return self._greedy(first, end, wanted)

    def _balanced(self, first: int, end: int, count: int) -> list[int] | None:
        """At most `count` groups, the most expensive as cheap as can be."""
        size = end - first
        infinite = float("inf")
        allowed = [[self._single_output(first + j, first + i) for j in range(i)] for i in range(size + 1)]
        best, origins = [0.0] + [infinite] * size, []
        for _ in range(count):
            row, origin = list(best), [-1] * (size + 1)
            for i in range(1, size + 1):
                for j in range(i):
                    worst = max(best[j], self.prefix[first + i] - self.prefix[first + j]) if allowed[i][j] else infinite
                    if worst < row[i]:
                        row[i], origin[i] = worst, j
            best = row
            origins.append(origin)
        if best[size] == infinite:
            return None
        ends, i = [], size
        for origin in reversed(origins):
            if origin[i] >= 0:
                ends.append(first + i)
                i = origin[i]
        return ends[::-1]

    def _greedy(self, first: int, end: int, count: int) -> list[int]:
        """Groups of about an equal share, each ending at the last place with one output."""
        limit = (self.prefix[end] - self.prefix[first]) / count
        ends, start = [], first
        while start < end:
            stop = start + 1
            for candidate in range(start + 1, end + 1):
                if self.prefix[candidate] - self.prefix[start] > limit and candidate > start + 1:
                    break
                if self._single_output(start, candidate):
                    stop = candidate
            ends.append(stop)
            start = stop
        return ends

    def _single_output(self, first: int, end: int) -> bool:
        return sum(self.last_use[i] >= end for i in range(first, end)) <= 1


def _cost(task: Task) -> float:
    moved = task.read_bytes + task.written_bytes + task.backward_read_bytes + task.backward_written_bytes
    return task.forward_flop + task.backward_flop + BYTE_COST_FLOP * moved


def _merge(graph: TaskGraph, group: Sequence[Task]) -> Task:
    """One task for a group; what it saves is still named by fine tasks."""
    if len(group) == 1:
        return group[0]
    members = tuple(kernel for task in group for kernel in task.kernels)
    names = {task.name for task in group}
    end = graph.position[group[-1].name]
    output = next((task for task in group if graph.last_use[task.name] > end), group[-1])
    saved = dict.fromkeys(name for task in group for name in task.saved)
    inner = [name for name in saved if name in names and name != output.name]
    sums = {
        field: sum(getattr(task, field) for task in group)
        for field in Task.__dataclass_fields__
        if field.endswith(("_flop", "_bytes", "_count")) and field not in ("output_bytes", "saved_bytes")
    }
    return Task(
        name=output.name,
        op=GROUP_OP,
        output_bytes=output.output_bytes,
        **sums,
        parameters=tuple(dict.fromkeys(name for task in group for name in task.parameters)),
        saved=tuple(name for name in saved if name not in inner),
        saved_bytes=sum(task.saved_bytes for task in group) + sum(graph.tasks[graph.position[name]].output_bytes for name in inner),
        needs_gradient=output.needs_gradient,
        recomputable=all(task.recomputable for task in group),
        shapes=output.shapes,
        module=_common_path([task.module for task in group]),
        members=members,
    )


def _common_path(paths: Sequence[str]) -> str:
    """The longest dotted prefix of all paths.

    >>> _common_path(["layers.3.attention", "layers.3.mlp.up"])
    'layers.3'
    """
    parts = [path.split(".") for path in paths]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)
