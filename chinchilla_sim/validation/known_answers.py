"""Planning problems that others solved, solved by our planner in their own cost models (`chinchilla validate planner`).

A file has one JSON object per line: `id`, `format` (of the graph in `input`, a path relative to the folder above the file), the numbers
of the problem, which override those of the graph's file, and `known`, the peer's best objective (null where it found none),
`relative_tolerance` and `known_cpu_s`. What the numbers mean stands with the solvers:

    pipedream          num_machines_per_level, bandwidth_bytes_per_s_per_level,         planner/peers/replicated_stages.py
                       activation_compression_ratio, straight_pipeline
    piper              devices, memory_bytes, bandwidth_bytes_per_s, microbatches       planner/peers/tensor_stages.py
    dnn-partitioning   contiguous, accelerators, cpus, memory_bytes                     planner/peers/assignment.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.graph.importers import read_graph
from chinchilla_sim.graph.importers.reading import Fields, Report, is_amount, refuse_twice
from chinchilla_sim.validation.peer_problems import FORMATS, Solved

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class KnownProblem:
    """One line of the file: what to solve, and what the peer found in how much CPU time."""

    id: str
    format: str
    input: Path
    row: Fields
    known: float | None
    relative_tolerance: float
    known_cpu_s: float | None


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """Our objective beside the peer's, in the unit of the row; `ours` is None where no plan is possible or none was found in time."""

    problem: KnownProblem
    ours: float | None
    proven: bool
    cpu_s: float

    @property
    def ratio(self) -> float | None:
        """Ours / known: below 1 where ours is better."""
        known = self.problem.known
        return None if self.ours is None or not known else self.ours / known

    @property
    def reached(self) -> bool:
        """Whether ours is not worse than known, within the row's tolerance; proven infeasible is right where nothing is known."""
        known = self.problem.known
        if known is None:
            return self.ours is not None or self.proven
        return self.ours is not None and self.ours <= known * (1 + self.problem.relative_tolerance)

    @property
    def status(self) -> str:
        """solved (proven best, or as good as known), infeasible (proven), truncated (cut off before either)."""
        if self.ours is None:
            return "infeasible" if self.proven else "truncated"
        return "solved" if self.proven or (self.reached and self.problem.known is not None) else "truncated"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, null where there is no value."""
        return {
            "id": self.problem.id,
            "status": self.status,
            "ours": self.ours,
            "known": self.problem.known,
            "ratio": self.ratio,
            "cpu_s": round(self.cpu_s, 3),
            "known_cpu_s": self.problem.known_cpu_s,
        }


def check_known_answers(path: Path, budget_s: float, progress: Progress | None = None) -> list[KnownAnswer]:
    """All problems of a file, or of the *.jsonl of a folder, at most `budget_s` CPU seconds each where no proof ends the search sooner.

    ScenarioError with every mistake of the first file that has some.
    """
    problems = [problem for file in _files(path) for problem in read_problems(file)]
    answers = []
    for done, problem in enumerate(problems):
        answers.append(_solve(problem, budget_s))
        if progress:
            progress(done + 1, len(problems))
    return answers


def _solve(problem: KnownProblem, budget_s: float) -> KnownAnswer:
    started = time.process_time()
    graph, profile = read_graph(problem.input, problem.format)
    solved: Solved = FORMATS[problem.format](graph, profile, problem.row, _limits(problem), budget_s)
    problem.row.report.stop_if_wrong()
    return KnownAnswer(problem, solved.objective, solved.proven, time.process_time() - started)


def _limits(problem: KnownProblem) -> Fields:
    """Top level of the graph's file, whose numbers hold where the row has none."""
    report = Report(problem.input)
    if problem.format == "pipedream":
        return Fields({}, "", report)
    content = json.loads(problem.input.read_text(encoding="utf-8"))
    return Fields({key: value for key, value in content.items() if is_amount(value)}, "", report)


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ScenarioError([Mistake("", "has no *.jsonl", "name a file of known answers, or a folder of them")], str(path))
    return files


def read_problems(path: Path) -> list[KnownProblem]:
    """Problems of one file; ScenarioError with all mistakes."""
    report = Report(path)
    problems = [_problem(row, path) for row in _rows(path, report)]
    refuse_twice(((problem.id, problem.row.path) for problem in problems), report, "the problem")
    if not problems:
        report.add("", "has no problem", "write one JSON object per line")
    report.stop_if_wrong()
    return problems


def _rows(path: Path, report: Report) -> Iterator[Fields]:
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise report.fail("", f"cannot be read: {why_unreadable(error)}", "name a file of known answers, or a folder of them") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.add(f"line {number}", f"is no JSON: {error}", "write one JSON object per line")
            continue
        if isinstance(data, dict):
            yield Fields(data, f"line {number}", report)
        else:
            report.add(f"line {number}", "is no JSON object", "write one JSON object per line")


def _problem(row: Fields, path: Path) -> KnownProblem:
    format, name = row.text("format"), row.text("input")
    if "format" in row.data and format not in FORMATS:
        row.report.add(row.at("format"), f"is {format!r}", f"known are {', '.join(FORMATS)}")
    graph = path.resolve().parent.parent / name
    if name and not graph.is_file():
        row.report.add(row.at("input"), f"{graph} is no file", "give a path relative to the folder above this file")
    tolerance = 0.0 if row.data.get("relative_tolerance") is None else row.amount("relative_tolerance")
    known, known_cpu_s = (None if row.data.get(key) is None else row.amount(key) for key in ("known", "known_cpu_s"))
    return KnownProblem(row.text("id"), format, graph, row, known, tolerance, known_cpu_s)
