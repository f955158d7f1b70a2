"""Our own graph files: what was written reads back, and every mistake in a file is told with its place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.importers import READERS, graph_file, native, read_graph
from chinchilla_sim.graph.profile import Profile, TaskTime, Variant
from chinchilla_sim.graph.task import Task, TaskGraph, Weight
from chinchilla_sim.graph.zoo import mlp

STORED = Path(__file__).parents[1] / "data" / "graphs" / "chinchilla.json"
Write = Callable[[object], Path]

GROUP = Task("group", "group", shapes=((2, 2),), saved=("relu",), members=(Task("inner", "relu", attributes=(("alpha", (1, 2.0)),)),))
WEIGHTS = {"w": Weight(24.0, (2, 3)), "mean": Weight(4.0, (1,), trained=False, buffer=True)}
TASKS = (Task("x", "input"), Task("relu", "relu", parameters=("w", "mean"), operands=("x", "weight:w")), GROUP)
GRAPH = TaskGraph("small", 2, TASKS, (("x", "relu"), ("relu", "group")), WEIGHTS, "by hand", 2.0, ("made up",))
VARIANT = Variant(2, True, 1.0, 2.0, 3.0, 4.0, (("x", 5.0),), (("group", 6.0),))
PROFILE = Profile(
    (TaskTime("relu", 1, 0.5, 0.25, "cpu", 4, 0.125), TaskTime("relu", 2, 1.0, 0.5)), {"relu": 8.0}, {"relu": "1", "group": "1"},
    {"relu": (VARIANT,)}, "a stopwatch",
)  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A writer of graph files."""

    def write_file(content: object) -> Path:
        path = tmp_path / "graph.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def mistakes_in(path: Path) -> list[str]:
    """Places of all mistakes that reading the file reports; each says what is wrong."""
    with pytest.raises(ScenarioError) as caught:
        read_graph(path)
    assert caught.value.source == str(path)
    assert all(mistake.what for mistake in caught.value.mistakes)
    return [mistake.where for mistake in caught.value.mistakes]


def changed(**tables: Any) -> dict[str, Any]:
    """The file of a small network, with other tables."""
    return json.loads(json.dumps(mlp([4, 3, 2], 2).to_dict())) | tables


def edited(path: str, value: Any) -> dict[str, Any]:
    """The file of GRAPH and PROFILE with another value at a dotted path; `...` deletes it."""
    content = json.loads(json.dumps(graph_file(GRAPH, PROFILE)))
    table: Any = content
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys:
        table = table[key]
    if value is ...:
        del table[last]
    else:
        table[last] = value
    return content


def test_graph_file_reads_back(write: Write) -> None:
    """A graph in a file is the graph that was written; without a profile nothing was measured."""
    assert read_graph(write(mlp([4, 3, 2], 2).to_dict())) == (mlp([4, 3, 2], 2), Profile())
    assert graph_file(GRAPH) == graph_file(GRAPH, Profile()) == GRAPH.to_dict()


def test_profile_reads_back_with_its_graph(write: Write) -> None:
    """Both parts of a file are what was written."""
    profile = replace(PROFILE, input_s=0.5, pass_start_s=(0.25, 0.125), sharding_s=(0.5, 0.75))
    assert read_graph(write(graph_file(GRAPH, profile)), "chinchilla") == (GRAPH, profile)


def test_stored_file_is_of_this_version() -> None:
    """The file under tests/data reads: a change of the format that breaks it needs a new version number."""
    assert read_graph(STORED) == (GRAPH, PROFILE)


def test_example_of_the_documentation_is_a_graph_file(write: Write) -> None:
    """The file in the module's docstring reads."""
    lines = (native.__doc__ or "").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith('    {"format"'))
    graph, profile = read_graph(write("\n".join(lines[start : lines.index("", start)])))
    assert [task.name for task in graph.tasks] == ["x", "y"]
    assert profile.seconds("y", 32) == (0.002, 0.004)


def test_every_field_is_documented() -> None:
    """The module's docstring names each field that a file may hold."""
    known = [*Task.__dataclass_fields__, *Weight.__dataclass_fields__, *TaskTime.__dataclass_fields__, *Variant.__dataclass_fields__]
    known += native._PROFILE_KEYS
    missing = [name for name in known if name not in (native.__doc__ or "")]
    assert not missing


def test_unknown_format_names_the_known_ones(write: Write) -> None:
    """Another format than the known ones is a mistake of the scenario."""
    with pytest.raises(ScenarioError, match=r"model\.format: 'tensorflow' is no format .*chinchilla, pipedream"):
        read_graph(write({}), "tensorflow")


@pytest.mark.parametrize(
    "text", ["", '{"format": "chinch', "[1, 2]", "{}", "NaN", "[" * 100_000, '{"name": ' + "9" * 5000 + "}", "\ufeff{}"]
)
@pytest.mark.parametrize("format", READERS)
def test_what_is_no_graph_file_is_refused(write: Write, text: str, format: str) -> None:
    """Half a file or something else is a ScenarioError that names the file, in every format."""
    path = write(text)
    with pytest.raises(ScenarioError, match=r"graph\.json"):
        read_graph(path, format)


@pytest.mark.parametrize("format", READERS)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, format: str) -> None:
    """A file that is not there, a folder and bytes that are no text are told by their path."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("nowhere", ".", "bytes"):
        with pytest.raises(ScenarioError) as caught:
            read_graph(tmp_path / name, format)
        assert caught.value.source == str(tmp_path / name)


def test_other_version_is_refused(write: Write) -> None:
    """A file of version 1 is told so, and nothing else."""
    assert mistakes_in(write(changed(version=1))) == ["format"]


def test_broken_json_is_told_by_line(write: Write) -> None:
    """A missing comma is found by its line; a key that is written twice is not guessed."""
    assert mistakes_in(write('{"format":\n 1\n "version": 2}')) == ["line 3"]
    with pytest.raises(ScenarioError, match="'a' is written twice"):
        read_graph(write('{"a": 1, "a": 2}'))


@pytest.mark.parametrize("key", ["name", "batch_size", "weights", "tasks", "edges"])
def test_missing_table_is_told(write: Write, key: str) -> None:
    """A file without one of its tables is told which."""
    content = changed()
    del content[key]
    assert mistakes_in(write(content)) == [key]


def test_all_contradictions_are_told_at_once(write: Write) -> None:
    """Edges that go backwards or nowhere, and unknown parameters and operands, are listed together."""
    edges = [["input", "linear"], ["relu", "linear"], ["linear", "nobody"]]
    assert mistakes_in(write(changed(edges=edges, weights={}))) == [
        "edges.1", "edges.2", *2 * ["tasks.1.parameters"], *2 * ["tasks.1.operands"],
        *2 * ["tasks.3.parameters"], *2 * ["tasks.3.operands"],
    ]  # fmt: skip


def test_all_kinds_are_told_at_once(write: Write) -> None:
    """Wrong kinds in several tables are listed together, and none hides another."""
    content = edited("tasks.1.saved_bytes", "many") | {"batch_size": 2.5, "colour": "red"}
    content["profile"]["times"][0]["microbatch_size"] = 0
    assert mistakes_in(write(content)) == ["colour", "batch_size", "tasks.1.saved_bytes", "profile.times.0.microbatch_size"]


def test_names_are_unique_and_something_computes(write: Write) -> None:
    """Two tasks of one name, and a graph of inputs alone, are refused."""
    task = {"name": "x", "op": "input"}
    assert mistakes_in(write(changed(tasks=[task, task], edges=[]))) == ["tasks.1.name", "tasks"]


BROKEN: list[tuple[str, Any, str]] = [
    ("batch_size", "two", "batch_size"),
    ("batch_size", 0, "batch_size"),
    ("batch_size", True, "batch_size"),
    ("value_bytes", 0, "value_bytes"),
    ("notes", "one", "notes"),
    ("name", "", "name"),
    ("weights", [], "weights"),
    ("weights.w", 24, "weights.w"),
    ("weights.w.bytes", ..., "weights.w.bytes"),
    ("weights.w.bytes", -1, "weights.w.bytes"),
    ("weights.w.bytes", float("nan"), "weights.w.bytes"),
    ("weights.w.bytes", 10**400, "weights.w.bytes"),
    ("weights.w.shape", 6, "weights.w.shape"),
    ("weights.w.shape", [2, 1.5], "weights.w.shape"),
    ("weights.w.trained", 1, "weights.w.trained"),
    ("weights.mean.trained", ..., "weights.mean.trained"),
    ("weights.w.size", 3, "weights.w.size"),
    ("tasks.1", "relu", "tasks.1"),
    ("tasks.1.name", ..., "tasks.1.name"),
    ("tasks.1.op", "", "tasks.1.op"),
    ("tasks.1.op", 7, "tasks.1.op"),
    ("tasks.1.flop", 1, "tasks.1.flop"),
    ("tasks.1.forward_flop", "many", "tasks.1.forward_flop"),
    ("tasks.1.output_bytes", -1, "tasks.1.output_bytes"),
    ("tasks.1.launch_count", 1.5, "tasks.1.launch_count"),
    ("tasks.1.parameters", "w", "tasks.1.parameters"),
    ("tasks.1.needs_gradient", "yes", "tasks.1.needs_gradient"),
    ("tasks.1.saved", ["y"], "tasks.1.saved"),
    ("tasks.1.operands", ["w"], "tasks.1.operands"),
    ("tasks.2.shapes", [2, 2], "tasks.2.shapes"),
    ("tasks.2.members.0.attributes", [["a", {"b": 1}]], "tasks.2.members.0.attributes"),
    ("tasks.2.members.0.attributes", [["a"]], "tasks.2.members.0.attributes"),
    ("tasks.2.members.0.op", ..., "tasks.2.members.0.op"),
    ("tasks.2.members.0.parameters", ["v"], "tasks.2.members.0.parameters"),
    ("tasks.2.op", "input", "tasks.1.op"),
    ("edges.0", ["x"], "edges"),
    ("edges.0", ["relu", "relu"], "edges.0"),
    ("edges.1", ["x", "relu"], "edges.1"),
    ("profile", [], "profile"),
    ("profile.time", [], "profile.time"),
    ("profile.times", {}, "profile.times"),
    ("profile.times.0.task", "nobody", "profile.times.0.task"),
    ("profile.times.0.forward_s", float("inf"), "profile.times.0.forward_s"),
    ("profile.times.0.backward_s", ..., "profile.times.0.backward_s"),
    ("profile.times.0", {"task": "relu", "microbatch_size": 2, "forward_s": 1, "backward_s": 1}, "profile.times.1"),
    ("profile.memory_bytes.relu", None, "profile.memory_bytes.relu"),
    ("profile.memory_bytes.y", 1, "profile.memory_bytes.y"),
    ("profile.colocated.group", 1, "profile.colocated.group"),
    ("profile.colocated.y", "1", "profile.colocated.y"),
    ("profile.variants.relu", {}, "profile.variants.relu"),
    ("profile.variants.y", [], "profile.variants.y"),
    ("profile.variants.relu.0.tensor_parallel_degree", 0, "profile.variants.relu.0.tensor_parallel_degree"),
    ("profile.variants.relu.0.forward_sync_bytes", [["x", "1"]], "profile.variants.relu.0.forward_sync_bytes"),
    ("profile.variants.relu.0.backward_sync_bytes", [["y", 1]], "profile.variants.relu.0.backward_sync_bytes"),
]


@pytest.mark.parametrize(("path", "value", "where"), BROKEN, ids=[f"{path}={str(value)[:20]}" for path, value, _ in BROKEN])
def test_every_wrong_field_is_told_by_its_place(write: Write, path: str, value: Any, where: str) -> None:
    """One wrong value in a good file is one mistake, at that place."""
    assert mistakes_in(write(edited(path, value))) == [where]


def test_misspelt_field_gets_a_cure(write: Write) -> None:
    """A field that nobody knows is answered with the nearest known one."""
    with pytest.raises(ScenarioError, match=r"tasks\.1\.forward_flops: is not known here; did you mean 'forward_flop'"):
        read_graph(write(edited("tasks.1.forward_flops", 1)))


def test_members_may_be_nested_only_so_deep(write: Write) -> None:
    """A group in a group in a group ..., or such an attribute, is refused before Python gives up."""
    text = '{"name": "a", "op": "b", "members": [' * 300 + "]}" * 300
    content = changed(tasks=["here"], edges=[])
    assert mistakes_in(write(json.dumps(content).replace('"here"', text)))[0].endswith("members.0.members.0")
    attributes = [["a", json.loads("[" * 50 + "]" * 50)]]
    assert mistakes_in(write(edited("tasks.1.attributes", attributes))) == ["tasks.1.attributes"]
