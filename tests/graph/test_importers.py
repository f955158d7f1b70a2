"""Graph files: what was written reads back, and every mistake in a file is told with its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.importers import read_graph
from chinchilla_sim.graph.zoo import mlp

Write = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A writer of graph files."""

    def write_file(content: object) -> Path:
        path = tmp_path / "graph.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def mistakes_in(path: Path) -> list[str]:
    """Places of all mistakes that reading the file reports."""
    with pytest.raises(ScenarioError) as caught:
        read_graph(path)
    assert caught.value.source == str(path)
    return [mistake.where for mistake in caught.value.mistakes]


def changed(**tables: Any) -> dict[str, Any]:
    """The file of a small network, with other tables."""
    return json.loads(json.dumps(mlp([4, 3, 2], 2).to_dict())) | tables


def test_graph_file_reads_back(write: Write) -> None:
    """A graph in a file is the graph that was written."""
    assert read_graph(write(mlp([4, 3, 2], 2).to_dict())) == mlp([4, 3, 2], 2)


@pytest.mark.parametrize("text", ["", '{"format": "chinch', "[1, 2]", "{}", '{"format": "chinchilla-task-graph", "version": 2}'])
def test_what_is_no_graph_file_is_refused(write: Write, text: str) -> None:
    """Half a file, another format or another version is a ScenarioError that names the file."""
    mistakes_in(write(text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is told by its path."""
    assert mistakes_in(tmp_path / "nowhere.json") == [""]


@pytest.mark.parametrize("key", ["name", "batch_size", "weights", "tasks", "edges"])
def test_missing_table_is_told(write: Write, key: str) -> None:
    """A file without one of its tables is a ScenarioError, not a KeyError."""
    content = changed()
    del content[key]
    mistakes_in(write(content))


def test_all_contradictions_are_told_at_once(write: Write) -> None:
    """Edges that go backwards or nowhere, and unknown parameters, are listed together."""
    edges = [["input", "linear"], ["relu", "linear"], ["linear", "nobody"]]
    assert mistakes_in(write(changed(edges=edges, weights={}))) == [
        "edges.1", "edges.2", "tasks.1.parameters", "tasks.1.parameters", "tasks.3.parameters", "tasks.3.parameters",
    ]  # fmt: skip


def test_names_are_unique_and_something_computes(write: Write) -> None:
    """Two tasks of one name, and a graph of inputs alone, are refused."""
    task = {"name": "x", "op": "input"}
    assert mistakes_in(write(changed(tasks=[task, task], edges=[]))) == ["tasks", "tasks"]


@pytest.mark.parametrize(
    "tables",
    [
        {"batch_size": "two"},
        {"batch_size": 0},
        {"weights": {"0.weight": {"bytes": "48"}, "0.bias": {"bytes": 12}, "2.weight": {"bytes": 24}, "2.bias": {"bytes": 8}}},
        {"tasks": [{"name": "x", "op": "y", "forward_flop": "many"}], "edges": []},
        {"tasks": [{"name": "x", "op": "y", "output_bytes": -1}], "edges": []},
    ],
    ids=["text-batch", "no-batch", "text-bytes", "text-flop", "negative-bytes"],
)
def test_numbers_are_numbers(write: Write, tables: dict[str, Any]) -> None:
    """Amounts in a graph file are numbers, and none is negative."""
    mistakes_in(write(changed(**tables)))
