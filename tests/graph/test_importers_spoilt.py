"""Spoilt graph files of every format: they read, or are refused with a ScenarioError; nothing else escapes."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.importers import read_graph

FOLDER = Path(__file__).parents[1] / "data" / "graphs"
VALUES = [None, -1, 0, 1, 7, 1e308, float("nan"), "x", "", "1", [], {}, True, [["x", "x"]], ["relu"], 2**70, "input"]
PIECES = ["", " -- ", "\t", ";", "]", "nan", "1e999", "node1", "Input", "\n", "\0", "\ud7ff", "=", ", "]


def read_or_refuse(content: str | bytes, format: str) -> None:
    """Read a file of this content; what reads is a whole graph."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            graph, profile = read_graph(path, format)
        except ScenarioError as error:
            assert error.mistakes
            assert error.source == str(path)
        else:
            assert all(graph.position[producer] < graph.position[consumer] for producer, consumer in graph.edges)
            assert profile.measured_tasks <= set(graph.position)
            assert len(graph.digest) == 64
            assert profile.digest


def places(table: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a JSON value."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


@settings(deadline=None)
@pytest.mark.parametrize("format", ["chinchilla", "dnn-partitioning", "piper"])
@given(data=st.data())
def test_spoilt_json(format: str, data: st.DataObject) -> None:
    """Some values of the small file are deleted or replaced."""
    content = json.loads((FOLDER / f"{format}.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        *keys, last = data.draw(st.sampled_from(list(places(content))))
        table = content
        for key in keys:
            table = table[key]
        if data.draw(st.booleans()):
            del table[last]
        else:
            table[last] = deepcopy(data.draw(st.sampled_from(VALUES)))
    read_or_refuse(json.dumps(content), format)


@settings(deadline=None)
@given(data=st.data())
def test_spoilt_text(data: st.DataObject) -> None:
    """Some lines of the small profile are deleted, doubled or cut, with something else in their midst."""
    lines = (FOLDER / "pipedream.txt").read_text().splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(lines) - 1))
        line, cut = lines[index], data.draw(st.integers(0, len(lines[index])))
        rest = data.draw(st.integers(cut, len(line)))
        lines[index : index + 1] = data.draw(
            st.sampled_from([[], [line, line], [line[:cut]], [line[:cut] + piece + line[rest:] for piece in PIECES]])
        )
        lines = lines or [""]
    read_or_refuse("\n".join(lines), "pipedream")


@settings(deadline=None)
@pytest.mark.parametrize("format", ["chinchilla", "dnn-partitioning", "piper", "pipedream"])
@given(text=st.text())
def test_any_text(format: str, text: str) -> None:
    """Arbitrary text is no graph."""
    read_or_refuse(text.encode(errors="replace"), format)
