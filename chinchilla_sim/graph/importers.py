"""Read task graphs from files: so far our own JSON (`TaskGraph.to_dict`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.task import GRAPH_FORMAT, GRAPH_VERSION, Task, TaskGraph


def read_graph(path: Path) -> TaskGraph:
    """The graph in a file of format `chinchilla`; ScenarioError says what is wrong with it."""
    try:
        data: Any = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError([Mistake("", f"cannot be read: {error}", "check [model] graph")], str(path)) from error
    except json.JSONDecodeError as error:
        raise ScenarioError([Mistake("", f"line {error.lineno}: {error.msg}", "the file is not whole")], str(path)) from error
    if not isinstance(data, dict) or data.get("format") != GRAPH_FORMAT or data.get("version") != GRAPH_VERSION:
        cure = f'the file needs "format": "{GRAPH_FORMAT}" and "version": {GRAPH_VERSION}'
        raise ScenarioError([Mistake("format", "not a task graph of this version", cure)], str(path))
    try:
        graph = TaskGraph.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScenarioError([Mistake("", f"{type(error).__name__}: {error}", "see TaskGraph.to_dict")], str(path)) from error
    _check_numbers(graph, str(path))
    _check(graph, str(path))
    return graph


def _check_numbers(graph: TaskGraph, source: str) -> None:
    """Amounts are numbers >= 0, counts are whole."""
    found: list[tuple[str, object, bool]] = [("batch_size", graph.batch_size, graph.batch_size != 0)]
    found += [(f"parameter_bytes.{name}", size, True) for name, size in graph.parameter_bytes.items()]
    for index, task in enumerate(graph.tasks):
        amounts = [field for field in Task.__dataclass_fields__ if field.endswith(("_flop", "_bytes", "_count"))]
        found += [(f"tasks.{index}.{field}", getattr(task, field), True) for field in amounts]
    mistakes = [
        Mistake(where, f"{value!r} is not a number of the right sign", "give a number >= 0 (batch_size: >= 1)")
        for where, value, good in found
        if isinstance(value, bool) or not isinstance(value, int | float) or not good or not 0 <= value < float("inf")
    ]
    if not mistakes and not isinstance(graph.batch_size, int):
        mistakes = [Mistake("batch_size", f"{graph.batch_size!r} is not a whole number")]
    if mistakes:
        raise ScenarioError(mistakes, source)


def _check(graph: TaskGraph, source: str) -> None:
    mistakes = []
    names = [task.name for task in graph.tasks]
    if len(set(names)) != len(names):
        mistakes.append(Mistake("tasks", "two tasks share a name"))
    for index, (producer, consumer) in enumerate(graph.edges):
        unknown = [name for name in (producer, consumer) if name not in graph.position]
        if unknown:
            mistakes.append(Mistake(f"edges.{index}", f"unknown task {unknown[0]!r}"))
        elif graph.position[producer] >= graph.position[consumer]:
            mistakes.append(Mistake(f"edges.{index}", f"{producer} -> {consumer} goes backwards", "list tasks in topological order"))
    for index, task in enumerate(graph.tasks):
        mistakes += [
            Mistake(f"tasks.{index}.parameters", f"unknown parameter {p!r}") for p in task.parameters if p not in graph.parameter_bytes
        ]
        mistakes += [Mistake(f"tasks.{index}.saved", f"unknown task {name!r}") for name in task.saved if name not in graph.position]
    if not graph.compute_tasks:
        mistakes.append(Mistake("tasks", "no task computes anything"))
    if mistakes:
        raise ScenarioError(mistakes, source)
