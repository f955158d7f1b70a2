"""Files of known answers: what is read, what is refused, how ours is judged."""

import json
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.cli.app import app
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.validation.known_answers import check_known_answers, read_problems

PROFILE = """node1 -- Linear() -- forward_compute_time=1000, backward_compute_time=3000, activation_size=8.0, parameter_size=4.0
node2 -- Linear() -- forward_compute_time=500, backward_compute_time=1500, activation_size=8.0, parameter_size=4.0
\tnode1 -- node2
"""
ROW = {
    "id": "two",
    "format": "pipedream",
    "input": "graphs/two.txt",
    "num_machines_per_level": [2],
    "bandwidth_bytes_per_s_per_level": [8.0],
    "activation_compression_ratio": None,
    "straight_pipeline": True,
    "known": 4.0,
    "relative_tolerance": 1e-9,
    "known_cpu_s": 0.1,
}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    """A file of known answers beside its graph."""
    (folder / "graphs").mkdir(exist_ok=True)
    (folder / "known").mkdir(exist_ok=True)
    (folder / "graphs" / "two.txt").write_text(PROFILE)
    path = folder / "known" / "answers.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("known", "reached", "status", "ratio"),
    [(4.0, True, "solved", 1.0), (5.0, True, "solved", 0.8), (2.0, False, "solved", 2.0), (None, True, "solved", None)],
)
def test_ours_against_known(tmp_path: Path, known: float | None, reached: bool, status: str, ratio: float | None) -> None:
    """By hand: stages of 4 s and 2 s on two machines without replicas take 4 s; whether that is good depends on the peer."""
    (answer,) = check_known_answers(write(tmp_path, ROW | {"known": known}), 1.0)
    assert (answer.ours, answer.reached, answer.status, answer.ratio) == (4.0, reached, status, ratio)


def test_no_plan_is_an_answer(tmp_path: Path) -> None:
    """Three machines in a line of two tasks: nothing is possible, which is right only where the peer found nothing either."""
    impossible = ROW | {"num_machines_per_level": [3]}
    (answer,) = check_known_answers(write(tmp_path, impossible | {"known": None}), 1.0)
    assert (answer.status, answer.reached, answer.ratio) == ("infeasible", True, None)
    (answer,) = check_known_answers(write(tmp_path, impossible), 1.0)
    assert (answer.status, answer.reached) == ("infeasible", False)


def test_a_folder_is_all_of_its_files(tmp_path: Path) -> None:
    """Every *.jsonl of the folder is solved."""
    path = write(tmp_path, ROW)
    path.with_name("more.jsonl").write_text(json.dumps(ROW | {"id": "again"}) + "\n")
    assert [answer.problem.id for answer in check_known_answers(path.parent, 1.0)] == ["two", "again"]


def test_all_mistakes_of_a_file_at_once(tmp_path: Path) -> None:
    """Missing graph, unknown format, an id twice, text in place of a number."""
    rows = [ROW, ROW, ROW | {"id": "b", "format": "alpa"}, ROW | {"id": "c", "input": "none.txt"}, ROW | {"id": "d", "known": "fast"}]
    with pytest.raises(ScenarioError) as caught:
        read_problems(write(tmp_path, *rows))
    text = str(caught.value)
    for part in ("line 2", "already given", "line 3.format", "line 4.input", "line 5.known"):
        assert part in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_machines_per_level", []),
        ("num_machines_per_level", [2, 2]),
        ("bandwidth_bytes_per_s_per_level", [0]),
        ("activation_compression_ratio", 0),
        ("straight_pipeline", "no"),
    ],
)
def test_numbers_that_make_no_problem_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    """The error names the line and the field."""
    with pytest.raises(ScenarioError, match="line 1"):
        check_known_answers(write(tmp_path, ROW | {field: value}), 1.0)


@pytest.mark.parametrize("content", ["", "not json\n", "[1]\n"])
def test_a_file_without_problems_is_refused(tmp_path: Path, content: str) -> None:
    """Empty, no JSON, no object."""
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(ScenarioError):
        read_problems(path)


def test_the_command_prints_json_and_fails_where_known_is_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields as promised; exit 1 for one that is worse."""
    path = write(tmp_path, ROW, ROW | {"id": "worse", "known": 2.0})
    with pytest.raises(SystemExit) as stopped:
        app(["validate", "planner", str(path), "--json"])
    assert stopped.value.code == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [set(problem) for problem in problems] == [{"id", "status", "ours", "known", "ratio", "cpu_s", "known_cpu_s"}] * 2
    assert [problem["ratio"] for problem in problems] == [1.0, 2.0]
