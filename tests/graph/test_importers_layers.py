"""PipeDream, dnn-partitioning and Piper files: small ones read by hand, broken ones told by their place.

pipedream          x -> embedding -> lstm -> item -> add, embedding -> add; a second item that nobody reads
dnn-partitioning   a -> b -> c -> b_grad, a -> b_grad
piper              tensor -> layer 1 -> layer 2, tensor -> layer 2
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.importers import graph_file, read_graph
from chinchilla_sim.graph.importers.dnn_partitioning import TRANSFER_BYTES_PER_S
from chinchilla_sim.graph.profile import TaskTime, Variant
from chinchilla_sim.graph.task import Task, Weight

FOLDER = Path(__file__).parents[1] / "data" / "graphs"
FILES = {"pipedream": FOLDER / "pipedream.txt", "dnn-partitioning": FOLDER / "dnn-partitioning.json", "piper": FOLDER / "piper.json"}

Mistakes = Callable[[str, str], list[str]]


@pytest.fixture
def mistakes_in(tmp_path: Path) -> Mistakes:
    """Places of all mistakes that reading a text in a format reports."""

    def read(text: str, format: str) -> list[str]:
        path = tmp_path / "broken"
        path.write_text(text)
        with pytest.raises(ScenarioError) as caught:
            read_graph(path, format)
        assert caught.value.source == str(path)
        assert all(mistake.what and mistake.cure for mistake in caught.value.mistakes)
        return [mistake.where for mistake in caught.value.mistakes]

    return read


def edited(format: str, path: str, value: Any) -> str:
    """The small file of a format with another value at a dotted path; `...` deletes it."""
    content = json.loads(FILES[format].read_text())
    table: Any = content
    *keys, last = [int(key) if key.isdigit() and isinstance(table, list) else key for key in path.split(".")]
    for key in keys:
        table = table[int(key) if isinstance(table, list) else key]
    key = int(last) if isinstance(table, list) else last
    if value is ...:
        del table[key]
    else:
        table[key] = value
    return json.dumps(content)


def test_pipedream_by_hand() -> None:
    """Milliseconds become seconds, a list of bytes its sum, inputs come first, an item that nobody reads goes."""
    graph, profile = read_graph(FILES["pipedream"], "pipedream")
    assert graph.tasks == (
        Task("node1", "input", output_bytes=400, needs_gradient=False, launch_count=0),
        Task("node2", "Embedding", output_bytes=400, parameters=("node2.weight",), saved=("node2",)),
        Task("node3", "LSTM", output_bytes=480, parameters=("node3.weight",), saved=("node3",)),
        Task("node4", "__getitem__", output_bytes=400, launch_count=0),
        Task("node6", "Add", output_bytes=400, saved=("node6",)),
    )
    pairs = [("node1", "node2"), ("node2", "node3"), ("node3", "node4"), ("node4", "node6"), ("node2", "node6")]
    assert graph.edges == tuple(pairs)
    assert graph.weights == {"node2.weight": Weight(2000, (500,)), "node3.weight": Weight(3200, (800,))}
    assert profile.times == (
        TaskTime("node2", 1, 0.0005, 0.0015), TaskTime("node3", 1, 0.002, 0.003), TaskTime("node4", 1, 0, 0), TaskTime("node6", 1, 0, 0),
    )  # fmt: skip
    assert graph.batch_size == 1
    assert "The profile's 0.007 s of loading inputs are left out." in graph.notes


def test_dnn_partitioning_by_hand() -> None:
    """Each node is a task with times on two kinds of device, its memory and its class; transfers take the file's time at 1 GB/s."""
    graph, profile = read_graph(FILES["dnn-partitioning"], "dnn-partitioning")
    assert [(task.name, task.op, task.output_bytes / TRANSFER_BYTES_PER_S) for task in graph.tasks] == [
        ("a", "forward", 0.0005), ("b", "forward", 0.00025), ("c", "forward", 0), ("b_grad", "backward", 0),
    ]  # fmt: skip
    assert graph.edges == (("a", "b"), ("a", "b_grad"), ("b", "c"), ("c", "b_grad"))
    assert not graph.weights and not any(task.needs_gradient for task in graph.tasks)
    assert {name: profile.seconds(name, 1, "accelerator") for name in graph.position} == {
        "a": (0.001, 0), "b": (0.002, 0), "c": None, "b_grad": (0.004, 0),
    }  # fmt: skip
    assert [profile.seconds(name, 1, "cpu") for name in graph.position] == [(0.01, 0), (0.02, 0), (0.005, 0), (0.04, 0)]
    assert profile.memory_bytes == {"a": 10, "b": 20, "c": 0, "b_grad": 30}
    assert profile.colocated == {"a": "1", "b": "2", "b_grad": "2"}
    assert any("maxFPGAs = 2, maxCPUs = 1, maxSizePerFPGA = 1000" in note for note in graph.notes)


def test_dnn_partitioning_without_names(tmp_path: Path) -> None:
    """Nodes without names of their own are called by their ids."""
    path = tmp_path / "graph.json"
    path.write_text(FILES["dnn-partitioning"].read_text().replace('"name": "b"', '"name": "a"'))
    assert [task.name for task in read_graph(path, "dnn-partitioning")[0].tasks] == ["node1", "node2", "node3", "node7"]


def test_piper_by_hand() -> None:
    """The vanilla entry on one device is the task; every entry is a variant; the rest of an unequal edge stands in both ends' variants."""
    graph, profile = read_graph(FILES["piper"], "piper")
    assert graph.tasks == (
        Task("tensor_0", "tensor", output_bytes=100, saved_bytes=2),
        Task("Layer_1", "Layer", output_bytes=200, parameters=("Layer_1.weight",), saved_bytes=9),
        Task("Layer_2", "Layer", parameters=("Layer_2.weight",), saved_bytes=3),
    )
    assert graph.edges == (("tensor_0", "Layer_1"), ("tensor_0", "Layer_2"), ("Layer_1", "Layer_2"))
    assert graph.weights == {"Layer_1.weight": Weight(80, (20,)), "Layer_2.weight": Weight(120, (30,))}
    assert profile.times == (TaskTime("tensor_0", 1, 0, 0), TaskTime("Layer_1", 1, 0.25, 0.5), TaskTime("Layer_2", 1, 0.5, 1))
    assert profile.variants == {
        "tensor_0": (Variant(1, False, 0, 0, 2, 0, (), (("Layer_2", 60),)),),
        "Layer_1": (
            Variant(1, False, 0.75, 80, 9, 160),
            Variant(1, True, 1.0, 80, 1, 160),
            Variant(2, False, 0.2, 40, 5, 80, (("tensor_0", 8),), (("Layer_2", 16),)),
        ),
        "Layer_2": (Variant(1, False, 1.5, 120, 3, 240, (("tensor_0", 60),)),),
    }
    assert any("maxDevices = 4" in note for note in graph.notes)


@pytest.mark.parametrize("format", FILES)
def test_imported_graph_is_a_graph_file(format: str, tmp_path: Path) -> None:
    """What was imported can be written in our own format, and is the same when read back."""
    graph, profile = read_graph(FILES[format], format)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph_file(graph, profile)))
    assert read_graph(path) == (graph, profile)


NODE = "node9 -- Relu -- forward_compute_time=1.0, backward_compute_time=1.0, activation_size=1.0, parameter_size=1.0"


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("forward_compute_time=2.000", "forward_compute_time=fast", ["line 2"]),
        ("forward_compute_time=2.000", "forward_compute_time=-2", ["line 2"]),
        ("forward_compute_time=2.000", "forward_compute_time=nan", ["line 2"]),
        ("forward_compute_time=2.000", "forward_compute_time=[1; 2]", ["line 2"]),
        ("forward_compute_time=2.000, ", "", ["line 2"]),
        ("[400.0; 40.0; 40.0]", "[400.0; 40.0; ]", ["line 2"]),
        ("[400.0; 40.0; 40.0]", "[]", ["line 2"]),
        ("parameter_size=3200.000", "parameter_size=", ["line 2"]),
        ("parameter_size=3200.000", "", ["line 2"]),
        ("node4 -- __getitem__", "node3 -- __getitem__", ["line 3"]),
        ("\tnode2 -- node3", "\tnode2", ["line 8"]),
        ("\tnode2 -- node3", "\tnode1 -- node2", ["line 8"]),
        ("\tnode2 -- node3", "\tnode2 -- node8", ["line 8"]),
        ("\tnode2 -- node3", "node2 -- node3", ["line 8"]),
        ("\tnode2 -- node6", "\tnode6 -- node2", ["line 8"]),
        ("\tnode2 -- node6", "\tnode6 -- node6", ["line 12"]),
        ("\tnode2 -- node6", f"{NODE}\n{NODE}\n\tx -- y\n\tx -- y\nz", ["line 16", "line 15", "line 13"]),
    ],
)
def test_broken_pipedream_is_told_by_line(old: str, new: str, where: list[str], mistakes_in: Mistakes) -> None:
    """A figure that is none, half a line, an edge to nowhere, twice or in a cycle, and all of them at once."""
    text = FILES["pipedream"].read_text()
    assert text.count(old) == 1
    assert mistakes_in(text.replace(old, new), "pipedream") == where


@pytest.mark.parametrize("text", ["\n", "\ta -- b\n", NODE.replace("Relu", "Input"), FILES["piper"].read_text()])
def test_text_without_computation_is_no_pipedream(text: str, mistakes_in: Mistakes) -> None:
    """A file without nodes, with inputs alone, or of another format is refused."""
    assert mistakes_in(text, "pipedream")


BROKEN: list[tuple[str, str, Any, str]] = [
    ("dnn-partitioning", "nodes", ..., "nodes"),
    ("dnn-partitioning", "nodes", [], "nodes"),
    ("dnn-partitioning", "nodes.1", 5, "nodes.1"),
    ("dnn-partitioning", "nodes.1.id", 2, "nodes.2.id"),
    ("dnn-partitioning", "nodes.1.id", "1", "nodes.1.id"),
    ("dnn-partitioning", "nodes.1.name", 3, "nodes.1.name"),
    ("dnn-partitioning", "nodes.1.supportedOnFpga", "yes", "nodes.1.supportedOnFpga"),
    ("dnn-partitioning", "nodes.1.fpgaLatency", ..., "nodes.1.fpgaLatency"),
    ("dnn-partitioning", "nodes.1.cpuLatency", float("nan"), "nodes.1.cpuLatency"),
    ("dnn-partitioning", "nodes.1.isBackwardNode", None, "nodes.1.isBackwardNode"),
    ("dnn-partitioning", "nodes.1.size", -1, "nodes.1.size"),
    ("dnn-partitioning", "nodes.1.colorClass", [1], "nodes.1.colorClass"),
    ("dnn-partitioning", "maxFPGAs", "six", "maxFPGAs"),
    ("dnn-partitioning", "edges", {}, "edges"),
    ("dnn-partitioning", "edges.0", [1, 2], "edges.0"),
    ("dnn-partitioning", "edges.0.sourceId", 9, "edges.0.sourceId"),
    ("dnn-partitioning", "edges.0.destId", ..., "edges.0.destId"),
    ("dnn-partitioning", "edges.0.destId", 7, "edges.1"),
    ("dnn-partitioning", "edges.0.cost", "0", "edges.0.cost"),
    ("dnn-partitioning", "edges.0.cost", 0.75, "edges.1.cost"),
    ("dnn-partitioning", "edges.3", {"sourceId": 3, "destId": 1, "cost": 0}, "edges.0"),
    ("piper", "nodes", [], "nodes"),
    ("piper", "nodes.0.id", 0, "nodes.1.id"),
    ("piper", "nodes.0.name", "", "nodes.0.name"),
    ("piper", "nodes.0.TMPCs", ..., "nodes.0.TMPCs"),
    ("piper", "nodes.0.TMPCs", {}, "nodes.0.TMPCs.1"),
    ("piper", "nodes.0.TMPCs.1", ..., "nodes.0.TMPCs.1"),
    ("piper", "nodes.0.TMPCs.1.1", ..., "nodes.0.TMPCs.1"),
    ("piper", "nodes.0.TMPCs.two", [], "nodes.0.TMPCs.two"),
    ("piper", "nodes.0.TMPCs.2", 5, "nodes.0.TMPCs.2"),
    ("piper", "nodes.0.TMPCs.2.0", 5, "nodes.0.TMPCs.2.0"),
    ("piper", "nodes.0.TMPCs.2.0.id", 1, "nodes.0.TMPCs.2.0.id"),
    ("piper", "nodes.0.TMPCs.2.0.timePerSample", -0.1, "nodes.0.TMPCs.2.0.timePerSample"),
    ("piper", "nodes.0.TMPCs.2.0.memoryUsageA", ..., "nodes.0.TMPCs.2.0.memoryUsageA"),
    ("piper", "nodes.0.TMPCs.2.0.syncTimeFw", [], "nodes.0.TMPCs.2.0.syncTimeFw"),
    ("piper", "nodes.0.TMPCs.2.0.syncTimeFw.2", 1.0, "nodes.0.TMPCs.2.0.syncTimeFw.2"),
    ("piper", "nodes.0.TMPCs.2.0.syncTimeBw.2", "x", "nodes.0.TMPCs.2.0.syncTimeBw.2"),
    ("piper", "bandwidth", "fast", "bandwidth"),
    ("piper", "edges.0.communicationCost", None, "edges.0.communicationCost"),
]


@pytest.mark.parametrize(("format", "path", "value", "where"), BROKEN, ids=[f"{row[0]}-{row[1]}={str(row[2])[:20]}" for row in BROKEN])
def test_every_wrong_field_is_told_by_its_place(format: str, path: str, value: Any, where: str, mistakes_in: Mistakes) -> None:
    """One wrong value in a good file is one mistake, at that place."""
    assert mistakes_in(edited(format, path, value), format) == [where]


def test_several_mistakes_are_told_at_once(mistakes_in: Mistakes) -> None:
    """Wrong figures in nodes and edges are listed together."""
    for format, key in (("dnn-partitioning", "cost"), ("piper", "communicationCost")):
        content = json.loads(edited(format, f"edges.0.{key}", -1)) | {"maxFPGAs": "six", "maxDevices": "four"}
        assert len(mistakes_in(json.dumps(content), format)) == 2


def test_synchronization_is_between_neighbours(mistakes_in: Mistakes) -> None:
    """Where an edge is turned round, no entry of its two ends agrees with it any more."""
    turned = edited("piper", "edges.0", {"sourceId": 1, "destId": 0, "communicationCost": 1.0})
    syncs = [f"nodes.0.TMPCs.{entry}.syncTimeFw.0" for entry in ("2.0", "1.0", "1.1")]
    assert mistakes_in(turned, "piper") == [*syncs, "nodes.1.TMPCs.1.0.syncTimeBw.1"]
