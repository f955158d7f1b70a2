"""Our own graph files (JSON): what `TaskGraph.to_dict` and `Profile.to_dict` write, or a person.

    {"format": "chinchilla-task-graph", "version": 2, "name": "two-layers", "batch_size": 64, "value_bytes": 4.0,
     "weights": {"w": {"bytes": 1605632, "shape": [512, 784]}},
     "tasks": [{"name": "x", "op": "input", "output_bytes": 200704, "needs_gradient": false, "launch_count": 0},
               {"name": "y", "op": "linear", "forward_flop": 51380224, "output_bytes": 131072, "parameters": ["w"]}],
     "edges": [["x", "y"]],
     "profile": {"times": [{"task": "y", "microbatch_size": 16, "forward_s": 0.001, "backward_s": 0.002}]}}

All amounts are of one batch of `batch_size` samples, in flop, bytes and seconds; they scale with the batch except where said.
Fields with a value in brackets may be left out; others than these are refused.

    name, batch_size        name of the model; samples of the batch that the amounts are for, >= 1
    source, notes ["", []]  where the graph comes from; sentences on what is not exact in it
    value_bytes [4.0]       bytes of one activation value
    edges                   pairs [producer, consumer] of task names, each once

A weight (`weights`, by name; one that several tasks use stands once):

    bytes                   as stored, whatever the batch
    shape [[]]              lengths of its dimensions, from which its values are counted
    trained [true]          has a gradient and optimizer state
    buffer [false]          is no parameter (needs "trained": false)

A task (`tasks`, in topological order, the model's inputs, op "input", first):

    name, op                its own name; what it computes, as PyTorch calls it ("linear", "conv2d", "relu"; "input")
    forward_flop, input_gradient_flop, weight_gradient_flop [0]
                            flop of the forward pass, and of the two halves of the backward pass
    output_bytes [0]        what each consumer reads, and what crosses a cut behind the task
    read_bytes, written_bytes [0]                       memory traffic of the forward pass, weights included
    backward_read_bytes, backward_written_bytes [0]     the same of the backward pass
    weight_bytes, backward_weight_bytes [0]             parts of both that do not grow with the batch
    parameters [[]]         names of its weights
    saved [[]]              tasks whose outputs it keeps for its backward pass (its own name is allowed)
    saved_bytes [0]         what it keeps beside them
    needs_gradient [true]   has a backward pass
    launch_count [1]        kernels that the forward pass starts (0: none, as a view)
    recomputable [true]     may run twice
    operands [[]]           what it reads, in order: task names, or "weight:" and a weight's name
    shapes [[]]             lists of lengths, one per output, the batch included
    attributes [[]]         pairs [name, value] of the operator's arguments
    module [""]             path in the user's model
    members [[]]            for a group: the tasks it stands for, written in the same way; its amounts are their sums

`profile` [{}], what was measured:

    times [[]]              {task, microbatch_size (>= 1), forward_s, backward_s, device [""], busy_ranks [0], spread [0]}: seconds
                            of one task on one kind of device; a task's sizes differ; spread is (p75 - p25) / median
    memory_bytes [{}]       by task: what it occupies on its device, whatever the microbatch
    colocated [{}]          by task: a class; tasks of one class stay on one device
    variants [{}]           by task: a list of {tensor_parallel_degree (>= 1), recompute, seconds (forward and backward of one
                            sample), parameter_bytes, stash_bytes (per microbatch in flight), fixed_bytes,
                            forward_sync_bytes [[]], backward_sync_bytes [[]] (pairs [neighbouring task, bytes])}
    source [""]             where the figures come from
    input_s [0]             seconds in which a rank gets its part of a batch, before each step
    pass_start_s [[]]       [forward, backward] seconds with which each pass of a stage begins, beside its tasks
    sharding_s [[]]         [forward, backward] seconds that ZeRO 3 adds to passes with all weights, where each pass gathers them once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from chinchilla_sim.graph.importers.reading import Fields, Report, is_amount, is_count, read_object, refuse_twice, show
from chinchilla_sim.graph.profile import Profile, TaskTime, Variant, repeated_rows
from chinchilla_sim.graph.task import GRAPH_FORMAT, GRAPH_VERSION, INPUT_OP, WEIGHT_PREFIX, Task, TaskGraph, Weight
from chinchilla_sim.scenario.check import suggest

_GRAPH_KEYS = ("format", "version", "name", "batch_size", "source", "value_bytes", "notes", "weights", "tasks", "edges", "profile")
_NOT_IN_FILES = ("scales", "tasks", "held_bytes")
_PROFILE_KEYS = tuple(item.name for item in fields(Profile) if item.name not in _NOT_IN_FILES)
_AT_LEAST_ONE = ("microbatch_size", "tensor_parallel_degree")
_TRAVERSED = ("members",)
_DEEPEST = 20


def graph_file(graph: TaskGraph, profile: Profile | None = None) -> dict[str, Any]:
    """Content of a file that `read_native` reads back to this graph and profile."""
    measured = profile.to_dict() if profile else {}
    return graph.to_dict() | ({"profile": measured} if measured else {})


def read_native(path: Path) -> tuple[TaskGraph, Profile]:
    """The graph in a file of format `chinchilla`, and its profile."""
    report = Report(path)
    file = read_object(report)
    _check_kinds(file)
    report.stop_if_wrong()
    graph, profile = TaskGraph.from_dict(file.data), file.data.get("profile", {})
    _check_graph(graph, report)
    _check_profile(profile, graph, report)
    report.stop_if_wrong()
    return graph, Profile.from_dict(profile)


def _check_kinds(file: Fields) -> None:
    """Every field is known, is there, and is of the right kind."""
    if file.data.get("format") != GRAPH_FORMAT or file.data.get("version") != GRAPH_VERSION:
        cure = f'write "format": "{GRAPH_FORMAT}" and "version": {GRAPH_VERSION}, or name the file\'s format in [model] format'
        raise file.report.fail("format", "is not a task graph of this version", cure)
    file.refuse_unknown(_GRAPH_KEYS)
    file.text("name")
    file.count("batch_size", least=1)
    for key, kind in (("source", "str"), ("notes", "tuple[str, ...]")):
        _check_value(file, key, kind)
    if "value_bytes" in file.data and not file.amount("value_bytes"):
        file.wrong("value_bytes", "a number > 0")
    weights = file.table("weights")
    for name in weights.data:
        _check_record(weights.table(name), Weight)
    for row in file.tables("tasks"):
        _check_task(row)
    _check_value(file, "edges", "edges", optional=False)
    if "profile" in file.data:
        _check_profile_kinds(file.table("profile"))


def _check_task(row: Fields, depth: int = 0) -> None:
    _check_record(row, Task)
    for key in ("name", "op"):
        if row.data.get(key) == "":
            row.wrong(key, "a text")
    if depth > _DEEPEST:
        row.report.add(row.path, "is nested too deeply", "write its members into the group above")
    elif "members" in row.data:
        for member in row.tables("members"):
            _check_task(member, depth + 1)


def _check_profile_kinds(profile: Fields) -> None:
    profile.refuse_unknown(_PROFILE_KEYS)
    _check_value(profile, "source", "str")
    _check_value(profile, "input_s", "float")
    _check_value(profile, "pass_start_s", "pair of seconds")
    _check_value(profile, "sharding_s", "pair of seconds")
    if "times" in profile.data:
        for row in profile.tables("times"):
            _check_record(row, TaskTime)
    if "memory_bytes" in profile.data:
        profile.amounts("memory_bytes")
    if "colocated" in profile.data:
        classes = profile.table("colocated")
        for task in classes.data:
            _check_value(classes, task, "str")
    if "variants" in profile.data:
        variants = profile.table("variants")
        for task in variants.data:
            for row in variants.tables(task):
                _check_record(row, Variant)


def _check_record(row: Fields, record: type[Weight | Task | TaskTime | Variant]) -> None:
    """Report what hinders the object from becoming a `record`; its members are left to the caller."""
    row.refuse_unknown(item.name for item in fields(record))
    for item in fields(record):
        kind = "degree" if item.name in _AT_LEAST_ONE else str(item.type)
        if item.name not in _TRAVERSED:
            _check_value(row, item.name, kind, optional=item.default is not MISSING)


def _check_value(row: Fields, key: str, kind: str, optional: bool = True) -> None:
    good, wanted = _KINDS[kind]
    if key in row.data or not optional:
        value = row.data.get(key)
        if key not in row.data or not good(value):
            row.wrong(key, wanted)


def _is_list(value: object, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(good(item) for item in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_pair(value: object, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_text(value[0]) and good(value[1])


def _is_plain(value: object, depth: int = 0) -> bool:
    simple = value is None or isinstance(value, str | bool | int | float)
    return simple or (depth < _DEEPEST and _is_list(value, lambda item: _is_plain(item, depth + 1)))


def _is_shape(value: object) -> bool:
    return _is_list(value, is_count)


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_text, "a text"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "float": (is_amount, "a number >= 0"),
    "int": (is_count, "a whole number >= 0"),
    "degree": (lambda value: is_count(value, 1), "a whole number >= 1"),
    "Shape": (_is_shape, "a list of whole numbers >= 0"),
    "tuple[str, ...]": (lambda value: _is_list(value, _is_text), "a list of texts"),
    "tuple[Shape, ...]": (lambda value: _is_list(value, _is_shape), "a list of lists of whole numbers >= 0"),
    "tuple[tuple[str, Any], ...]": (
        lambda value: _is_list(value, lambda pair: _is_pair(pair, _is_plain)),
        "a list of pairs [name, value], the value a text, number, true, false, null or list of them",
    ),
    "tuple[tuple[str, float], ...]": (
        lambda value: _is_list(value, lambda pair: _is_pair(pair, is_amount)),
        "a list of pairs [task, bytes]",
    ),
    "pair of seconds": (
        lambda value: _is_list(value, is_amount) and len(value) in (0, 2),
        "two numbers >= 0: forward and backward",
    ),
    "edges": (lambda value: _is_list(value, lambda pair: _is_pair(pair, _is_text)), "a list of pairs [producer, consumer]"),
}
"""What a field of each annotation must hold in JSON."""


def _check_graph(graph: TaskGraph, report: Report) -> None:
    """What fields say together: unique names, known names, the order."""
    refuse_twice(((task.name, f"tasks.{index}.name") for index, task in enumerate(graph.tasks)), report, "the task")
    refuse_twice(((edge, f"edges.{index}") for index, edge in enumerate(graph.edges)), report, "the edge")
    for index, (producer, consumer) in enumerate(graph.edges):
        unknown = [name for name in (producer, consumer) if name not in graph.position]
        for name in unknown:
            report.add(f"edges.{index}", f"unknown task {show(name)}", suggest(name, list(graph.position)))
        if not unknown and graph.position[producer] >= graph.position[consumer]:
            report.add(f"edges.{index}", f"{producer} -> {consumer} goes backwards", "list tasks in topological order")
    for name, weight in graph.weights.items():
        if weight.buffer and weight.trained:
            report.add(f"weights.{name}.trained", "is true for a buffer", 'write "trained": false')
    _check_names(graph, report)
    if not graph.compute_tasks:
        report.add("tasks", "no task computes anything", 'list at least one task whose op is not "input"')
    last_input = max((index for index, task in enumerate(graph.tasks) if task.op == INPUT_OP), default=0)
    for index, task in enumerate(graph.tasks[:last_input]):
        if task.op != INPUT_OP:
            report.add(f"tasks.{index}.op", f"{show(task.name)} stands before an input of the model", 'list tasks of op "input" first')


def _check_names(graph: TaskGraph, report: Report) -> None:
    """Tasks speak of tasks and weights that are there."""
    everyone = list(_with_members(graph.tasks, "tasks"))
    tasks = {task.name: None for _, task in everyone}
    operands = {**tasks, **{WEIGHT_PREFIX + name: None for name in graph.weights}}
    for where, task in everyone:
        for key, names, known, title in (
            ("parameters", task.parameters, graph.weights, "weight"),
            ("saved", task.saved, tasks, "task"),
            ("operands", task.operands, operands, "operand"),
        ):
            for name in names:
                if name not in known:
                    report.add(f"{where}.{key}", f"unknown {title} {show(name)}", suggest(name, list(known)))


def _with_members(tasks: Sequence[Task], where: str) -> Iterator[tuple[str, Task]]:
    for index, task in enumerate(tasks):
        yield f"{where}.{index}", task
        yield from _with_members(task.members, f"{where}.{index}.members")


def _check_profile(profile: Mapping[str, Any], graph: TaskGraph, report: Report) -> None:
    """The profile speaks of tasks of the graph, and of each condition once."""
    times = tuple(TaskTime(**row) for row in profile.get("times", ()))
    found = [(f"times.{index}.task", row.task) for index, row in enumerate(times)]
    found += [(f"{key}.{task}", task) for key in ("memory_bytes", "colocated", "variants") for task in profile.get(key, {})]
    for task, rows in profile.get("variants", {}).items():
        for index, row in enumerate(rows):
            for key in ("forward_sync_bytes", "backward_sync_bytes"):
                found += [(f"variants.{task}.{index}.{key}", neighbour) for neighbour, _ in row.get(key, ())]
    for where, task in found:
        if task not in graph.position:
            report.add(f"profile.{where}", f"unknown task {show(task)}", suggest(task, list(graph.position)))
    for index in repeated_rows(times):
        what = f"{show(times[index].task)} has two times of one size, device and number of busy ranks"
        report.add(f"profile.times.{index}", what, "leave one of them out")
