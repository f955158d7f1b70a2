"""What a stage keeps of its forward pass for the backward pass, and what it computes again instead (activation checkpointing).

    none       every tensor that a kernel needs again
    selective  the scores, softmax and dropout of attention are dropped (Korthikanti et al. 2022, section 5): of
               s b h (34 + 5 a s / h) bytes per layer in half precision 34 s b h are left
    full       of a block only what it reads from outside is kept (Chen et al. 2016): 2 s b h per layer

A block is one of the model's repeated layers (or a group of a coarse graph), with selective recompute an attention core. Its
backward pass first runs its forward pass again; while it does, one block's tensors are there. Tasks outside blocks keep what
they always keep. The loss keeps log-probabilities in fp32 beside the logits, and its backward pass makes their gradient in fp32 and
in the logits' precision: 12 B per logit in all; a loss in one kernel (`fused`) makes its gradient only. It is over before the first
block is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from chinchilla_sim.cost.memory import loss_bytes
from chinchilla_sim.graph.attention import attention_cores
from chinchilla_sim.graph.repeats import find_repeats
from chinchilla_sim.graph.task import FUSED_LOSS, LOSS_OP, Task, TaskGraph


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes for the graph's batch: kept per microbatch, and beside them while the backward pass runs; names of kernels that run twice."""

    saved_bytes: float
    transient_bytes: float
    again: frozenset[str] = field(default_factory=frozenset)


def keep_all(graph: TaskGraph, stage: Sequence[Task]) -> Kept:
    """Without recompute: distinct tensors, what tasks keep beside them, and the loss's own."""
    _, beside, transient = _loss_parts(graph, stage)
    tensors = {name: _bytes(graph, name) for task in stage for name in task.saved}
    return Kept(sum(tensors.values()) + beside + sum(task.saved_bytes for task in stage), transient)


def loss_parts(graph: TaskGraph, task: Task) -> tuple[float, float, float]:
    """Of a loss (or one within a group), for the graph's batch: its logits, and `loss_bytes` beside them; zeros for other tasks."""
    names = {name for kernel in task.kernels if kernel.op == LOSS_OP for name in kernel.saved}
    inner = {member.name: member.output_bytes for member in task.members}
    logits = sum(inner[name] if name in inner else _bytes(graph, name) for name in sorted(names) if name in inner or name in graph.position)
    return (logits, 0.0, logits) if FUSED_LOSS in task.attributes else (logits, *loss_bytes(logits, graph.value_bytes))


def _loss_parts(graph: TaskGraph, stage: Iterable[Task]) -> tuple[float, float, float]:
    return _sums(loss_parts(graph, task) for task in stage)


def _sums(rows: Iterable[tuple[float, float, float]]) -> tuple[float, float, float]:
    logits, beside, transient = map(sum, zip((0.0, 0.0, 0.0), *rows, strict=True))
    return logits, beside, transient


def _bytes(graph: TaskGraph, name: str) -> float:
    return graph.tasks[graph.position[name]].output_bytes


class Blocks:
    """Blocks of one graph: its layers (`full`) or its attention cores (`selective`)."""

    def __init__(self, graph: TaskGraph, kind: str = "full") -> None:
        self.graph, self.kind = graph, kind
        self.block_of = _layers(graph) if kind == "full" else _cores(graph)
        self.producers: dict[str, list[str]] = {}
        for producer, consumer in graph.edges:
            self.producers.setdefault(consumer, []).append(producer)
        self._cores_within: dict[str, tuple[float, float, frozenset[str]]] = {}
        self._losses: dict[str, tuple[float, float, float]] = {}

    def recompute(self, stage: Sequence[Task]) -> Kept:
        """What is kept and computed again of the tasks of a stage."""
        saved: dict[str, float] = {}
        logits, beside, loss_transient = _sums(map(self._loss, stage))
        behind_loss = -logits - beside
        transient, again = 0.0, set[str]()
        blocks: dict[int, list[Task]] = {}
        for task in stage:
            block = self.block_of.get(task.name)
            if block is not None:
                blocks.setdefault(block, []).append(task)
                continue
            saved |= {name: _bytes(self.graph, name) for name in task.saved}
            dropped, most, names = self._within(task)
            beside += task.saved_bytes - dropped
            transient = max(transient, most)
            again |= names
        for members in blocks.values():
            inside = {task.name for task in members}
            needed = {name for task in members for name in task.saved}
            inputs = needed - inside if self.kind == "selective" else self._inputs(inside)
            saved |= {name: _bytes(self.graph, name) for name in sorted(inputs)}
            own = sum(_bytes(self.graph, name) for name in sorted(needed - inputs))
            transient = max(transient, own + sum(task.saved_bytes for task in members))
            again |= inside
        return Kept(sum(saved.values()) + beside, max(loss_transient, transient + behind_loss, 0.0), frozenset(again))

    def _inputs(self, inside: set[str]) -> set[str]:
        return {name for task in inside for name in self.producers.get(task, ()) if name not in inside}

    def _loss(self, task: Task) -> tuple[float, float, float]:
        if task.name not in self._losses:
            self._losses[task.name] = loss_parts(self.graph, task)
        return self._losses[task.name]

    def _within(self, group: Task) -> tuple[float, float, frozenset[str]]:
        """Of attention cores within a group: bytes dropped, bytes of the largest, kernels that run twice."""
        if self.kind == "full" or not group.members or not group.recomputable:
            return 0.0, 0.0, frozenset()
        if group.name not in self._cores_within:
            self._cores_within[group.name] = self._core_sizes(group)
        return self._cores_within[group.name]

    @staticmethod
    def _core_sizes(group: Task) -> tuple[float, float, frozenset[str]]:
        cores = attention_cores(group.members)
        sizes = []
        for core in cores:
            outputs = {kernel.name: kernel.output_bytes for kernel in core if kernel.name != group.name}
            needed = {name for kernel in core for name in kernel.saved}
            sizes.append(sum(outputs[name] for name in sorted(needed & outputs.keys())) + sum(kernel.saved_bytes for kernel in core))
        return sum(sizes), max(sizes, default=0.0), frozenset(kernel.name for core in cores for kernel in core)


def _layers(graph: TaskGraph) -> dict[str, int]:
    """Task -> its repeated layer; groups of a coarse graph are blocks of their own."""
    block_of: dict[str, int] = {}
    tasks, count = graph.compute_tasks, 0
    for repeat in find_repeats(graph):
        for first in range(repeat.start, repeat.end, repeat.length):
            block_of |= {task.name: count for task in tasks[first : first + repeat.length] if task.recomputable}
            count += 1
    for task in tasks:
        if task.members and task.recomputable:
            block_of[task.name] = count
            count += 1
    return block_of


def _cores(graph: TaskGraph) -> dict[str, int]:
    """Task -> its attention core, in graphs of single kernels (cores within groups: `Blocks._within`)."""
    cores = attention_cores([task for task in graph.compute_tasks if task.recomputable and not task.members])
    return {kernel.name: index for index, core in enumerate(cores) for kernel in core}
