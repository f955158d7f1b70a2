"""How a tensor-parallel group of devices divides every operator of a graph: what the runtime does, and the simulator counts.

A product with a weight whose input is whole is cut by columns (Shoeybi et al. 2019): its output is split, and the gradient of its input is
a sum over the devices. One whose input is split along what it sums over is cut by rows: its output is a sum. Lookups
are cut by rows of the table. What lies between works on its part (`layout.py`), or has its inputs gathered. A loss is the
user's own function of whole outputs, unless it is marked as fused: then it works on its part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from chinchilla_sim.graph.layout import UNKNOWN, Layout, blocks_fit, carry, turned_back
from chinchilla_sim.graph.operators import Operand
from chinchilla_sim.graph.task import FUSED_LOSS, INPUT_OP, LOSS_OP, WEIGHT_PREFIX, Task, TaskGraph

GROUPED_SUM = ("linear", "conv", "matmul", "mm", "bmm", "addmm")
NARROWEST = 32
"""Fewer output features than this on each device are not worth a collective."""

Kind = Literal["whole", "split", "columns", "rows", "lookup"]


@dataclass(frozen=True, slots=True)
class Division:
    """What the devices do with one operator.

    `gathered` are the inputs that are made whole before, `reduced` the whole inputs whose gradients are sums over the devices, `parts_of`
    the operands, by position, of which each device reads a part. Rows and lookups add up their outputs; `ends` says that
    the output leaves the model and is made whole behind.
    """

    kind: Kind = "whole"
    gathered: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    parts_of: Mapping[int, Layout] = field(default_factory=dict)
    output: Layout | None = None
    ends: bool = False


@dataclass(frozen=True)
class GraphDivision:
    """Divisions by operator, and the layouts of divided weights by name."""

    operators: Mapping[str, Division]
    weights: Mapping[str, Layout]


class _Conflict(Exception):
    """A weight that two operators would divide differently."""


def divide_graph(graph: TaskGraph, degree: int) -> GraphDivision:
    """The divisions for a group of `degree` devices; weights that operators would divide differently stay whole."""
    whole: frozenset[str] = frozenset()
    while True:
        divider = _Divider(graph, degree, whole)
        try:
            operators = {kernel.name: divider.divide(kernel) for kernel in divider.kernels.values()}
        except _Conflict as conflict:
            whole |= {str(conflict)}
            continue
        for name, layout in divider.layouts.items():
            if name not in divider.read:
                operators[name] = replace(operators[name], ends=True, output=layout)
        return GraphDivision(operators, {name: layout for name, layout in divider.weights.items() if layout is not None})


def is_product(task: Task) -> bool:
    """Whether it multiplies by weights, or looks them up."""
    multiplies = task.weight_gradient_flop > 0 or (bool(task.parameters) and any(name in task.op for name in GROUPED_SUM))
    return multiplies or task.op.startswith("embedding")


class Kernels:
    """The operators of a graph by name; views of a weight (a transposed one) stand for the weight itself."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph = graph
        self.kernels = {kernel.name: kernel for task in graph.tasks for kernel in task.kernels}
        self.weight_views = {
            kernel.name
            for kernel in self.kernels.values()
            if kernel.operands and all(name.startswith(WEIGHT_PREFIX) for name in kernel.operands)
        }

    def inputs(self, task: Task) -> list[str]:
        """Operators that it reads, each once; of a loss the output that it compares."""
        names = self._compared(task) if task.op == LOSS_OP else task.operands
        return [name for name in dict.fromkeys(names) if name in self.kernels and name not in self.weight_views]

    def weight_of(self, operand: str) -> str | None:
        """The weight that an operand is, or a view of."""
        if operand.startswith(WEIGHT_PREFIX):
            return operand.removeprefix(WEIGHT_PREFIX)
        return self.weight_of(self.kernels[operand].operands[0]) if operand in self.weight_views else None

    def _compared(self, loss: Task) -> list[str]:
        """A loss reads the last operator of the task whose output it keeps."""
        return [self.graph.tasks[self.graph.position[name]].kernels[-1].name for name in loss.saved[:1] if name in self.graph.position]

    @cached_property
    def users(self) -> dict[str, list[Task]]:
        """Operators by what they read."""
        found: dict[str, list[Task]] = {}
        for kernel in self.kernels.values():
            for name in self.inputs(kernel):
                found.setdefault(name, []).append(kernel)
        return found


class _Divider(Kernels):
    def __init__(self, graph: TaskGraph, degree: int, whole: frozenset[str]) -> None:
        super().__init__(graph)
        self.degree, self.whole = degree, whole
        self.layouts: dict[str, Layout] = {}
        self.weights: dict[str, Layout | None] = {}
        self.varying: set[str] = set()
        self.read = {name for kernel in self.kernels.values() for name in self.inputs(kernel)}
        # A graph of amounts alone says which tensors are split, not how.
        self.exact = all(kernel.shapes for kernel in self.kernels.values() if kernel.op != LOSS_OP)

    def divide(self, task: Task) -> Division:
        """The division of the next operator in the graph's order."""
        if task.op == INPUT_OP or self.varying.intersection(self.inputs(task)):
            self.varying.add(task.name)
        if task.op == INPUT_OP or task.name in self.weight_views or self.degree == 1:
            return Division()
        division = self._divide(task)
        if division.output is not None:
            self.layouts[task.name] = division.output
        for position, name in enumerate(task.operands):
            self._use(name, division.parts_of.get(position))
        return division

    def _divide(self, task: Task) -> Division:
        split = tuple(name for name in self.inputs(task) if name in self.layouts)
        if task.op == LOSS_OP:
            return Division(gathered=() if FUSED_LOSS in task.attributes else split)
        if is_product(task):
            rows = self._rows(task) if split else None
            return rows or replace(self._columns(task), gathered=split)
        if not split:
            return Division()
        return (self._carried(task) if self.exact else self._carried_unknown(task)) or Division(gathered=split)

    def _use(self, operand: str, layout: Layout | None) -> None:
        """Note how an operator divides a weight."""
        name = self.weight_of(operand)
        if name is None or self.kernels.get(operand, _NO_TASK).op in ("detach",):
            return
        if operand in self.weight_views and layout is not None and self.exact:
            layout = turned_back(self.kernels[operand], len(self.graph.weights[name].shape), layout)
        if self.weights.setdefault(name, layout) != layout:
            raise _Conflict(name)

    def _may_divide(self, operand: str) -> bool:
        name = self.weight_of(operand)
        if name is None or name in self.whole:
            return False
        if operand not in self.weight_views or not self.exact:
            return True
        view = self.kernels[operand]
        direct = view.operands[0].startswith(WEIGHT_PREFIX)
        return direct and turned_back(view, len(self.graph.weights[name].shape), Layout(0)) is not None

    # Products

    def _columns(self, task: Task) -> Division:
        reduced = self._reduced(task)
        if not self.exact:
            wide = task.op.startswith("embedding") or not task.shapes or not task.shapes[0] or task.shapes[0][-1] >= NARROWEST * self.degree
            if not wide:
                return Division()
            parts_of = {position: UNKNOWN for position, name in enumerate(task.operands) if self.weight_of(name)}
            lookup = task.op.startswith("embedding")
            return Division("lookup" if lookup else "columns", (), () if lookup else reduced, parts_of, None if lookup else UNKNOWN)
        if task.op == "embedding":
            rows = self.graph.weights[name].shape[0] if (name := self.weight_of(task.operands[0])) else 0
            # Positions look up the same rows every time: a small table, not worth a collective.
            fits = self._may_divide(task.operands[0]) and blocks_fit(rows, self.degree) and task.name in self.varying
            fits = fits and not {"sparse", "scale_grad_by_freq"} & {*dict(task.attributes)}
            return Division("lookup", parts_of={0: Layout(0)}) if fits else Division()
        dim = 1 if task.op.startswith("conv") else len(task.shapes[0]) - 1
        width = task.shapes[0][dim]
        places = _COLUMNS.get(task.op)
        if places is None or width < NARROWEST * self.degree or not blocks_fit(width, self.degree) or not self._is_plain(task):
            return Division()
        parts = self._parts(task, Layout(dim))
        parts_of = {position: Layout(where, parts) for position, where in places.items() if position < len(task.operands)}
        if not all(self._may_divide(task.operands[position]) for position in parts_of):
            return Division()
        return Division("columns", (), reduced, parts_of, Layout(dim, parts))

    def _rows(self, task: Task) -> Division | None:
        """By rows where the one split input is split along what the product sums over."""
        if not self.exact:
            lookup = task.op.startswith("embedding")
            return Division("lookup" if lookup else "rows", parts_of={i: UNKNOWN for i, n in enumerate(task.operands) if self.weight_of(n)})
        place = _ROWS.get(task.op)
        if place is None or not self._is_plain(task):
            return None
        factor, weight, where, summed = place
        layout = self.layouts.get(task.operands[factor])
        if layout is None or not self._may_divide(task.operands[weight]):
            return None
        rank = len(self.kernels[task.operands[factor]].shapes[0])
        if layout.dim != summed % rank:
            return None
        return Division("rows", parts_of={weight: Layout(where, layout.parts)})

    def _is_plain(self, task: Task) -> bool:
        """No groups and no factors of the addend; weights that are matrices, where rows and columns are told by position."""
        attributes = dict(task.attributes)
        if attributes.get("groups", 1) != 1 or {"alpha", "beta"} & {*attributes}:
            return False
        if task.op in ("mm", "matmul"):
            return len(task.operands) == 2 and len(self._shape(task.operands[1])) == 2 and self.weight_of(task.operands[0]) is None
        return task.op != "addmm" or (self.weight_of(task.operands[0]) is not None and len(self._shape(task.operands[0])) == 1)

    def _shape(self, operand: str) -> tuple[int, ...]:
        if operand.startswith(WEIGHT_PREFIX):
            return self.graph.weights[operand.removeprefix(WEIGHT_PREFIX)].shape
        return self.kernels[operand].shapes[0]

    def _reduced(self, task: Task) -> tuple[str, ...]:
        """Whole inputs of a divided operator that have a gradient: each device makes a part of its sum."""
        wanted = (name for name in self.inputs(task) if self.kernels[name].needs_gradient and self.kernels[name].op != INPUT_OP)
        return tuple(wanted) if task.input_gradient_flop else ()

    def _parts(self, task: Task, layout: Layout) -> int:
        """In how many parts the outputs of a product are divided, so that the operators behind it can keep the split."""
        candidates = dict.fromkeys([1, *self._counts_behind(task, layout.dim)])
        fitting = [parts for parts in candidates if task.shapes[0][layout.dim] % (parts * self.degree) == 0 or parts == 1]
        return min(fitting, key=lambda parts: (self._stuck(task, Layout(layout.dim, parts)), parts))

    def _counts_behind(self, task: Task, dim: int) -> Iterator[int]:
        for user in self._alone_behind(task):
            yield len(user.shapes)
            yield from (size for size in user.shapes[0] if 1 < size < task.shapes[0][dim])
            if user.op == "getitem" and user.shapes[0][-1]:
                yield task.shapes[0][-1] // user.shapes[0][-1]

    def _alone_behind(self, task: Task) -> Iterator[Task]:
        """Operators with one input behind this one, up to those with several."""
        for user in self.users.get(task.name, []):
            if len(user.operands) == 1 and user.shapes:
                yield user
                yield from self._alone_behind(user)

    def _stuck(self, task: Task, layout: Layout) -> int:
        """How many of them would need a split of this layout whole."""
        count = 0
        for user in self.users.get(task.name, []):
            if len(user.operands) == 1 and user.shapes:
                found = carry(user, [self._operand(task.name)], [layout], self.degree)
                count += self._stuck(user, found.output) if found else 1
        return count

    # Everything else

    def _carried(self, task: Task) -> Division | None:
        if ("norm" in task.op and task.op != "batch_norm") or not task.shapes:
            return None
        operands = [self._operand(name) for name in task.operands]
        layouts = [self.layouts.get(name) for name in task.operands]
        found, gathered = carry(task, operands, layouts, self.degree), tuple[str, ...]()
        if found is None and "attention" in task.op and layouts[0] is not None:
            # Keys and values of fewer heads than devices are cut within a head: they alone are made whole, and queries keep their heads.
            gathered = tuple(dict.fromkeys(name for name in task.operands[1:3] if name in self.layouts))
            found = carry(task, operands, [None if name in gathered else self.layouts.get(name) for name in task.operands], self.degree)
        if found is None:
            return None
        if any(operands[position].is_weight and not self._may_divide(task.operands[position]) for position in found.parts_of):
            return None
        whole = [name for name in self._reduced(task) if name not in self.layouts or name in gathered]
        return Division("split", gathered, tuple(whole), found.parts_of, found.output)

    def _carried_unknown(self, task: Task) -> Division | None:
        """Norms over the split dimension, and sums of a split with a whole tensor that both carry gradients, need them whole."""
        whole = [name for name in self.inputs(task) if name not in self.layouts and self.kernels[name].needs_gradient]
        if ("norm" in task.op and "batch_norm" not in task.op) or not task.needs_gradient:
            return None
        return None if whole and task.op in ("add", "sub", "mul", "div", "cat") else Division("split", output=UNKNOWN)

    def _operand(self, name: str) -> Operand:
        if name.startswith(WEIGHT_PREFIX):
            weight = self.graph.weights[name.removeprefix(WEIGHT_PREFIX)]
            return Operand(name, weight.shape, weight.bytes, is_weight=True, needs_gradient=weight.trained)
        kernel = self.kernels[name]
        trained = name in self.weight_views and self.graph.weights[str(self.weight_of(name))].trained
        return Operand(
            name, kernel.shapes[0] if kernel.shapes else (), kernel.output_bytes, needs_gradient=kernel.needs_gradient or trained
        )


_NO_TASK = Task("", "")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_COLUMNS: Mapping[str, Mapping[int, int]] = {
    "linear": {1: 0, 2: 0},
    "addmm": {0: 0, 2: 1},
    "mm": {1: 1},
    "matmul": {1: 1},
    "_grouped_mm": {1: 2},
} | {name: {1: 0, 2: 0} for name in _CONVOLUTIONS}
"""Operator -> position of each divided weight -> its dimension of output features."""

_ROWS: Mapping[str, Sequence[int]] = {
    "linear": (0, 1, 1, -1),
    "addmm": (1, 2, 0, -1),
    "mm": (0, 1, 0, -1),
    "matmul": (0, 1, 0, -1),
    "_grouped_mm": (0, 1, 1, -1),
} | dict.fromkeys(_CONVOLUTIONS, (0, 1, 1, 1))
"""Operator -> positions of input and weight, the weight's dimension of input features, and the input's."""
