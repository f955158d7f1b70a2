"""Requests answered by real processes: each once, with the model's own answer, in batches that the discipline allows."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.contract import factory_of, load_job
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.serving import Load, Station, Tandem, demand_of
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.runtime.answering.requests import read_run
from chinchilla_sim.runtime.answering.serving import Orders
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from chinchilla_sim.validation.served import ServedRun, compare_served

COUNT, MOST, WINDOW = 120, 6, 2

JOB = '''
import torch
from torch import nn


class Net(nn.Module):
    """Two inputs (one of whole numbers), a skip over everything, and a size that depends on the number of samples."""

    def __init__(self, fixed):
        super().__init__()
        self.table, self.first, self.second, self.third = nn.Embedding(9, 8), nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last, self.fixed = nn.Linear(16, 4), fixed

    def forward(self, x, ids):
        start = torch.tanh(self.first(x)) + self.table(ids)
        n = x.shape[0]
        inner = torch.relu(self.second(start)).view(n, 2, 4).transpose(1, 2).reshape(n, 8)
        if self.fixed:
            inner = inner * inner.new_ones(int(n), 1)
        return self.last(torch.cat([torch.tanh(self.third(inner)), start], dim=1))


class Job:
    def __init__(self, fixed):
        self.fixed = fixed

    def model(self):
        return Net(self.fixed)

    def example_batch(self, size):
        return (torch.zeros(size, 12), torch.zeros(size, dtype=torch.int64)), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def batches(self, split, seed, epoch):
        generator = torch.Generator().manual_seed(seed)
        for size in (30, 20):  # requests ask for these samples again and again
            yield (torch.randn(size, 12, generator=generator), torch.randint(0, 9, (size,), generator=generator)), torch.zeros(size)


def build(fixed=False):
    return Job(fixed)
'''


def scenario_of(folder: Path, compression: Mapping[str, Any], options: Mapping[str, Any], **demand: Any) -> Scenario:
    """The scenario of such a job on four ranks."""
    model = {"factory": f"{folder / 'job.py'}:build", "compression": compression, "options": options}
    job = {"kind": "inference", "global_batch_size": 4 * MOST, **demand}
    return parse_scenario({"model": model, "job": job, "cluster": {"kind": "this-machine", "ranks": 4}}, "own.toml")


def plan_of(scenario: Scenario, stages: int, codec: str = "none") -> Plan:
    """Four ranks in so many equal stages."""
    graph, _ = build_graph(scenario)
    names, replicas = [task.name for task in graph.compute_tasks], 4 // stages
    ends = [index + 1 for index, may in enumerate(allowed_cuts(graph, training=False)) if may]
    cuts = [min(ends, key=lambda end: abs(end - len(names) * stage / stages)) for stage in range(1, stages)]
    return Plan(
        stages=tuple(tuple(names[start:end]) for start, end in pairwise([0, *cuts, len(names)])),
        placement=tuple(tuple(stage * replicas + replica for replica in range(replicas)) for stage in range(stages)),
        slots=(0, 1, 2, 3),
        global_batch_size=4 * MOST,
        microbatch_count=4 // replicas,
        schedule="forward",
        gradient_codecs=("none",) * stages,
        activation_codecs=(codec,) * (stages - 1),
    )


@dataclass(frozen=True)
class Case:
    """One run on requests: what its scenario and plan say, and how near its answers are to the model's."""

    stages: int
    demand: Mapping[str, Any]
    codec: str = "none"
    compression: Mapping[str, Any] | None = None
    options: Mapping[str, Any] | None = None
    tolerance: float = 1e-6


POISSON, LOOP = {"arrival_rate": "400 requests/s", "seed": 5}, {"concurrency": 10}
CASES = {
    "pipeline": Case(4, POISSON),
    "replicas": Case(1, POISSON),
    "both": Case(2, POISSON, "int8", tolerance=0.05),
    "loop": Case(2, LOOP),
    "loop-of-replicas": Case(1, LOOP),
    "int8": Case(2, POISSON, compression={"quantize": "int8"}, tolerance=0.05),
    "fixed": Case(2, POISSON, options={"fixed": True}),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, PlanFile, ServedRun]]:
    """All of them, in one launch."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "job.py").write_text(JOB)
    files = {}
    for name, case in CASES.items():
        scenario = scenario_of(folder, case.compression or {}, case.options or {}, **case.demand)
        files[name] = PlanFile(plan_of(scenario, case.stages, case.codec), scenario)
        (folder / name).mkdir()
        files[name].save(folder / name / "plan.json")
        Orders(COUNT, (WINDOW,) * files[name].plan.data_parallel_degree).save(folder / name)
    launch_ranks("tests.runtime.play_plans", [str(folder)], 4, folder)
    records = {name: [json.loads((folder / name / f"rank{rank}.json").read_text()) for rank in range(4)] for name in CASES}
    return {name: (folder / name, file, read_run(file, records[name])) for name, file in files.items()}


@pytest.mark.parametrize("name", CASES)
def test_every_request_is_answered_once_after_it_came(served: Any, name: str) -> None:
    """`read_run` refuses a request that is missing or there twice; no answer is before its arrival; each stage met each request."""
    _, file, run = served[name]
    assert len(run.arrivals_s) == COUNT
    assert all(end_s > arrival_s for arrival_s, end_s in zip(run.arrivals_s, run.answered_s, strict=True))
    for stage in range(file.plan.stage_count):
        met = sorted(number for one in run.passes if one.stage == stage for number in range(one.first, one.first + one.size))
        assert met == list(range(COUNT))


@pytest.mark.parametrize("name", CASES)
def test_answers_are_the_model_s(served: Any, name: str) -> None:
    """Whatever batch a request was in, and whatever stages that passed."""
    folder, file, _ = served[name]
    job = load_job(*factory_of(file.scenario), to_run=True)
    torch.manual_seed(file.scenario.job.seed)
    model = job.model().eval()
    parts = [inputs for inputs, _ in job.batches("validation", file.scenario.job.seed, 0)]
    with torch.no_grad():
        expected = model(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    kept = {number: part for path in folder.glob("answers*.pt") for number, part in torch.load(path, weights_only=True).items()}
    assert sum(map(len, kept.values())) == COUNT
    for first, answers in kept.items():
        wanted = expected[torch.arange(first, first + len(answers)) % len(expected)]
        torch.testing.assert_close(answers, wanted, rtol=CASES[name].tolerance, atol=CASES[name].tolerance)


@pytest.mark.parametrize("name", CASES)
def test_batches_keep_to_the_discipline(served: Any, name: str) -> None:
    """A batch is all that wait when it is taken, up to a full one, and no replica holds more than its window."""
    folder, file, run = served[name]
    arrivals = sorted(run.arrivals_s)
    for rank in range(4):
        rows = json.loads((folder / f"rank{rank}.json").read_text())["taken"]
        ends = []
        for first, size, start_s, times in rows:
            assert 1 <= size <= MOST and max(times) <= start_s
            if size < MOST and first + size < COUNT and not file.scenario.job.concurrency:
                assert arrivals[first + size] > start_s
            inside = sum(end_s > start_s for end_s in ends)
            assert inside < WINDOW
            ends.append(run.answered_s[first])


def test_arrivals_are_those_of_the_seed(served: Any) -> None:
    """They are the simulator's, to the last bit, however many replicas there are."""
    expected = tuple(Load(400.0, 5).arrivals_s(COUNT).tolist())
    for name in ("pipeline", "replicas", "both", "fixed"):
        assert served[name][2].arrivals_s == expected


@pytest.mark.parametrize("name", ["loop", "loop-of-replicas"])
def test_a_closed_loop_has_as_many_under_way_as_stated(served: Any, name: str) -> None:
    """Ten requests at first, and every other comes with an answer of its own, at its very moment."""
    run = served[name][2]
    arrivals = sorted(run.arrivals_s)
    assert arrivals[:10] == [0.0] * 10 and len(arrivals) == COUNT
    # Replicas that answer at once race for the last ones.
    assert not Counter(arrivals[10:]) - Counter(run.answered_s)


def test_all_replicas_take_part(served: Any) -> None:
    """Where four are free, four are used."""
    assert {one.replica for one in served["replicas"][2].passes} == {0, 1, 2, 3}


def test_what_cannot_be_traced_for_any_number_is_filled_up_and_told(served: Any) -> None:
    """Only such a model computes the priced sizes alone."""
    sizes = {name: served[name][2].fixed_sizes for name in CASES}
    assert sizes == {name: (1, 2, 4, 6) if name == "fixed" else () for name in CASES}


def test_bytes_on_the_wire_are_those_of_the_requests(served: Any) -> None:
    """Two stages: 16 values of 4 bytes for each request cross the boundary (the skip, and what the next layer reads), and a header."""
    _, file, run = served["loop"]
    batches = len([one for one in run.passes if one.stage == 0])
    graph, _ = build_graph(file.scenario)
    crossing = graph.live_after(graph.position[file.plan.stages[0][-1]])
    payload = sum(task.output_bytes for task in crossing) / graph.batch_size * COUNT
    assert run.sent_bytes == payload + batches * 8 * (2 + sum(len(task.shapes[0]) for task in crossing))


def test_a_request_that_is_lost_or_there_twice_is_told(served: Any) -> None:
    """The records of a run must add up."""
    folder, file, _ = served["replicas"]
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)]
    lost, twice = ([dict(record) for record in records] for _ in range(2))
    lost[0]["answered"] = lost[0]["answered"][1:]
    twice[0]["answered"] = twice[0]["answered"] + twice[0]["answered"][:1]
    with pytest.raises(RunError, match="120 requests were taken"):
        read_run(file, lost)
    with pytest.raises(RunError, match="answered twice"):
        read_run(file, twice)


def test_a_run_is_compared_with_the_simulation_of_its_own_batches(served: Any) -> None:
    """Stages by their mean seconds, for the sizes that came; figures in the simulator's form."""
    _, file, run = served["loop"]
    demand = demand_of(file.scenario.job)
    assert demand is not None
    tandem = Tandem((Station((1.0,) * MOST), Station((0.0,) * MOST), Station((3.0,) * MOST)))
    measured = run.serving(demand, [tandem] * 2)
    comparison = compare_served(replace(measured, p50_s=2 * measured.p50_s), run, demand, [tandem] * 2)
    assert [row.simulated_s for row in comparison.stages] == [1.0, 3.0]
    assert comparison.to_dict()["relative_errors"]["p50_s"] == pytest.approx(1.0)
    assert comparison.measured.concurrency == 10 and not comparison.measured.saturated
