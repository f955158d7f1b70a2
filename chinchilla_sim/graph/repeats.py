"""Find blocks of tasks that repeat, by structure and never by name.

A repeat is an interval of tasks followed at once by copies of itself: same operators, amounts and weight sizes, same
edges inside. Edges from outside may differ: the first block reads the embedding, later ones the block before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chinchilla_sim.graph.task import Task, TaskGraph, Weight

CANDIDATE_PERIODS = 60


@dataclass(frozen=True, slots=True)
class Repeat:
    """`count` blocks of `length` compute tasks, one behind the other, from position `start` among the compute tasks.

    As many blocks would also be found from up to `slack` positions later.
    """

    start: int
    length: int
    count: int
    slack: int = 0

    @property
    def end(self) -> int:
        """Position behind the last block."""
        return self.start + self.length * self.count

    def __str__(self) -> str:
        return f"{self.count} x block of {self.length} tasks"


def find_repeats(graph: TaskGraph) -> list[Repeat]:
    """Repeats in order, none overlapping another; the one that covers most comes first, then the shortest period."""
    signatures = _signatures(graph)
    found: list[Repeat] = []
    free = [(0, len(signatures))]
    while free:
        first, end = free.pop()
        best = _longest(signatures[first:end])
        if best is None:
            continue
        repeat = replace(best, start=first + best.start)
        found.append(repeat)
        free += [(first, repeat.start), (repeat.end, end)]
    return sorted(found, key=lambda repeat: repeat.start)


def with_first_blocks(graph: TaskGraph, repeat: Repeat) -> Repeat:
    """The repeat with the blocks in front that differ only in where they read from, or in being the first to use a shared weight."""
    likeness = _likeness(graph)
    while repeat.start >= repeat.length:
        before = repeat.start - repeat.length
        if likeness[before : repeat.start] != likeness[repeat.start : repeat.start + repeat.length]:
            break
        repeat = replace(repeat, start=before, count=repeat.count + 1)
    return repeat


def _longest(signatures: Sequence[int]) -> Repeat | None:
    best: Repeat | None = None
    for period in _periods(signatures):
        run = 0
        for position in range(len(signatures) - period + 1):
            if position < len(signatures) - period and signatures[position] == signatures[position + period]:
                run += 1
                continue
            if run >= period:
                candidate = Repeat(position - run, period, run // period + 1, run % period)
                if best is None or _rank(candidate) > _rank(best):
                    best = candidate
            run = 0
    return best


def _rank(repeat: Repeat) -> tuple[int, int, int]:
    return repeat.length * repeat.count, -repeat.length, -repeat.start


def _periods(signatures: Sequence[int]) -> list[int]:
    """Distances between equal neighbours in the list of each signature, the most frequent first; blocks have two tasks or more."""
    last: dict[int, int] = {}
    distances: Counter[int] = Counter()
    for position, signature in enumerate(signatures):
        if signature in last:
            distances[position - last[signature]] += 1
        last[signature] = position
    several = {multiple * distance for distance, _ in distances.most_common(8) for multiple in (2, 3, 4)}
    ranked = [distance for distance, _ in distances.most_common(CANDIDATE_PERIODS)]
    return [period for period in dict.fromkeys([*ranked, *sorted(several)]) if 2 <= period <= len(signatures) // 2]


def _signatures(graph: TaskGraph) -> list[int]:
    """A number per compute task: equal where the tasks are alike and read from the same places nearby."""
    position = {task.name: index for index, task in enumerate(graph.compute_tasks)}
    producers: dict[str, list[str]] = {}
    for producer, consumer in graph.edges:
        producers.setdefault(consumer, []).append(producer)
    numbers: dict[tuple[object, ...], int] = {}
    last_use: dict[str, int] = {}
    result = []
    for index, task in enumerate(graph.compute_tasks):
        near = [_distance(index, position.get(name)) for name in producers.get(task.name, [])]
        # A weight that another task has used is not like one of the task's own.
        weights = [(*_kind(graph.weights[name]), index - last_use.get(name, index)) for name in task.parameters]
        last_use |= dict.fromkeys(task.parameters, index)
        key = (*_amounts(task), tuple(near), tuple(weights))
        result.append(numbers.setdefault(key, len(numbers)))
    return result


def _likeness(graph: TaskGraph) -> list[tuple[object, ...]]:
    """What a task is, wherever it reads from and whoever else uses its weights."""
    return [(*_amounts(task), *(_kind(graph.weights[name]) for name in task.parameters)) for task in graph.compute_tasks]


def _kind(weight: Weight) -> tuple[float, bool]:
    return weight.bytes, weight.trained


NEAR = 4


def _distance(index: int, producer: int | None) -> int:
    """How far back a producer stands; 0 for the model's inputs and for everything further away."""
    return index - producer if producer is not None and index - producer <= NEAR else 0


def _amounts(task: Task) -> tuple[object, ...]:
    return (
        task.op, task.forward_flop, task.weight_gradient_flop, task.output_bytes, task.read_bytes, task.written_bytes,
        task.launch_count, task.shapes, task.attributes,
    )  # fmt: skip
