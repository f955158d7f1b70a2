"""Every parser of ours against spoilt files: a valid object or a ScenarioError that says what is wrong, never anything else.

A valid object is used as its readers would: described, stored and read again. A refusal must hold at least one mistake, and name the file.
"""

from __future__ import annotations

import json
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from chinchilla_sim.cluster.calibration import Calibration, load_calibration
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.importers import read_graph
from chinchilla_sim.interchange.assemble import Machines, import_files
from chinchilla_sim.planner.accuracy import AccuracyTable, load_table
from chinchilla_sim.planner.plan_file import load_plan, parse_plan
from chinchilla_sim.planner.selection.judge import Progress
from chinchilla_sim.scenario.check import suggest
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.load import load_scenario, parse_scenario
from chinchilla_sim.simulator.drawing import draw_schedule
from chinchilla_sim.validation import fuzz_seeds as seeds
from chinchilla_sim.validation.mutation import Form, shrink, spoil

LONGEST_S = 30
"""A file that takes so long to read, on whatever machine, hangs."""


@dataclass(frozen=True, slots=True)
class Parser:
    """Reads one kind of file; `read` raises ScenarioError, or uses what it has read."""

    name: str
    suffix: str
    form: Form
    seeds: tuple[bytes, ...]
    read: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """What escaped, where in our code, and the smallest file that does it; `count` files did."""

    error: str
    place: str
    content: bytes
    count: int = 1


@dataclass
class Tally:
    """What became of the files of one parser."""

    parser: Parser
    valid: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    found: dict[str, Failure] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Files that were read."""
        return self.valid + self.refused + self.failed

    @property
    def failed(self) -> int:
        """Files that were neither read nor refused."""
        return sum(failure.count for failure in self.found.values())

    def add(self, failure: Failure) -> None:
        """Count a failure with those of the same place, and keep the smaller file."""
        before = self.found.get(failure.place)
        smaller = before.content if before and len(before.content) <= len(failure.content) else failure.content
        self.found[failure.place] = Failure(failure.error, failure.place, smaller, before.count + 1 if before else 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        failures = [{"error": one.error, "place": one.place, "count": one.count} for one in self.found.values()]
        return {"parser": self.parser.name, "inputs": self.inputs, "valid": self.valid, "refused": self.refused, "failures": failures}


def parsers() -> tuple[Parser, ...]:
    """All kinds of files that people and other programs give us; ONNX where its package is there."""
    onnx = seeds.onnx_model()
    return (
        Parser("scenario", ".toml", "toml", (seeds.NODES.encode(), seeds.HERE.encode()), _read_scenario),
        Parser("plan", ".json", "json", seeds.plans(), _read_plan),
        _graph_parser("chinchilla", ".json", "json", seeds.task_graph()),
        _graph_parser("pipedream", ".txt", "text", seeds.PIPEDREAM.encode()),
        _graph_parser("dnn-partitioning", ".json", "json", seeds.DNN_PARTITIONING.encode()),
        _graph_parser("piper", ".json", "json", seeds.PIPER.encode()),
        *([_graph_parser("onnx", ".onnx", "binary", onnx)] if onnx else []),
        Parser("import huggingface", ".json", "json", (seeds.HUGGING_FACE.encode(),), _read_foreign),
        Parser("import megatron", ".sh", "text", (seeds.MEGATRON.encode(),), _read_foreign),
        Parser("import deepspeed", ".json", "json", (seeds.DEEPSPEED.encode(),), _read_deepspeed),
        Parser("accuracy table", ".json", "json", (seeds.accuracy_table(),), _read_accuracy),
        Parser("calibration", ".json", "json", (seeds.calibration(),), _read_calibration),
        Parser("program", ".csv", "text", (seeds.PROGRAM.encode(), seeds.SPLIT_PROGRAM.encode()), _read_program),
    )


def fuzz(inputs: int, seed: int, names: Sequence[str] = (), progress: Progress | None = None) -> list[Tally]:
    """Read so many spoilt files, as many of each kind; with `names` of these kinds only."""
    known = parsers()
    for name in names:
        if name not in [parser.name for parser in known]:
            raise ScenarioError([Mistake("--parser", f"there is no parser {name!r}", suggest(name, [parser.name for parser in known]))])
    chosen = [parser for parser in known if not names or parser.name in names]
    tallies = [Tally(parser) for parser in chosen]
    with TemporaryDirectory(prefix="chinchilla-fuzz-") as folder:
        for number in range(inputs):
            tally = tallies[number % len(tallies)]
            _fuzz_once(tally, Random(f"{seed}/{tally.parser.name}/{number // len(tallies)}"), Path(folder))
            if progress and number % 20 == 0:
                progress(number, inputs)
        for tally in tallies:
            for place, failure in tally.found.items():
                smallest = _smallest(tally.parser, failure, Path(folder))
                tally.found[place] = Failure(failure.error, place, smallest, failure.count)
    return tallies


def _fuzz_once(tally: Tally, random: Random, folder: Path) -> None:
    parser = tally.parser
    content = spoil(random.choice(parser.seeds), parser.form, random)
    started_s = perf_counter()
    refused, failure = judge(parser, content, folder)
    tally.slowest_s = max(tally.slowest_s, perf_counter() - started_s)
    if failure:
        tally.add(failure)
    tally.refused += refused and not failure
    tally.valid += not refused and not failure


def judge(parser: Parser, content: bytes, folder: Path) -> tuple[bool, Failure | None]:
    """Whether a file was refused, and what went wrong where it was neither read nor refused as it should be."""
    path = folder / f"spoilt{parser.suffix}"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings(), _in_time():
            warnings.simplefilter("error")
            parser.read(path)
    except ScenarioError as refusal:
        return True, _complaint(refusal, path, content)
    except Exception as error:
        return False, Failure(f"{type(error).__name__}: {error}"[:300], _place_of(error), content)
    return False, None


def _complaint(refusal: ScenarioError, path: Path, content: bytes) -> Failure | None:
    """What is missing in a refusal, or None."""
    text = str(refusal)
    if not refusal.mistakes or not all(mistake.what for mistake in refusal.mistakes):
        return Failure("a refusal without a mistake", "refusal/empty", content)
    if path.name not in text and not any(mistake.cure for mistake in refusal.mistakes):
        return Failure(f"a refusal with neither file nor cure: {text[:200]}", "refusal/nameless", content)
    return None


def _place_of(error: BaseException) -> str:
    """Kind of the error, and the line of ours where it came up."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "chinchilla_sim" in frame.filename and frame.name != "judge"]
    last = ours[-1] if ours else None
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}" if last else type(error).__name__


@contextmanager
def _in_time() -> Iterator[None]:
    """TimeoutError after LONGEST_S, where the system has an alarm clock for this thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"not read within {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _smallest(parser: Parser, failure: Failure, folder: Path) -> bytes:
    def fails(content: bytes) -> bool:
        _, found = judge(parser, content, folder)
        return found is not None and found.place == failure.place

    return failure.content if failure.place.startswith("TimeoutError") else shrink(failure.content, fails)


def _graph_parser(format: str, suffix: str, form: Form, seed: bytes) -> Parser:
    def read(path: Path) -> None:
        graph, profile = read_graph(path, format)
        _same(all(graph.position[producer] < graph.position[consumer] for producer, consumer in graph.edges), "tasks in dependency order")
        _same(bool(graph.digest and profile.digest) and profile.measured_tasks <= set(graph.position), "times of tasks of the graph")

    return Parser(f"graph {format}", suffix, form, (seed,), read)


def _same(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"what was read is not valid: {what}")


def _read_scenario(path: Path) -> None:
    scenario = load_scenario(path)
    stored = json.loads(json.dumps(scenario.to_dict()))
    _same(parse_scenario(stored, str(path)) == scenario, "the same scenario when it is stored and read again")


def _read_plan(path: Path) -> None:
    file = load_plan(path)
    _same(bool(file.plan.describe()), "a plan that can be described")
    _same(
        parse_plan(json.loads(json.dumps(file.to_dict(), allow_nan=False)), str(path)) == file,
        "the same plan when it is stored and read again",
    )


def _read_foreign(path: Path) -> None:
    imported = import_files([path], Machines(count=8), overrides=["job.global_batch_size=64"])
    _same(bool(json.dumps(imported.to_dict())), "an account of what was used")


def _read_deepspeed(path: Path) -> None:
    model = path.with_name("config.json")
    model.write_text(seeds.HUGGING_FACE)
    _same(bool(json.dumps(import_files([model, path], Machines()).to_dict())), "an account of what was used")


def _read_accuracy(path: Path) -> None:
    table = load_table(path)
    target = table.target_of(JobSpec(global_batch_size=64))
    for change in table.changes:
        table.drop([change])
        table.steps_ratio([change], target)
        table.reached(change, target)
    table.plain_steps(target)
    stored = json.dumps(table.to_dict())
    _same(bool(table.describe()), "a table that can be described")
    _same(json.dumps(AccuracyTable.from_dict(json.loads(stored)).to_dict()) == stored, "the same table when it is stored and read again")


def _read_calibration(path: Path) -> None:
    calibration = load_calibration(path)
    _same(bool(calibration.device(2).name and calibration.key.digest), "a device for two busy ranks")
    _same(
        Calibration.from_dict(calibration.to_dict()).digest == calibration.digest, "the same constants when they are stored and read again"
    )


def _read_program(path: Path) -> None:
    drawn = draw_schedule(str(path), 1, None, 1, (1.0, 1.0, 1.0), 0.0)
    _same(drawn.timeline.step_s > 0, "a step that takes time")
