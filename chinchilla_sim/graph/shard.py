"""One device's part of a graph under tensor, sequence, context and expert parallelism, and the collectives between devices.

Tensor parallelism by t (Shoeybi et al. 2019), as `division.py` reads it off the graph: a product with a weight whose input is whole is
cut by columns (its output is split), one whose input is split is cut by rows (partial sums, all-reduced behind it).
What lies between works on its part; norms over the split dimension, additions of split and whole tensors, and the
loss gather first. A whole input of column products has its gradient all-reduced once. Embeddings are cut by rows of
the vocabulary. Work on whole tensors is done by every device, or with sequence parallelism (Korthikanti et al. 2022)
divided by positions; the all-reduces then move the same bytes as a reduce-scatter and an all-gather.

Context parallelism by c divides every tensor by positions; attention passes keys and values around (forward once,
backward twice). Expert parallelism by e divides the weights of experts (modules named `experts`); rows travel to their
expert and back, forward and backward, by all-to-all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from chinchilla_sim.graph.division import Division, Kernels, divide_graph, is_product
from chinchilla_sim.graph.layout import local_size
from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph

Axis = Literal["tensor", "context", "expert"]
PRODUCTS = ("columns", "rows", "lookup")
EXPERTS = "experts"

_AMOUNTS = (
    "forward_flop", "input_gradient_flop", "weight_gradient_flop", "read_bytes", "written_bytes", "weight_bytes", "backward_read_bytes",
    "backward_written_bytes", "backward_weight_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Collective:
    """What the devices of one axis exchange within a pass: payload bytes of each device, for the graph's batch.

    `of` is the tensor that several operators share the exchange of: once for all of them that run together.
    """

    axis: Axis
    kind: str
    payload_bytes: float
    of: str = ""


@dataclass(frozen=True, slots=True)
class PassCollectives:
    """Collectives inside the forward and the backward pass of one task; `shared_*` are made by another task before, if that runs along."""

    forward: tuple[Collective, ...] = ()
    backward: tuple[Collective, ...] = ()
    shared_forward: tuple[Collective, ...] = ()
    shared_backward: tuple[Collective, ...] = ()


def collectives_of(tasks: Iterable[PassCollectives]) -> tuple[list[Collective], list[Collective]]:
    """What runs in the forward and in the backward pass of tasks that run together."""
    forward: list[Collective] = []
    backward: list[Collective] = []
    for task in tasks:
        for found, own, shared in ((forward, task.forward, task.shared_forward), (backward, task.backward, task.shared_backward)):
            found += own
            found += [one for one in dict.fromkeys(shared) if one not in found]
    return forward, backward


@dataclass(frozen=True)
class ShardedGraph:
    """The graph with one device's amounts, the collectives by task, and the tasks whose outputs tensor parallelism divides."""

    graph: TaskGraph
    collectives: dict[str, PassCollectives] = field(default_factory=dict)
    divided: frozenset[str] = frozenset()


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
    divided = frozenset(task.name for task in graph.tasks if cutter.is_divided(task.kernels[-1].name))
    return ShardedGraph(replace(graph, tasks=tasks, weights=weights), collectives, divided)


def _joined(several: list[PassCollectives]) -> PassCollectives:
    def joined(way: str) -> tuple[Collective, ...]:
        return tuple(found for one in several for found in getattr(one, way))

    return PassCollectives(*(joined(way) for way in ("forward", "backward", "shared_forward", "shared_backward")))


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


class _Cutter(Kernels):
    def __init__(self, graph: TaskGraph, tensor: int, sequence: bool, context: int, expert: int) -> None:
        super().__init__(graph)
        self.tensor, self.context, self.expert = tensor, context, expert
        self.whole_share = (1.0 / tensor if sequence else 1.0) / context
        self.split_share = 1.0 / tensor / context
        self.weight_share: dict[str, float] = {}
        self.divisions = divide_graph(graph, tensor).operators
        self.gathered: set[str] = set()
        self.reduced: set[str] = set()

    def is_divided(self, name: str) -> bool:
        """Whether each device holds a part of an operator's output."""
        return self.divisions[name].output is not None

    def cut(self, task: Task) -> _Cut:
        """Share of work, output and weights of one device, in the order of the graph."""
        context = list(self._context_exchange(task))
        if task.op == INPUT_OP:
            return _Cut(1.0, 1.0 / self.context, 1.0, PassCollectives())
        division = self.divisions[task.name]
        is_split = division.output is not None
        forward, shared_forward = self._gather(division.gathered)
        if division.kind in ("rows", "lookup") and task.output_bytes > 0:
            forward.append(Collective("tensor", "all_reduce", task.output_bytes / self.context))
        if division.ends:
            forward += self._gather((task.name,))[0]
        backward, shared_backward = self._reduce(division.reduced)
        backward += [replace(one, payload_bytes=2 * one.payload_bytes) for one in context]
        rows = list(self._expert_exchange(task))
        self._share_weights(task, division)
        work = self.whole_share if division.kind == "whole" else self.split_share
        weights = (1.0 / self.tensor if division.kind in PRODUCTS else 1.0) * (1.0 / self.expert if self._is_expert(task) else 1.0)
        gradients = rows if task.needs_gradient else []
        ways = ((*context, *forward, *rows), (*backward, *gradients), shared_forward, shared_backward)
        return _Cut(work, self.split_share if is_split else self.whole_share, weights, PassCollectives(*map(tuple, ways)))

    def _share_weights(self, task: Task, division: Division) -> None:
        """What a device holds of the weights that a task reads."""
        if task.name in self.weight_views:
            return
        experts = 1.0 / self.expert if self._is_expert(task) else 1.0
        divided = {self.weight_of(task.operands[position]) for position in division.parts_of}
        for name in task.parameters:
            self.weight_share.setdefault(name, experts / (self.tensor if name in divided else 1))

    @staticmethod
    def _is_expert(task: Task) -> bool:
        return EXPERTS in task.module.split(".")

    def _gather(self, names: Sequence[str]) -> tuple[list[Collective], list[Collective]]:
        """Split tensors made whole, each once for all that read it."""
        found = {name: Collective("tensor", "all_gather", self._part_bytes(name) / self.context, name) for name in names}
        fresh = [name for name in names if name not in self.gathered]
        self.gathered.update(fresh)
        return [found[name] for name in fresh], [found[name] for name in names if name not in fresh]

    def _part_bytes(self, name: str) -> float:
        """What each device gives of a split tensor: the largest part of an uneven split."""
        kernel, layout = self.kernels[name], self.divisions[name].output
        if layout is None or layout.dim < 0 or not kernel.shapes:
            return kernel.output_bytes / self.tensor
        size = kernel.shapes[0][layout.dim]
        return kernel.output_bytes * local_size(size, layout, self.tensor, 0) / size

    def _reduce(self, names: Sequence[str]) -> tuple[list[Collective], list[Collective]]:
        """The gradient of a whole input of divided operators: partial sums, all-reduced once for all operators that read it."""
        found = {name: Collective("tensor", "all_reduce", self.kernels[name].output_bytes / self.context, name) for name in names}
        fresh = [name for name in names if name not in self.reduced]
        self.reduced.update(fresh)
        return [found[name] for name in fresh], [found[name] for name in names if name not in fresh]

    def _context_exchange(self, task: Task) -> Iterator[Collective]:
        """Keys and values of the other positions."""
        if self.context > 1 and "attention" in task.op:
            keys_and_values = sum(self.kernels[name].output_bytes for name in self.inputs(task)[1:3])
            yield Collective("context", "all_gather", keys_and_values / self.tensor / self.context)

    def _expert_exchange(self, task: Task) -> Iterator[Collective]:
        """Rows on their way to the experts, and back: what the experts' products read from and hand to other operators."""
        if self.expert == 1 or not is_product(task) or EXPERTS not in task.module.split("."):
            return
        inner = {kernel.name for kernel in self.kernels.values() if kernel.module == task.module and is_product(kernel)}
        if not self._reaches(task, inner, forward=False):
            taken = sum(self.kernels[n].output_bytes for n in self.inputs(task)[:1])
            yield Collective("expert", "all_to_all", taken / self.context)
        if not self._reaches(task, inner, forward=True):
            yield Collective("expert", "all_to_all", task.output_bytes / self.context)

    def _reaches(self, task: Task, products: set[str], forward: bool) -> bool:
        """Whether another product of the same experts lies before (or behind) this one, within their module."""
        seen, left = set(), [task]
        while left:
            here = left.pop()
            others = self.users.get(here.name, []) if forward else [self.kernels[name] for name in self.inputs(here)]
            for other in others:
                if other.name in seen or other.module.split(EXPERTS)[0] != task.module.split(EXPERTS)[0] or EXPERTS not in other.module:
                    continue
                if other.name in products:
                    return True
                seen.add(other.name)
                left.append(other)
        return False
