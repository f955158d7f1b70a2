"""Bytes of weights and saved tensors of runs of neighbouring tasks, for partitions that are tried one task longer each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.pricing.recompute import Blocks, loss_parts


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes of the weights of some tasks, of what they save for their backward pass per batch of the graph, and of what that adds."""

    trained_bytes: float
    untrained_bytes: float
    saved_bytes: float
    transient_bytes: float


def growing(graph: TaskGraph, first: int, blocks: Blocks | None = None) -> Iterator[Holding]:
    """Holdings of the compute tasks from `first` on, one task more each time; with `blocks` of what is not computed again."""
    weights: set[str] = set()
    tensors: set[str] = set()
    trained = untrained = saved = transient = 0.0
    for count, task in enumerate(graph.compute_tasks[first:], start=1):
        for name in task.parameters:
            if name not in weights:
                weights.add(name)
                weight = graph.weights[name]
                trained += weight.bytes if weight.trained else 0.0
                untrained += 0.0 if weight.trained else weight.bytes
        if blocks:
            kept = blocks.recompute(graph.compute_tasks[first : first + count])
            yield Holding(trained, untrained, kept.saved_bytes, kept.transient_bytes)
            continue
        for name in task.saved:
            if name not in tensors:
                tensors.add(name)
                saved += graph.tasks[graph.position[name]].output_bytes
        _, beside, more = loss_parts(graph, task)
        saved += task.saved_bytes + beside
        transient += more
        yield Holding(trained, untrained, saved, transient)
