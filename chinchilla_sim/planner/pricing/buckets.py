"""Buckets: runs of neighbouring tasks of a stage whose gradients travel together."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.graph.task import Task, TaskGraph


def trained_sizes(graph: TaskGraph, tasks: Sequence[Task]) -> list[float]:
    """Bytes that each task of a stage trains; a weight that several use is the first one's, whose backward pass is the last."""
    seen: set[str] = set()
    sizes = []
    for task in tasks:
        own = [name for name in dict.fromkeys(task.parameters) if name not in seen]
        seen.update(own)
        sizes.append(sum(graph.weights[name].bytes for name in own if graph.weights[name].trained))
    return sizes


def bucket_ends(sizes: Sequence[float], count: int) -> list[int]:
    """Where the buckets of a stage end: at most `count` runs of about equal bytes, in the order of the tasks.

    >>> bucket_ends([4, 0, 4, 1, 7, 0], 2)
    [3, 6]
    """
    total, filled = sum(sizes), 0.0
    ends: list[int] = []
    for index, size in enumerate(sizes[:-1]):
        filled += size
        if total > filled >= total / count * (len(ends) + 1):
            ends.append(index + 1)
    return [*ends, len(sizes)]
