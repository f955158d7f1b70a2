"""Rebuild a task graph with other weights or shapes: what each task then costs is worked out anew by the builder."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.task import INPUT_OP, LOSS_OP, WEIGHT_PREFIX, Shape, Task, TaskGraph, Weight


class Change:
    """What a transformation changes; this one changes nothing."""

    def weight(self, name: str, weight: Weight) -> tuple[str, Weight]:
        """Name and weight that stand for this one."""
        return name, weight

    def shapes(self, task: Task) -> tuple[Shape, ...]:
        """Shapes of a task's outputs."""
        return task.shapes

    def attributes(self, task: Task) -> dict[str, Any]:
        """Attributes of a task."""
        return dict(task.attributes)

    def replace(self, builder: GraphBuilder, task: Task, operands: Sequence[str]) -> str | None:
        """Build something else in place of a task and return the name of its output; None keeps the task."""
        return None


def rebuild(graph: TaskGraph, change: Change, note: str = "") -> TaskGraph:
    """The same model after a change. Raises ScenarioError for graphs that do not say what their tasks compute."""
    _check_known(graph)
    training = any(task.op == LOSS_OP for task in graph.tasks)
    builder = GraphBuilder(graph.batch_size, training, graph.value_bytes)
    builder.notes.extend([*graph.notes, *([note] if note else [])])
    name_of: dict[str, str] = {}
    for task in graph.tasks:
        if task.op == INPUT_OP:
            shape = task.shapes[0]
            name_of[task.name] = builder.input(task.name, shape, task.output_bytes / max(1, prod(shape)))
        elif task.op != LOSS_OP:
            operands = [_operand(builder, graph, change, name_of, operand) for operand in task.operands]
            name_of[task.name] = change.replace(builder, task, operands) or _apply(builder, graph, change, task, operands)
    _keep_weights(graph, builder, change)
    last = graph.tasks[-1]
    output = last.saved[0] if last.op == LOSS_OP else last.name
    return builder.finish(name_of[output], graph.name, graph.source)


def _keep_weights(graph: TaskGraph, builder: GraphBuilder, change: Change) -> None:
    """Weights that no task uses any more go; those that none used before stay."""
    used_before = {name for task in graph.tasks for name in task.parameters}
    used_now = {name for task in builder.tasks.values() for name in task.parameters}
    builder.weights = {name: weight for name, weight in builder.weights.items() if name in used_now}
    for name, weight in graph.weights.items():
        if name not in used_before:
            builder.keep(*change.weight(name, weight))


def _check_known(graph: TaskGraph) -> None:
    unknown = [task.name for task in graph.tasks if (task.op != LOSS_OP and not task.shapes) or task.members]
    if unknown:
        what = f"{len(unknown)} tasks, such as {unknown[0]}, do not say their operands and shapes"
        raise ScenarioError([Mistake("model.compression", what, "compress a model that is traced, built in or given by a formula")])


def _operand(builder: GraphBuilder, graph: TaskGraph, change: Change, name_of: dict[str, str], operand: str) -> str:
    if not operand.startswith(WEIGHT_PREFIX):
        return name_of[operand]
    name = operand.removeprefix(WEIGHT_PREFIX)
    return builder.keep(*change.weight(name, graph.weights[name]))


def _apply(builder: GraphBuilder, graph: TaskGraph, change: Change, task: Task, operands: Sequence[str]) -> str:
    shapes = change.shapes(task)
    before, after = (sum(prod(shape) for shape in some) for some in (task.shapes, shapes))
    # Outputs of several kinds (values and their indices) have no one size of a value: they are of the graph's.
    value_bytes = task.output_bytes / before if len(task.shapes) == 1 and before else graph.value_bytes
    return builder.apply(
        task.op,
        operands,
        shapes,
        name=task.name,
        attributes=change.attributes(task),
        view=task.launch_count == 0,
        output_bytes=task.output_bytes if before == after else task.output_bytes * after / before,
        floating=task.needs_gradient,
        module=task.module,
        value_bytes=value_bytes,
    )
