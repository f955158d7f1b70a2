"""Attention in separate kernels: scores written to memory, softmax, dropout and the product with the values each a pass over them.

Graphs count attention as one kernel that keeps its scores on chip (Dao et al. 2022). Code from before, and eager code with
dropout inside, moves one score matrix of heads x positions x positions per sample through memory for each step:

    forward    product writes, softmax reads and writes, dropout reads and writes (and its mask, 1 B), product reads
    backward   two products read scores, one writes its gradient, dropout and softmax read and write, two products read

and keeps softmax, mask and dropped scores for the backward pass: 2 + 1 + 2 B per score in half precision, the `5 a s / h` of
Korthikanti et al. 2022. Its own output is not needed again (a fused kernel's is). These scores are what selective recompute drops:
`attention_cores` finds them in graphs of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from chinchilla_sim.graph.task import LOSS_OP, Task, TaskGraph

FORWARD_PASSES = 6.0
BACKWARD_PASSES = 9.0
SAVED_COPIES = 2.0
MASK_BYTES = 1.0
EXTRA_LAUNCHES = 4
STORES_SCORES = ("stores_scores", True)
"""Attribute of an attention task whose scores are kept in memory."""


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
        saved=tuple(name for name in task.saved if name != task.name),
        saved_bytes=task.saved_bytes + SAVED_COPIES * one + scores * MASK_BYTES,
        launch_count=task.launch_count + EXTRA_LAUNCHES,
        attributes=(*task.attributes, STORES_SCORES),
    )


def attention_cores(kernels: Sequence[Task]) -> list[tuple[Task, ...]]:
    """What selective recompute runs twice: attention that stores its scores, one tuple of kernels each.

    In separate kernels that is a softmax with the elementwise kernels around it on tensors of its size, the product that makes the
    scores and the product that they go into, both without weights. Attention that keeps its scores on chip has no core: it
    computes them again anyway.
    """
    by_name = {kernel.name: kernel for kernel in kernels}
    users: dict[str, list[str]] = {}
    for kernel in kernels:
        for name in kernel.operands:
            users.setdefault(name, []).append(kernel.name)
    cores: list[tuple[Task, ...]] = [(kernel,) for kernel in kernels if STORES_SCORES in kernel.attributes]
    for kernel in kernels:
        if "softmax" in kernel.op and kernel.op != LOSS_OP and kernel.shapes:
            before = _towards_product(kernel, by_name, lambda task: task.operands)
            behind = _towards_product(kernel, by_name, lambda task: users.get(task.name, ()))
            if before and behind:
                inside = {kernel.name, *before, *behind}
                cores.append(tuple(one for one in kernels if one.name in inside))
    return cores


def _towards_product(start: Task, by_name: Mapping[str, Task], step: Callable[[Task], Iterable[str]]) -> set[str]:
    """Kernels on tensors of the start's size up to the next product of two activations, or nothing where there is no such product."""
    size, found, products, left = prod(start.shapes[0]), set[str](), set[str](), [start]
    while left:
        for name in step(left.pop()):
            task = by_name.get(name)
            if task is None or name in found or name in products or task.parameters:
                continue
            if task.forward_flop > 0:
                products.add(name)
            elif task.shapes and prod(task.shapes[0]) == size:
                found.add(name)
                left.append(task)
    return found | products if products else set()
