"""Build a task graph operator by operator, without torch: tracing, formulas, imports and compression all end here.

builder = GraphBuilder(batch_size=64)
x = builder.input("x", (64, 784))
y = builder.apply("linear", [x, builder.weight("w", (512, 784)), builder.weight("b", (512,))], [(64, 512)])
graph = builder.finish(y, "one-layer", source="by hand")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from chinchilla_sim.graph.operators import Call, Operand, amounts_of
from chinchilla_sim.graph.task import INPUT_OP, WEIGHT_PREFIX, Shape, Task, TaskGraph, Weight, with_loss


class GraphBuilder:
    """Collects tasks in topological order; `apply` works out what each costs and which need a gradient."""

    def __init__(self, batch_size: int, training: bool = True, value_bytes: float = 4.0) -> None:
        self.batch_size, self.training, self.value_bytes = batch_size, training, value_bytes
        self.tasks: dict[str, Task] = {}
        self.weights: dict[str, Weight] = {}
        self.edges: dict[tuple[str, str], None] = {}
        self.notes: list[str] = []
        self._base: dict[str, str] = {}
        self._weight_of_view: dict[str, str] = {}
        self._name_count: dict[str, int] = {}

    def input(self, name: str, shape: Shape, value_bytes: float | None = None) -> str:
        """An input of the model, shape with the batch first."""
        size = prod(shape) * self._value_bytes(value_bytes)
        task = Task(name, INPUT_OP, output_bytes=size, needs_gradient=False, launch_count=0, shapes=(tuple(shape),))
        return self._add(task, name)

    def weight(self, name: str, shape: Shape, value_bytes: float | None = None, trained: bool = True, buffer: bool = False) -> str:
        """A parameter or buffer as an operand; the same name again is the same weight."""
        size = prod(shape) * self._value_bytes(value_bytes)
        return self.keep(name, Weight(size, tuple(shape), trained and not buffer, buffer))

    def keep(self, name: str, weight: Weight) -> str:
        """A weight as it stands, as an operand."""
        self.weights.setdefault(name, weight)
        return WEIGHT_PREFIX + name

    def apply(
        self,
        op: str,
        operands: Sequence[str],
        shapes: Sequence[Shape],
        *,
        name: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        view: bool = False,
        output_bytes: float | None = None,
        floating: bool = True,
        module: str = "",
        value_bytes: float | None = None,
    ) -> str:
        """A task that calls an operator; returns its name (by default the operator's, numbered as torch.fx does).

        `shapes` are of all outputs; `view` marks operators that only relabel memory; integer outputs are not `floating`
        and carry no gradient.
        """
        shapes, attributes = tuple(tuple(shape) for shape in shapes), dict(attributes or {})
        values = self._value_bytes(value_bytes)
        size = sum(prod(shape) for shape in shapes) * values if output_bytes is None else output_bytes
        name = name or self._fresh_name(op)
        call = Call(op, tuple(self._operand(operand) for operand in operands), shapes, size, values, attributes)
        known: dict[str, Any] = {
            "operands": tuple(operands), "shapes": shapes, "attributes": tuple(sorted(attributes.items())), "module": module,
        }  # fmt: skip
        differentiable = floating and not attributes.get("no_grad", False)
        if view:
            needs = bool(call.gradient_operands) and differentiable
            parameters = tuple(operand.name.removeprefix(WEIGHT_PREFIX) for operand in call.operands if operand.is_weight)
            task = Task(name, op, output_bytes=size, needs_gradient=needs, launch_count=0, parameters=parameters, **known)
        else:
            if not differentiable:
                call = _without_gradient(call)
            fields = amounts_of(call, bool(attributes.get("training", True)))
            fields["saved"] = tuple(base or name for base in fields.get("saved", ()))
            task = Task(name, op, **fields, **known)
        bases = [operand.base for operand in call.operands if operand.base]
        for operand in operands:
            if not operand.startswith(WEIGHT_PREFIX):
                self.edges[(operand, name)] = None
        if view and call.operands and all(operand.is_weight for operand in call.operands):
            self._weight_of_view[name] = call.operands[0].name
        return self._add(task, bases[0] if view and bases else name)

    def shape(self, name: str) -> Shape:
        """Shape of a task's first output, or of a weight."""
        if name.startswith(WEIGHT_PREFIX):
            return self.weights[name.removeprefix(WEIGHT_PREFIX)].shape
        return self.tasks[name].shapes[0]

    def finish(self, output: str, name: str, source: str = "") -> TaskGraph:
        """The graph, with the loss behind `output` when training."""
        tasks, edges = tuple(self.tasks.values()), tuple(self.edges)
        if self.training:
            tasks, edges = with_loss(tasks, edges, output)
        return TaskGraph(name, self.batch_size, tasks, edges, dict(self.weights), source, self.value_bytes, tuple(self.notes))

    def _value_bytes(self, value_bytes: float | None) -> float:
        return float(self.value_bytes if value_bytes is None else value_bytes)

    def _add(self, task: Task, base: str) -> str:
        if task.name in self.tasks:
            raise ValueError(f"two tasks are called {task.name!r}")
        self.tasks[task.name] = task
        self._base[task.name] = base
        return task.name

    def _operand(self, name: str) -> Operand:
        if name.startswith(WEIGHT_PREFIX):
            weight = self.weights[name.removeprefix(WEIGHT_PREFIX)]
            return Operand(name, weight.shape, weight.bytes, is_weight=True, needs_gradient=weight.trained)
        task = self.tasks[name]
        shape = task.shapes[0] if task.shapes else ()
        weight_name = self._weight_of_view.get(name)
        if weight_name:
            # A transposed weight is still that weight: it does not grow with the batch, and its gradient is a weight's.
            weight = self.weights[weight_name.removeprefix(WEIGHT_PREFIX)]
            size = weight.bytes * prod(shape) / weight.value_count if weight.value_count else task.output_bytes
            return Operand(weight_name, shape, size, is_weight=True, needs_gradient=weight.trained)
        return Operand(name, shape, task.output_bytes, needs_gradient=task.needs_gradient, base=self._base[name])

    def _fresh_name(self, op: str) -> str:
        count = self._name_count.get(op, 0)
        self._name_count[op] = count + 1
        return f"{op}_{count}" if count else op


def _without_gradient(call: Call) -> Call:
    operands = tuple(Operand(o.name, o.shape, o.bytes, o.is_weight, False, o.base) for o in call.operands)
    return Call(call.op, operands, call.shapes, call.output_bytes, call.value_bytes, call.attributes)
