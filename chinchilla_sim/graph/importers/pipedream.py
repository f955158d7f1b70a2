"""PipeDream's profiled layer graphs (github.com/msr-fiddle/pipedream, `profiler/*/profiles`), text:

    node4 -- Linear(in_features=784, out_features=10) -- forward_compute_time=1.5, backward_compute_time=3.0,
                                                         activation_size=40960.0, parameter_size=31400.000
            node3 -- node4

one line per node: milliseconds, bytes (a list `[6291456.0; 131072.0]` is summed), then indented edges. The file does not
say how many samples its minibatch has: `batch_size` is 1, and a "sample" is one minibatch of the profile. `Input` nodes become
tasks of op `input`; the time of loading data that some files give them is left out. A `__getitem__` that nobody reads is
left out, as PipeDream's optimizer does. One weight per node, counted in fp32 values. Flop are not in the file; what a
task keeps for its backward pass neither: its output, as PipeDream assumes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from chinchilla_sim.graph.importers.reading import NOT_WHOLE, Report, is_amount, read_text, refuse_twice, show, topological_order
from chinchilla_sim.graph.profile import Profile, TaskTime
from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph, Weight

GET_ITEM = "__getitem__"
_FIGURES = ("forward_compute_time", "backward_compute_time", "activation_size", "parameter_size")
_NODE = re.compile(rf"(\S+) -- (.*) -- {', '.join(rf'{figure}=([^,]*?)' for figure in _FIGURES)}(?: -- stage_id=\d+)?")
_EDGE = re.compile(r"\s+(\S+) -- (\S+)")
_VALUE_BYTES = 4.0


@dataclass(frozen=True, slots=True)
class _Node:
    """One node line."""

    name: str
    op: str
    forward_s: float
    backward_s: float
    activation_bytes: float
    parameter_bytes: float
    where: str


def read_pipedream(path: Path) -> tuple[TaskGraph, Profile]:
    """Graph and profile of a PipeDream file."""
    report = Report(path)
    nodes, edges = _parse(read_text(report), report)
    report.stop_if_wrong()
    names = [node.name for node in sorted(nodes, key=lambda node: node.op != INPUT_OP)]
    order = topological_order(names, edges, report)
    read = {producer for producer, _ in edges}
    by_name = {node.name: node for node in nodes if node.op != GET_ITEM or node.name in read}
    kept = [by_name[name] for name in order if name in by_name]
    computing = [node for node in kept if node.op != INPUT_OP]
    if not computing:
        raise report.fail("", "no node computes anything", NOT_WHOLE)
    graph = TaskGraph(
        name=path.stem,
        batch_size=1,
        tasks=tuple(_task(node) for node in kept),
        edges=tuple(edge for edge in edges if edge[1] in by_name),
        weights={_weight_name(node): _weight(node) for node in kept if node.parameter_bytes},
        source=f"PipeDream profile {path.name}",
        value_bytes=_VALUE_BYTES,
        notes=_notes(nodes),
    )
    times = tuple(TaskTime(node.name, 1, node.forward_s, node.backward_s) for node in computing)
    return graph, Profile(times, source=graph.source)


def _parse(text: str, report: Report) -> tuple[list[_Node], dict[tuple[str, str], str]]:
    """Nodes, and edges with their lines, as the file lists them."""
    nodes, edges, twice = [], {}, []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"line {number}"
        if match := _EDGE.fullmatch(line.rstrip()):
            edge = (match[1], match[2])
            twice.append((edge, where))
            edges[edge] = where
        elif match := _NODE.fullmatch(line.rstrip()):
            nodes.append(_node(match, where, report))
        elif line.strip():
            report.add(
                where, f"{show(line)} is neither a node nor an edge", "write <id> -- <op> -- forward_compute_time=<ms>, ..., or an edge"
            )
    if not nodes:
        report.add("", "has no node", NOT_WHOLE)
    refuse_twice(twice, report, "the edge")
    refuse_twice(((node.name, node.where) for node in nodes), report, "the node")
    return nodes, edges


def _node(match: re.Match[str], where: str, report: Report) -> _Node:
    name, description, *texts = match.groups()
    forward_ms, backward_ms, activation_bytes, parameter_bytes = (
        _figure(figure, text, where, report) for figure, text in zip(_FIGURES, texts, strict=True)
    )
    kind = description.partition("(")[0].strip() or "unnamed"
    op = INPUT_OP if kind.startswith("Input") else kind
    return _Node(name, op, forward_ms / 1e3, backward_ms / 1e3, activation_bytes, parameter_bytes, where)


def _figure(figure: str, text: str, where: str, report: Report) -> float:
    """A number, or the sum of a bracketed list of them."""
    listed = text.startswith("[") and text.endswith("]") and figure == "activation_size"
    try:
        value = sum(float(part) for part in text[1:-1].split(";")) if listed else float(text)
    except ValueError:
        value = -1.0
    if not is_amount(value):
        report.add(where, f"{figure} is {show(text)}", "write a number >= 0")
        return 0.0
    return value


def _task(node: _Node) -> Task:
    if node.op == INPUT_OP:
        return Task(node.name, INPUT_OP, output_bytes=node.activation_bytes, needs_gradient=False, launch_count=0)
    view = node.op == GET_ITEM
    return Task(
        node.name,
        node.op,
        output_bytes=node.activation_bytes,
        parameters=(_weight_name(node),) if node.parameter_bytes else (),
        saved=() if view else (node.name,),
        launch_count=0 if view else 1,
    )


def _weight_name(node: _Node) -> str:
    return f"{node.name}.weight"


def _weight(node: _Node) -> Weight:
    return Weight(node.parameter_bytes, (round(node.parameter_bytes / _VALUE_BYTES),))


def _notes(nodes: list[_Node]) -> tuple[str, ...]:
    loading_s = sum(node.forward_s + node.backward_s for node in nodes if node.op == INPUT_OP)
    notes = [
        "The profile does not state its batch size: one sample here is one minibatch of the profile.",
        "The profile states no flop and no memory traffic: only its measured times count.",
        "What a task keeps for its backward pass is not stated: it is taken to be the task's output.",
        "The profile states bytes of parameters, not their shapes: values are counted as fp32.",
    ]
    if loading_s:
        notes.append(f"The profile's {loading_s:g} s of loading inputs are left out.")
    return tuple(notes)
