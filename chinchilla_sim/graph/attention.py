"""Attention in separate kernels: scores written to memory, softmax, dropout and the product with the values each a pass over them.

Graphs count attention as one kernel that keeps its scores on chip (Dao et al. 2022). Code from before, and eager code with
dropout inside, moves one score matrix of heads x positions x positions per sample through memory for each step:

    forward    product writes, softmax reads and writes, dropout reads and writes (and its mask, 1 B), product reads
    backward   two products read scores, one writes its gradient, dropout and softmax read and write, two products read

and keeps softmax, mask and dropped scores for the backward pass: 2 + 1 + 2 B per score in half precision, the `5 a s / h` of
Korthikanti et al. 2022.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from chinchilla_sim.graph.task import Task, TaskGraph

FORWARD_PASSES = 6.0
BACKWARD_PASSES = 9.0
SAVED_COPIES = 2.0
MASK_BYTES = 1.0
EXTRA_LAUNCHES = 4


def with_separate_attention(graph: TaskGraph) -> TaskGraph:
    """The graph with attention that stores its scores."""
    return replace(graph, tasks=tuple(_separate(graph, task) if "attention" in task.op else task for task in graph.tasks))


def _separate(graph: TaskGraph, task: Task) -> Task:
    keys = next((graph.tasks[graph.position[name]] for name in task.operands[1:2] if name in graph.position), None)
    if len(task.shapes) < 1 or len(task.shapes[0]) != 4 or keys is None or not keys.shapes:
        return task
    scores = prod(task.shapes[0][:3]) * keys.shapes[0][-2]
    one = scores * graph.value_bytes
    return replace(
        task,
        read_bytes=task.read_bytes + FORWARD_PASSES / 2 * one,
        written_bytes=task.written_bytes + FORWARD_PASSES / 2 * one + scores * MASK_BYTES,
        backward_read_bytes=task.backward_read_bytes + 2 * BACKWARD_PASSES / 3 * one + scores * MASK_BYTES,
        backward_written_bytes=task.backward_written_bytes + BACKWARD_PASSES / 3 * one,
        saved_bytes=task.saved_bytes + SAVED_COPIES * one + scores * MASK_BYTES,
        launch_count=task.launch_count + EXTRA_LAUNCHES,
    )
