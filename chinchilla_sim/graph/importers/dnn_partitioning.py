"""Layer graphs of Tarnawski et al. 2020 (github.com/msr-fiddle/dnn-partitioning), JSON:

    {"maxSizePerFPGA": 1.7e10, "maxFPGAs": 6, "maxCPUs": 1,
     "nodes": [{"id": 3, "name": "node3", "supportedOnFpga": 1, "cpuLatency": 6.96, "fpgaLatency": 0.7, "isBackwardNode": 0,
                "colorClass": 3, "size": 131325952.0}, ...],
     "edges": [{"sourceId": 1, "destId": 3, "cost": 0.09}, ...]}

A node is a task, named by `name` (or `node<id>` where names are missing or not unique), of op `forward` or `backward`: the
backward pass stands in the file as nodes of its own, so that every task has forward seconds only and none has a gradient.
`fpgaLatency` (ms) is its time on device kind "accelerator" where `supportedOnFpga`, `cpuLatency` (ms) the one on "cpu"; `size`
(bytes) is `Profile.memory_bytes`, `colorClass` is `Profile.colocated`. An edge's `cost` is the time in ms that moving the
producer's output takes, the same on all its edges; the graph needs bytes: as many as a network of `TRANSFER_BYTES_PER_S`
moves in that time. The numbers of devices and their memory belong to a cluster; the graph only mentions them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from chinchilla_sim.graph.importers.reading import Fields, Report, edges_between, is_amount, read_object, refuse_twice, topological_order
from chinchilla_sim.graph.profile import ACCELERATOR, Profile, TaskTime
from chinchilla_sim.graph.task import Task, TaskGraph

TRANSFER_BYTES_PER_S = 1e9
"""A network of 1 GB/s without latency reproduces the file's costs."""

CPU = "cpu"


def read_dnn_partitioning(path: Path) -> tuple[TaskGraph, Profile]:
    """Graph and profile of a dnn-partitioning file."""
    report = Report(path)
    file = read_object(report)
    rows = file.tables("nodes")
    if not rows and "nodes" in file.data:
        report.add("nodes", "are none", "give at least one node")
    name_of = _names(rows, report)
    report.stop_if_wrong()
    edges = edges_between(file, name_of)
    cost_s = _transfer_s(edges, report)
    by_name = dict(zip(name_of.values(), rows, strict=True))
    profile, notes = _profile(by_name, path), _notes(file)
    tasks = {name: _task(name, row, cost_s.get(name, 0.0)) for name, row in by_name.items()}
    report.stop_if_wrong()
    order = topological_order(list(tasks), {edge: row.path for edge, row in edges.items()}, report)
    graph = TaskGraph(path.stem, 1, tuple(tasks[name] for name in order), tuple(edges), source=profile.source, notes=notes)
    return graph, profile


def _transfer_s(edges: Mapping[tuple[str, str], Fields], report: Report) -> dict[str, float]:
    """Seconds that moving each producer's output takes: one figure, however many edges it has."""
    cost_s: dict[str, float] = {}
    for (producer, _), row in edges.items():
        seconds = row.amount("cost") / 1e3
        if is_amount(row.data.get("cost")) and cost_s.setdefault(producer, seconds) != seconds:
            report.add(row.at("cost"), f"differs from an earlier cost of the output of {producer}", "give all its edges one cost")
    return cost_s


def _names(rows: list[Fields], report: Report) -> dict[int, str]:
    """Task name of each node id."""
    ids = [row.count("id") for row in rows]
    refuse_twice(((number, row.at("id")) for number, row in zip(ids, rows, strict=True)), report, "the node")
    given = Counter(row.text("name") for row in rows if "name" in row.data)
    usable = set(given.values()) == {1} and given.total() == len(rows)
    return {number: row.text("name") if usable else f"node{number}" for number, row in zip(ids, rows, strict=True)}


def _task(name: str, row: Fields, cost_s: float) -> Task:
    op = "backward" if row.flag("isBackwardNode") else "forward"
    return Task(name, op, output_bytes=cost_s * TRANSFER_BYTES_PER_S, needs_gradient=False, recomputable=False)


def _profile(by_name: dict[str, Fields], path: Path) -> Profile:
    times = []
    for name, row in by_name.items():
        if row.flag("supportedOnFpga"):
            times.append(TaskTime(name, 1, row.amount("fpgaLatency") / 1e3, 0.0, ACCELERATOR))
        times.append(TaskTime(name, 1, row.amount("cpuLatency") / 1e3, 0.0, CPU))
    return Profile(
        times=tuple(times),
        memory_bytes={name: row.amount("size") for name, row in by_name.items()},
        colocated={name: _class(row) for name, row in by_name.items() if row.data.get("colorClass") is not None},
        source=f"dnn-partitioning graph {path.name}",
    )


def _class(row: Fields) -> str:
    return row.text("colorClass") if isinstance(row.data["colorClass"], str) else str(row.count("colorClass"))


def _notes(file: Fields) -> tuple[str, ...]:
    limits = [f"{key} = {file.amount(key):g}" for key in ("maxFPGAs", "maxCPUs", "maxSizePerFPGA") if key in file.data]
    notes = [
        "The file does not state its batch size: one sample here is one step of the file.",
        "The file states transfers in ms: output bytes are what a network of 1 GB/s moves in that time.",
        "The file states no flop, parameters or memory traffic: only its times, and the bytes that each task occupies, count.",
    ]
    if any(row.flag("isBackwardNode") for row in file.tables("nodes")):
        notes.append("The backward pass is tasks of its own: every task has forward seconds only, and a class keeps both on one device.")
    if limits:
        notes.append(f"The file's problem is for {', '.join(limits)}: write that into the cluster.")
    return tuple(notes)
