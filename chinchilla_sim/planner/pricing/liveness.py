"""What comes and goes while a pass runs: tensors that no pass keeps, as torch allocates and frees them one by one.

Forward, a task's output is there until its last reader has run; views are where their source is. Backward, while the pass is at a task

    the gradients of all that crosses behind it, and those of its inputs, which it makes        `backward`

are there beside what tasks before it keep: torch frees what a task keeps as soon as its backward pass is over. Views and sums hand
the same gradient on (`add` to both operands, until another reader's comes on top). The loss makes two gradients of its logits, that
of the picked log-probabilities and their own; log-probabilities are kept, the logits are not.

Convolutions on CPUs work in a layout of oneDNN's own, with channels in blocks of 16 (AVX-512, torch 2.13): forward the output is made in
it and copied, backward the input and the output's gradient are copied to it; inputs of up to 3 channels are read as they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.graph.task import INPUT_OP, LOSS_OP, Task, TaskGraph
from chinchilla_sim.planner.pricing.recompute import Blocks, loss_parts

Floats = NDArray[np.float64]
HANDS_ON = frozenset({"add", "add_"})
"""Operators that give operands of their output's size the very gradient of the output."""
CHANNEL_BLOCK, PLAIN_CHANNELS = 16, 3


@dataclass(frozen=True, slots=True)
class Levels:
    """Of every task of a stage in order; of tensors for the graph's batch.

    `there` are tensors while its backward pass runs, `made` the gradients of its weights, `fresh` of those that no later task of the stage
    has. Where W is apart from I, `deferred` is kept from the one to the other. `saved` is what the whole stage keeps.
    """

    there: Floats
    made: Floats
    fresh: Floats
    deferred: Floats
    saved: float

    def highest(self, scale: float, growing: Floats, split: bool = False) -> float:
        """Most bytes of a backward pass (or I), with so many bytes of gradients of weights while it is at each task."""
        there = self.there + _behind(self.deferred) - self.deferred if split else self.there
        return float((scale * there + growing).max(initial=0.0))

    def highest_apart(self, scale: float, growing: Floats) -> float:
        """Most bytes of W, beside the gradients: entries are freed one by one from the last task on."""
        return float((scale * np.cumsum(self.deferred) + growing).max(initial=0.0))

    def growth(self, ends: Sequence[int] = ()) -> Floats:
        """Gradients of weights while the first backward pass is at each task; those of buckets that end at `ends` leave on the way."""
        grown = np.zeros(len(self.fresh))
        for start, end in zip([0, *ends[:-1]], ends or [len(grown)], strict=True):
            grown[start:end] = _behind(self.fresh[start:end])
        return grown + self.made - self.fresh


def _behind(amounts: Floats) -> Floats:
    """Sums from each on to the end."""
    sums: Floats = np.cumsum(amounts[::-1])[::-1]
    return sums


class Liveness:
    """The tensors of one graph; `in_blocks` where convolutions are oneDNN's."""

    def __init__(self, graph: TaskGraph, in_blocks: bool = True) -> None:
        self.graph, self.in_blocks = graph, in_blocks
        self._levels: dict[tuple[str, str, int, str], Levels] = {}

    @cached_property
    def _producers(self) -> list[list[int]]:
        producers: list[list[int]] = [[] for _ in self.graph.tasks]
        for producer, consumer in self.graph.edges:
            producers[self.graph.position[consumer]].append(self.graph.position[producer])
        return producers

    @cached_property
    def _carries(self) -> list[bool]:
        """Whether a task's output has a gradient that is no weight's."""
        return [task.needs_gradient and task.op != INPUT_OP and not _of_weight(task) for task in self.graph.tasks]

    @cached_property
    def backward(self) -> Floats:
        """Gradients while the backward pass is at each task of the graph."""
        tasks, found = self.graph.tasks, np.zeros(len(self.graph.tasks))
        readers: dict[int, list[int]] = {}  # of tensors that cross behind the present task, those that come later
        for place in reversed(range(len(tasks))):
            task = tasks[place]
            held = {self._holder(tensor, later) for tensor, later in readers.items()}
            inputs = [other for other in self._producers[place] if self._carries[other]]
            made = sum(tasks[other].output_bytes for other in inputs if not self._hands_on(place, other))
            if task.op == LOSS_OP:
                made = 2 * loss_parts(self.graph, task)[0]
            copied = self._in_blocks(place, place) + sum(self._in_blocks(place, other) for other in self._producers[place])
            found[place] = sum(tasks[other].output_bytes for other in held) + made + 2 * _largest_inside(task) + copied
            readers.pop(place, None)
            for other in inputs:
                readers.setdefault(other, []).append(place)
        return found

    def _holder(self, tensor: int, readers: Sequence[int]) -> int:
        """Whose gradient a tensor has while these tasks have handed it theirs."""
        while len(readers) == 1 and self._hands_on(readers[0], tensor):
            tensor = readers[0]
            readers = self._readers[tensor]
        return tensor

    @cached_property
    def _readers(self) -> list[list[int]]:
        readers: list[list[int]] = [[] for _ in self.graph.tasks]
        for consumer, producers in enumerate(self._producers):
            for producer in producers:
                readers[producer].append(consumer)
        return readers

    def _hands_on(self, reader: int, tensor: int) -> bool:
        task, other = self.graph.tasks[reader], self.graph.tasks[tensor]
        return _is_view(task) or (task.op in HANDS_ON and task.output_bytes == other.output_bytes)

    @cached_property
    def forward(self) -> Floats:
        """Tensors while the forward pass is at each task of the graph and keeps nothing, without the model's inputs."""
        tasks, last_use = self.graph.tasks, self.graph.last_use
        source: list[int] = []
        until = [last_use[task.name] for task in tasks]
        for place, task in enumerate(tasks):
            own = source[self._producers[place][0]] if _is_view(task) and self._producers[place] else place
            source.append(own)
            until[own] = max(until[own], until[place])
        changes = np.zeros(len(tasks) + 1)
        for place, task in enumerate(tasks):
            if source[place] == place and task.op != INPUT_OP and not _of_weight(task):
                changes[place] += task.output_bytes
                changes[until[place] + 1] -= task.output_bytes
        return np.cumsum(changes[:-1])

    def forward_bytes(self, stage: Sequence[Task]) -> float:
        """Most bytes in a pass of a stage that keeps nothing."""
        places = [self.graph.position[task.name] for task in stage]
        beside = [_largest_inside(task) + self._in_blocks(place, place) for place, task in zip(places, stage, strict=True)]
        return float(max(self.forward[place] + more for place, more in zip(places, beside, strict=True)))

    def _in_blocks(self, convolution: int, tensor: int) -> float:
        """A copy of a tensor that a convolution reads or makes, in its own layout; 0 for other operators."""
        shapes = self.graph.tasks[tensor].shapes
        if not self.in_blocks or not self.graph.tasks[convolution].op.startswith("conv") or not shapes or len(shapes[0]) < 3:
            return 0.0
        channels = shapes[0][1]
        if channels <= PLAIN_CHANNELS:
            return 0.0
        return self.graph.tasks[tensor].output_bytes * -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK / channels

    def levels(self, stage: Sequence[Task], blocks: Blocks | None, arriving: Iterable[Task], returning: float) -> Levels:
        """Those of a stage that computes `blocks` again, whose passes hold what arrives from before and `returning` bytes from behind."""
        key = stage[0].name, stage[-1].name, len(stage), blocks.kind if blocks else "none"
        if key not in self._levels:
            self._levels[key] = self._new_levels(stage, blocks, arriving, returning)
        return self._levels[key]

    def _new_levels(self, stage: Sequence[Task], blocks: Blocks | None, arriving: Iterable[Task], returning: float) -> Levels:
        kept, inside, deferred = self._kept(stage, blocks, arriving)
        moving = np.array([self.backward[self.graph.position[task.name]] for task in stage])
        moving[:-1] += returning  # torch is given the gradients of the outputs, and holds them until the pass is over
        made = np.array([self.graph.trained_bytes_of([task]) for task in stage])
        fresh, seen = np.zeros(len(stage)), set[str]()
        for place in reversed(range(len(stage))):
            own = [name for name in dict.fromkeys(stage[place].parameters) if name not in seen]
            seen.update(own)
            fresh[place] = sum(self.graph.weights[name].bytes for name in own if self.graph.weights[name].trained)
        saved = float(kept.sum())
        return Levels(np.cumsum(kept) + inside + moving, made, fresh, deferred, saved)

    def _kept(self, stage: Sequence[Task], blocks: Blocks | None, arriving: Iterable[Task]) -> tuple[Floats, Floats, Floats]:
        """What each task adds to what is kept; what is there of its block when that is computed again; what it leaves for W."""
        kept, inside, deferred = (np.zeros(len(stage)) for _ in range(3))
        block_of = blocks.block_of if blocks else {}
        first, block, members = dict[str, int](), -1, set[str]()
        for task in arriving:
            first[task.name] = 0
            kept[0] += task.output_bytes
        for place, task in enumerate(stage):
            again, weighted = block_of.get(task.name), any(self.graph.weights[name].trained for name in task.parameters)
            if again is None:
                block = -1
                beside = task.saved_bytes + (loss_parts(self.graph, task)[0] if task.op == LOSS_OP else 0.0)
                kept[place] += beside + self._fresh_bytes(self._saved_of(task), first, place)
            else:
                if again != block:
                    block, members = again, {one.name for one in stage if block_of.get(one.name) == again}
                    outside = sorted(
                        {self.graph.tasks[one].name for name in members for one in self._producers[self.graph.position[name]]} - members
                    )
                    kept[place] += self._fresh_bytes(outside, first, place)
                    within = 0.0
                within += task.saved_bytes + sum(self._bytes(name) for name in task.saved if name in members)
                inside[place] = within
            if weighted:
                deferred[place] += task.output_bytes + task.saved_bytes
                deferred[place] += sum(self._bytes(name) for name in self._saved_of(task) if first.get(name) == place)
        return kept, inside, deferred

    def _saved_of(self, task: Task) -> Sequence[str]:
        """What is kept for a task, without the batch, which is there anyway; the loss keeps no logits."""
        return [] if task.op == LOSS_OP else [name for name in task.saved if self.graph.tasks[self.graph.position[name]].op != INPUT_OP]

    def _fresh_bytes(self, names: Iterable[str], first: dict[str, int], place: int) -> float:
        fresh = [name for name in names if name not in first and self.graph.tasks[self.graph.position[name]].op != INPUT_OP]
        first |= dict.fromkeys(fresh, place)
        return sum(map(self._bytes, fresh))

    def _bytes(self, name: str) -> float:
        return self.graph.tasks[self.graph.position[name]].output_bytes


def _is_view(task: Task) -> bool:
    return task.launch_count == 0 and task.op != INPUT_OP


def _of_weight(task: Task) -> bool:
    """Whether it only looks at a weight another way."""
    return _is_view(task) and bool(task.parameters)


def _largest_inside(task: Task) -> float:
    """The largest tensor that a group makes and uses itself."""
    return max((member.output_bytes for member in task.members if member.name != task.name), default=0.0)
