"""Oracle: the planning problems of others (PipeDream, dnn-partitioning, Piper) import as an independent reading sees them.

Files are read from $CHINCHILLA_DATA (default ../shared/data); see its README.md, section planner. The readings here are a few
lines each and share nothing with the importers. `known_answers` adds figures by the peers' own tools: time of one machine,
time of one accelerator, and the cost of Piper's own plans.
"""

import json
import os
import re
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from chinchilla_sim.graph.importers import graph_file, read_graph
from chinchilla_sim.graph.profile import ACCELERATOR, Profile, Variant
from chinchilla_sim.graph.task import TaskGraph

SHARED = Path(__file__).parents[3] / "shared"
FOLDER = Path(os.environ.get("CHINCHILLA_DATA", SHARED / "data")) / "planner"
PIPEDREAM = sorted((FOLDER / "pipedream" / "profiles").glob("*.txt"))
LAYER_GRAPHS = sorted((FOLDER / "dnn-partitioning" / "LayerGraphs").glob("*.json"))
PIPER = sorted((FOLDER / "piper").glob("*.json"))
FILES = (
    [("pipedream", path) for path in PIPEDREAM]
    + [("dnn-partitioning", path) for path in LAYER_GRAPHS]
    + [("piper", path) for path in PIPER]
)


def rows_of(format: str) -> list[dict[str, Any]]:
    """Known answers of a format; none where the folder is absent."""
    path = FOLDER / "known_answers" / f"{format}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def title(value: Any) -> str | None:
    """Name of a test case."""
    return value.stem if isinstance(value, Path) else value["id"] if isinstance(value, dict) else None


def test_files_are_there() -> None:
    """In CI beside a shared folder the files must be found; elsewhere their absence is only said."""
    if FILES:
        assert (len(PIPEDREAM), len(LAYER_GRAPHS), len(PIPER)) == (6, 6, 1)
    elif os.environ.get("CI") and SHARED.exists():
        pytest.fail(f"{SHARED} exists, but there are no planning problems in {FOLDER}")
    else:
        pytest.skip(f"no planning problems in {FOLDER}: set CHINCHILLA_DATA")


@pytest.mark.parametrize("path", PIPEDREAM, ids=title)
def test_pipedream_profile_adds_up(path: Path) -> None:
    """Nodes, edges, milliseconds and bytes of the file, without the items that nobody reads."""
    lines = path.read_text().splitlines()
    pairs = [tuple(line.split(" -- ")) for line in (line.strip() for line in lines if line[:1] == "\t")]
    nodes = {line.split(" -- ")[0]: line for line in lines if line[:1] not in ("\t", "")}
    read = {producer for producer, _ in pairs}
    nodes = {name: line for name, line in nodes.items() if "__getitem__" not in line or name in read}
    inputs = {name for name, line in nodes.items() if " -- Input" in line}

    def total(key: str, names: set[str]) -> float:
        figures = [re.findall(rf"{key}=([^,]*?)(?:,|$)", nodes[name]) for name in names]
        return sum(float(part) for (figure,) in figures for part in figure.strip("[]").split(";"))

    graph, profile = read_graph(path, "pipedream")
    assert set(graph.position) == set(nodes)
    assert {task.name for task in graph.tasks if task.op == "input"} == inputs
    assert sorted(graph.edges) == sorted(pair for pair in pairs if pair[1] in nodes)
    assert sum(task.output_bytes for task in graph.tasks) == total("activation_size", set(nodes))
    assert graph.total_parameter_bytes == total("parameter_size", set(nodes))
    for key, seconds in (("forward", [row.forward_s for row in profile.times]), ("backward", [row.backward_s for row in profile.times])):
        assert 1e3 * sum(seconds) == pytest.approx(total(f"{key}_compute_time", set(nodes) - inputs))


@pytest.mark.parametrize("row", [row for row in rows_of("pipedream") if "single_machine_s" in row], ids=title)
def test_pipedream_takes_as_long_on_one_machine(row: dict[str, Any]) -> None:
    """All tasks of the profile together take the time that PipeDream's own optimizer gives for one machine."""
    _, profile = read_graph(FOLDER / row["input"], "pipedream")
    seconds = sum(time.forward_s + time.backward_s for time in profile.times)
    assert seconds == pytest.approx(row["single_machine_s"], rel=1e-9)


@pytest.mark.parametrize("path", LAYER_GRAPHS, ids=title)
def test_layer_graph_adds_up(path: Path) -> None:
    """Nodes, edges, times on both kinds of device, memory, classes and transfer times of the file."""
    file = json.loads(path.read_text())
    name_of = {node["id"]: node["name"] for node in file["nodes"]}
    graph, profile = read_graph(path, "dnn-partitioning")
    assert set(graph.position) == set(name_of.values())
    assert sum(task.op == "backward" for task in graph.tasks) == sum(bool(node["isBackwardNode"]) for node in file["nodes"])
    assert sorted(graph.edges) == sorted((name_of[edge["sourceId"]], name_of[edge["destId"]]) for edge in file["edges"])
    for device, key in ((ACCELERATOR, "fpgaLatency"), ("cpu", "cpuLatency")):
        assert 1e3 * sum(row.forward_s for row in profile.times if row.device == device) == pytest.approx(
            sum(n[key] for n in file["nodes"])
        )
    assert sum(profile.memory_bytes.values()) == sum(node["size"] for node in file["nodes"])
    assert len(set(profile.colocated.values())) == len({node["colorClass"] for node in file["nodes"]})
    bytes_by_edge = {edge: graph.tasks[graph.position[edge[0]]].output_bytes for edge in graph.edges}
    for edge in file["edges"]:
        assert bytes_by_edge[name_of[edge["sourceId"]], name_of[edge["destId"]]] / 1e9 == pytest.approx(edge["cost"] / 1e3)


@pytest.mark.parametrize("row", [row for row in rows_of("dnn-partitioning") if "other_methods_ms" in row], ids=title)
def test_layer_graph_takes_as_long_on_one_accelerator(row: dict[str, Any]) -> None:
    """All tasks together take the peer's time of one accelerator."""
    _, profile = read_graph(FOLDER / row["input"], "dnn-partitioning")
    seconds = sum(time.forward_s for time in profile.times if time.device == ACCELERATOR)
    assert 1e3 * seconds == pytest.approx(row["other_methods_ms"]["oneFpga"], rel=1e-5)


@pytest.mark.parametrize("path", PIPER, ids=title)
def test_piper_graph_adds_up(path: Path) -> None:
    """Nodes, edges, variants, times and parameters of the file; each end of an edge knows all its bytes."""
    file = json.loads(path.read_text())
    name_of = {node["id"]: f"{node['name']}_{node['id']}" for node in file["nodes"]}
    entries = [entry for node in file["nodes"] for choices in node["TMPCs"].values() for entry in choices]
    plain = [next(entry for entry in node["TMPCs"]["1"] if entry["id"] == "vanilla") for node in file["nodes"]]
    graph, profile = read_graph(path, "piper")
    assert [task.name for task in graph.tasks if task.op == "Embedding"] == ["Embedding_1"]
    assert set(graph.position) == set(name_of.values())
    assert sorted(graph.edges) == sorted((name_of[edge["sourceId"]], name_of[edge["destId"]]) for edge in file["edges"])
    assert graph.total_parameter_bytes == sum(entry["parameterSize"] for entry in plain)
    assert sum(row.forward_s + row.backward_s for row in profile.times) == pytest.approx(sum(entry["timePerSample"] for entry in plain))
    variants = [variant for choices in profile.variants.values() for variant in choices]
    assert len(variants) == len(entries)
    for field, key in (("seconds", "timePerSample"), ("stash_bytes", "memoryUsageA"), ("fixed_bytes", "memoryUsageB")):
        assert sum(getattr(variant, field) for variant in variants) == pytest.approx(sum(entry[key] for entry in entries))
    for edge in file["edges"]:
        producer, consumer = name_of[edge["sourceId"]], name_of[edge["destId"]]
        output = graph.tasks[graph.position[producer]].output_bytes
        for variant in profile.variants[consumer]:
            entry = entry_of(file["nodes"], edge["destId"], variant)
            expected = edge["communicationCost"] + entry["syncTimeFw"][str(edge["sourceId"])]
            assert output + dict(variant.forward_sync_bytes).get(producer, 0.0) == expected


def entry_of(nodes: list[dict[str, Any]], number: int, variant: Variant) -> Any:
    """The file's entry that a variant was made of."""
    node = next(node for node in nodes if node["id"] == number)
    choices = node["TMPCs"][str(variant.tensor_parallel_degree)]
    return next(entry for entry in choices if (entry["id"] != "vanilla") == variant.recompute)


@pytest.mark.parametrize("row", [row for row in rows_of("piper") if row["plan"]], ids=title)
def test_pipers_own_plans_cost_what_piper_says(row: dict[str, Any]) -> None:
    """The slowest stage of Piper's plan, priced by its objective from the imported graph and variants alone."""
    graph, profile = read_graph(FOLDER / row["input"], "piper")
    slowest = max(stage_s(stage, graph, profile, row) for stage in row["plan"]["stages"])
    assert slowest == pytest.approx(row["known"], rel=1e-6)


def stage_s(stage: dict[str, Any], graph: TaskGraph, profile: Profile, row: dict[str, Any]) -> float:
    """Seconds per sample of one stage: computing, cut edges, and the synchronization of its replicas."""
    name_of = {int(name.rpartition("_")[2]): name for name in graph.position}
    inside = {name_of[number] for number in stage["nodes"]}
    replicas, degree = stage["dataParallelDegree"], stage["tensorParallelDegree"]
    neighbours: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for producer, consumer in graph.edges:
        if (producer in inside) != (consumer in inside):
            neighbours[producer].append((producer, consumer))
            neighbours[consumer].append((producer, consumer))
    total = 0.0
    for number, kind in stage["TMPCids"]:
        name = name_of[number]
        variant = next(
            variant
            for variant in profile.variants[name]
            if variant.tensor_parallel_degree == degree and variant.recompute == (kind != "vanilla")
        )
        cut = 0.0
        for producer, consumer in neighbours[name]:
            sync = dict(variant.forward_sync_bytes).get(producer, 0.0) + dict(variant.backward_sync_bytes).get(consumer, 0.0)
            cut += 2 * (graph.tasks[graph.position[producer]].output_bytes + sync)
        weights = 4 * (replicas - 1) * variant.parameter_bytes / (replicas * row["microbatches"])
        total += variant.seconds / replicas + (cut / replicas + weights) / row["bandwidth_bytes_per_s"]
    return total


@pytest.mark.parametrize(("format", "path"), FILES, ids=title)
def test_imports_are_ordered_repeatable_and_fast(format: str, path: Path, tmp_path: Path) -> None:
    """Producers stand before consumers, a second reading is equal, our own format keeps everything, and all that takes no time."""
    start = perf_counter()
    graph, profile = read_graph(path, format)
    assert perf_counter() - start < 1.0
    assert all(graph.position[producer] < graph.position[consumer] for producer, consumer in graph.edges)
    assert profile.measured_tasks == {task.name for task in graph.compute_tasks}
    assert read_graph(path, format) == (graph, profile)
    own = tmp_path / "graph.json"
    own.write_text(json.dumps(graph_file(graph, profile)))
    assert read_graph(own) == (graph, profile)
