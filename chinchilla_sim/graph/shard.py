"""One device's part of a graph under tensor, sequence, context and expert parallelism, and the collectives between devices.

Tensor parallelism by t (Shoeybi et al. 2019), read off the graph: a product with a weight whose input is whole is cut by columns
(its output is split), one whose input is split is cut by rows (partial sums, all-reduced behind it). What lies between
works on its part; norms over the split dimension, and additions of split and whole tensors, gather first. A whole
input of column products has its gradient all-reduced once. Embeddings are cut by rows of the vocabulary. Work on
whole tensors is done by every device, or with sequence parallelism (Korthikanti et al. 2022) divided by positions; the
all-reduces then move the same bytes as a reduce-scatter and an all-gather.

Context parallelism by c divides every tensor by positions; attention passes keys and values around (forward once,
backward twice). Expert parallelism by e divides the weights of experts (modules named `experts`); rows travel to their
expert and back, forward and backward, by all-to-all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from chinchilla_sim.graph.task import INPUT_OP, WEIGHT_PREFIX, Task, TaskGraph

Axis = Literal["tensor", "context", "expert"]
GROUPED_SUM = ("linear", "conv", "matmul", "mm", "bmm", "addmm")
EXPERTS = "experts"
NARROWEST = 32
"""Fewer output features than this on each device are not worth a collective."""

_AMOUNTS = (
    "forward_flop", "input_gradient_flop", "weight_gradient_flop", "read_bytes", "written_bytes", "weight_bytes", "backward_read_bytes",
    "backward_written_bytes", "backward_weight_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Collective:
    """What the devices of one axis exchange within a pass: payload bytes of each device, for the graph's batch."""

    axis: Axis
    kind: str
    payload_bytes: float


@dataclass(frozen=True, slots=True)
class PassCollectives:
    """Collectives inside the forward and the backward pass of one task."""

    forward: tuple[Collective, ...] = ()
    backward: tuple[Collective, ...] = ()


@dataclass(frozen=True)
class ShardedGraph:
    """The graph with one device's amounts, and the collectives by task."""

    graph: TaskGraph
    collectives: dict[str, PassCollectives] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What becomes of one operator."""

    work: float
    output: float
    weights: float
    collectives: PassCollectives


def shard_graph(graph: TaskGraph, tensor: int = 1, sequence: bool = False, context: int = 1, expert: int = 1) -> ShardedGraph:
    """One device's amounts of every task; groups are sums over their members."""
    cutter = _Cutter(graph, tensor, sequence, context, expert)
    cuts = {kernel.name: cutter.cut(kernel) for task in graph.tasks for kernel in task.kernels}
    weights = {name: replace(weight, bytes=weight.bytes * cutter.weight_share.get(name, 1.0)) for name, weight in graph.weights.items()}
    tasks = tuple(_sharded(task, cuts) for task in graph.tasks)
    collectives = {task.name: _joined([cuts[kernel.name].collectives for kernel in task.kernels]) for task in graph.tasks}
    return ShardedGraph(replace(graph, tasks=tasks, weights=weights), collectives)


def _joined(several: list[PassCollectives]) -> PassCollectives:
    return PassCollectives(
        tuple(found for one in several for found in one.forward), tuple(found for one in several for found in one.backward)
    )


def _sharded(task: Task, cuts: dict[str, _Cut]) -> Task:
    members = tuple(_one(member, cuts[member.name]) for member in task.members)
    if not members:
        return _one(task, cuts[task.name])
    sums = {name: sum(getattr(member, name) for member in members) for name in _AMOUNTS}
    inner = sum(member.output_bytes for member in task.members) or 1.0
    share = sum(member.output_bytes for member in members) / inner
    output = cuts[task.members[-1].name].output * task.output_bytes
    return replace(task, members=members, output_bytes=output, saved_bytes=task.saved_bytes * share, **sums)


def _one(task: Task, cut: _Cut) -> Task:
    """Amounts times their shares; the parts that are weights by the weights' share."""
    changed = {name: getattr(task, name) * cut.work for name in _AMOUNTS}
    for total, part in (("read_bytes", "weight_bytes"), ("backward_read_bytes", "backward_weight_bytes")):
        weights = getattr(task, part)
        changed[part] = weights * cut.weights
        changed[total] = (getattr(task, total) - weights) * cut.work + weights * cut.weights
    return replace(task, output_bytes=task.output_bytes * cut.output, saved_bytes=task.saved_bytes * cut.work, **changed)


class _Cutter:
    def __init__(self, graph: TaskGraph, tensor: int, sequence: bool, context: int, expert: int) -> None:
        self.graph, self.tensor, self.context, self.expert = graph, tensor, context, expert
        self.whole_share = (1.0 / tensor if sequence else 1.0) / context
        self.split_share = 1.0 / tensor / context
        self.weight_share: dict[str, float] = {}
        self.split: set[str] = set()
        self.reduced: set[str] = set()
        self.kernels = {kernel.name: kernel for task in graph.tasks for kernel in task.kernels}
        # Views of a weight (a transposed one) stand for the weight itself.
        self.weight_views = {
            kernel.name
            for kernel in self.kernels.values()
            if kernel.operands and all(name.startswith(WEIGHT_PREFIX) for name in kernel.operands)
        }
        self.users: dict[str, list[Task]] = {}
        for kernel in self.kernels.values():
            for name in self._inputs(kernel):
                self.users.setdefault(name, []).append(kernel)

    def _inputs(self, task: Task) -> list[str]:
        return [name for name in dict.fromkeys(task.operands) if name in self.kernels and name not in self.weight_views]

    def cut(self, task: Task) -> _Cut:
        """Share of work, output and weights of one device, in the order of the graph."""
        forward = list(self._context_exchange(task))
        backward: list[Collective] = []
        if task.op == INPUT_OP:
            return _Cut(1.0, 1.0 / self.context, 1.0, PassCollectives())
        split_inputs = [name for name in self._inputs(task) if name in self.split]
        is_split = bool(split_inputs)
        is_cut = self.tensor > 1 and self._is_product(task) and (is_split or self._is_wide(task))
        weights = 1.0 / self.tensor if is_cut else 1.0
        if is_cut:
            if split_inputs or task.op.startswith("embedding"):
                forward += [Collective("tensor", "all_reduce", task.output_bytes / self.context)] * (task.output_bytes > 0)
                is_split = False
            else:
                backward += self._reduce_gradients(task)
                is_split = True
            work = self.split_share
        else:
            if is_split and (self._needs_whole(task) or not task.needs_gradient):
                gathered = sum(self.kernels[name].output_bytes for name in split_inputs)
                forward.append(Collective("tensor", "all_gather", gathered / self.tensor / self.context))
                is_split = False
            work = self.split_share if is_split else self.whole_share
        if is_split:
            self.split.add(task.name)
        backward += [replace(one, payload_bytes=2 * one.payload_bytes) for one in forward if one.axis == "context"]
        rows = list(self._expert_exchange(task))
        weights *= 1.0 / self.expert if EXPERTS in task.module.split(".") else 1.0
        if task.name not in self.weight_views:
            for name in task.parameters:
                self.weight_share.setdefault(name, weights)
        output = self.split_share if is_split else self.whole_share
        gradients = rows if task.needs_gradient else []
        return _Cut(work, output, weights, PassCollectives((*forward, *rows), (*backward, *gradients)))

    @staticmethod
    def _is_product(task: Task) -> bool:
        multiplies = task.weight_gradient_flop > 0 or (bool(task.parameters) and any(name in task.op for name in GROUPED_SUM))
        return multiplies or task.op.startswith("embedding")

    def _is_wide(self, task: Task) -> bool:
        """Whether a product has enough outputs to cut by columns: every device runs routers and small heads whole."""
        return not task.shapes or not task.shapes[0] or task.shapes[0][-1] >= NARROWEST * self.tensor

    def _needs_whole(self, task: Task) -> bool:
        """Norms over the split dimension, and sums of a split with a whole tensor that both carry gradients."""
        if "norm" in task.op and "batch_norm" not in task.op:
            return True
        whole = [name for name in self._inputs(task) if name not in self.split and self.kernels[name].needs_gradient]
        return bool(whole) and task.op in ("add", "sub", "mul", "div", "cat")

    def _reduce_gradients(self, task: Task) -> Iterator[Collective]:
        """The gradient of a whole input of column products: partial sums, all-reduced once for all products that read it."""
        for name in self._inputs(task):
            source = self.kernels[name]
            if source.needs_gradient and source.op != INPUT_OP and name not in self.reduced and task.input_gradient_flop:
                self.reduced.add(name)
                yield Collective("tensor", "all_reduce", source.output_bytes / self.context)

    def _context_exchange(self, task: Task) -> Iterator[Collective]:
        """Keys and values of the other positions."""
        if self.context > 1 and "attention" in task.op:
            keys_and_values = sum(self.kernels[name].output_bytes for name in self._inputs(task)[1:3])
            yield Collective("context", "all_gather", keys_and_values / self.tensor / self.context)

    def _expert_exchange(self, task: Task) -> Iterator[Collective]:
        """Rows on their way to the experts, and back: what the experts' products read from and hand to other operators."""
        if self.expert == 1 or not self._is_product(task) or EXPERTS not in task.module.split("."):
            return
        inner = {kernel.name for kernel in self.kernels.values() if kernel.module == task.module and self._is_product(kernel)}
        if not self._reaches(task, inner, forward=False):
            taken = sum(self.kernels[n].output_bytes for n in self._inputs(task)[:1])
            yield Collective("expert", "all_to_all", taken / self.context)
        if not self._reaches(task, inner, forward=True):
            yield Collective("expert", "all_to_all", task.output_bytes / self.context)

    def _reaches(self, task: Task, products: set[str], forward: bool) -> bool:
        """Whether another product of the same experts lies before (or behind) this one, within their module."""
        seen, left = set(), [task]
        while left:
            here = left.pop()
            others = self.users.get(here.name, []) if forward else [self.kernels[name] for name in self._inputs(here)]
            for other in others:
                if other.name in seen or other.module.split(EXPERTS)[0] != task.module.split(EXPERTS)[0] or EXPERTS not in other.module:
                    continue
                if other.name in products:
                    return True
                seen.add(other.name)
                left.append(other)
        return False
