"""Full recompute: what a stage keeps of each block, and what it computes again (activation checkpointing, Chen et al. 2016).

A block is one of the model's repeated layers (or a group of a coarse graph). Of a block only what it reads from outside is
kept until its backward pass, which first runs its forward pass again; while it does, one block's tensors are there.
Tasks outside blocks keep what they always keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_sim.graph.repeats import find_repeats
from chinchilla_sim.graph.task import Task, TaskGraph


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Bytes for the graph's batch: kept per microbatch, and beside them while a block is computed again; names of what runs twice."""

    saved_bytes: float
    transient_bytes: float
    again: frozenset[str]


class Blocks:
    """Blocks of one graph."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph = graph
        self.block_of: dict[str, int] = {}
        tasks, count = graph.compute_tasks, 0
        for repeat in find_repeats(graph):
            for first in range(repeat.start, repeat.end, repeat.length):
                self.block_of |= {task.name: count for task in tasks[first : first + repeat.length] if task.recomputable}
                count += 1
        for task in tasks:
            if task.members and task.recomputable:
                self.block_of[task.name] = count
                count += 1
        self.producers: dict[str, list[str]] = {}
        for producer, consumer in graph.edges:
            self.producers.setdefault(consumer, []).append(producer)

    def recompute(self, stage: Sequence[Task]) -> Recomputed:
        """What is kept and computed again of the tasks of a stage."""
        saved: dict[str, float] = {}
        beside = 0.0
        blocks: dict[int, list[Task]] = {}
        for task in stage:
            block = self.block_of.get(task.name)
            if block is None:
                saved |= {name: self._bytes(name) for name in task.saved}
                beside += task.saved_bytes
            else:
                blocks.setdefault(block, []).append(task)
        transient = 0.0
        for members in blocks.values():
            inside = {task.name for task in members}
            inputs = {name for task in members for name in self.producers.get(task.name, ()) if name not in inside}
            saved |= {name: self._bytes(name) for name in sorted(inputs)}
            own = {name for task in members for name in task.saved} - inputs
            transient = max(transient, sum(map(self._bytes, sorted(own))) + sum(task.saved_bytes for task in members))
        again = frozenset(task.name for members in blocks.values() for task in members)
        return Recomputed(sum(saved.values()) + beside, transient, again)

    def _bytes(self, name: str) -> float:
        return self.graph.tasks[self.graph.position[name]].output_bytes
