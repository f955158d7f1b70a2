"""Runs that go on from checkpoints: to the last bit with the same plan, within rounding with another; killed, hanging, out of disk."""

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.runtime.benchmark.kills import living, measure_kills, small_plans
from chinchilla_sim.runtime.launching.launch import launch_ranks, run_plan
from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, checkpoint_path, sealed_checkpoints, step_of, why_broken
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.test_run import make_plan

STEPS, INTERVAL = 30, 7

JOB = '''
import torch
from torch import nn


class Net(nn.Module):
    """A head tied to the embedding, and random numbers where asked for."""

    def __init__(self, dropout):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.inner, self.drop = nn.Linear(8, 8), nn.Dropout(dropout)

    def forward(self, ids):
        x = self.embedding(ids)
        x = x + self.drop(torch.relu(self.inner(self.norm(x))))
        return nn.functional.linear(x, self.embedding.weight)


class Job:
    def __init__(self, dropout):
        self.dropout = dropout

    def model(self):
        return Net(self.dropout)

    def example_batch(self, size):
        return torch.zeros(size, 6, dtype=torch.int64), torch.zeros(size, 6, dtype=torch.int64)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def batches(self, split, seed, epoch):
        ids = torch.randint(0, 11, (500, 7), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        yield ids[:, :-1], ids[:, 1:]

    def evaluate(self, model):
        return {"validation_accuracy": float(sum(p.sum() for p in model.parameters()).detach())}


def build(dropout=0.0):
    return Job(dropout)
'''

SCENARIO = f"""
[model]
factory = "job.py:build"
options = {{ dropout = 0.0 }}

[job]
global_batch_size = 24
epochs = 2
steps = {STEPS}
learning_rate = 0.01
learning_rate_schedule = "linear"
checkpoint_interval_steps = {INTERVAL}

[cluster]
kind = "this-machine"
ranks = 2
"""


def plan_of(scenario: Scenario, replicas: int, stages: int, codec: str = "none") -> Plan:
    """Two microbatches through stages of about as many tasks each."""
    graph = build_graph(scenario)[0]
    names = [task.name for task in graph.compute_tasks]
    allowed = [number for number, fine in enumerate(allowed_cuts(graph, training=True), start=1) if fine and number < len(names)]
    cuts = [min(allowed, key=lambda cut: abs(cut - len(names) * part / stages)) for part in range(1, stages)]
    parts = tuple(tuple(names[start:end]) for start, end in itertools.pairwise([0, *cuts, len(names)]))
    placement = tuple(tuple(stage + replica * stages for replica in range(replicas)) for stage in range(stages))
    slots = tuple(range(replicas * stages))
    plan = Plan(parts, placement, slots, 24, 2, "1f1b", (codec,) * stages, ("none",) * (stages - 1))
    return with_sharing(plan, graph)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of half a megabyte, where root may make one."""
    folder.mkdir(parents=True)
    if os.getuid() != 0:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of all runs and their continuations over two ranks."""
    root = tmp_path_factory.mktemp("resumptions")
    (root / "job.py").write_text(JOB)
    (root / "own.toml").write_text(SCENARIO)
    adam = load_scenario(root / "own.toml")
    sgd = load_scenario(root / "own.toml", ["job.optimizer=sgd", "job.momentum=0.5", "job.learning_rate=0.05"])
    random = load_scenario(root / "own.toml", ["model.options.dropout=0.2"])
    timed = load_scenario(root / "own.toml", ["job.checkpoint_interval=1 ms"])
    timed = timed.model_copy(update={"job": timed.job.model_copy(update={"checkpoint_interval_steps": None})})
    cases: dict[str, tuple[Scenario, tuple[int, int], tuple[int, int] | None]] = {
        "replicas": (adam, (2, 1), (1, 2)),
        "pipeline": (sgd, (1, 2), (2, 1)),
        "dropout": (random, (2, 1), None),
        "timed": (timed, (2, 1), None),
        "full": (adam, (2, 1), None),
    }
    for name, (scenario, shape, after) in cases.items():
        (root / name).mkdir()
        PlanFile(plan_of(scenario, *shape), scenario).save(root / name / "plan.json")
        if after:
            PlanFile(plan_of(scenario, *after), scenario).save(root / name / "after.json")
    (root / "feedback").mkdir()
    PlanFile(plan_of(adam, 2, 1, "int8"), adam).save(root / "feedback" / "plan.json")
    with small_disk(root / "full" / FOLDER):
        if os.getuid() == 0:
            (root / "full" / "fill_at").write_text(str(INTERVAL + 1))
        launch_ranks("tests.runtime.play_resumptions", [str(root)], 2, root)
        yield root


def losses_of(folder: Path) -> list[float]:
    """Sums of all ranks' parts."""
    parts = [json.loads((folder / f"rank{rank}.json").read_text())["losses"] for rank in range(2)]
    return [sum(row) for row in zip(*(part for part in parts if part), strict=True)]


def weights_of(folder: Path) -> Any:
    """Final weights."""
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.parametrize("case", ["replicas", "pipeline", "dropout", "timed", "feedback"])
def test_the_same_plan_goes_on_to_the_last_bit(played: Path, case: str) -> None:
    """Losses of all steps, weights and metrics equal those of the run that was not interrupted; only the last steps are made again."""
    whole, again = played / case / "whole", played / case / "again"
    assert losses_of(whole) == losses_of(again) and len(losses_of(whole)) == STEPS
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(again)[name]), name
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (whole, again)]
    assert [[row["steps"], row["validation_accuracy"]] for row in lines[0]] == [
        [row["steps"], row["validation_accuracy"]] for row in lines[1]
    ]
    made = len(json.loads((again / "rank0.json").read_text())["intervals"])
    assert made == STEPS - step_of(sealed_checkpoints(played / case / FOLDER)[0]) < STEPS


@pytest.mark.parametrize("case", ["replicas", "pipeline"])
def test_another_plan_goes_on_within_rounding(played: Path, case: str) -> None:
    """Replicas go on as a pipeline and the other way round, with tied weights and the optimizer's state: to 1e-5."""
    whole, after = played / case / "whole", played / case / "after"
    assert losses_of(after) == pytest.approx(losses_of(whole), rel=1e-5)
    assert losses_of(after)[: 4 * INTERVAL] == losses_of(whole)[: 4 * INTERVAL]
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(after)[name], tensor, rtol=1e-5, atol=1e-6)
    assert "another plan" in (played / case / "after" / "notes.txt").read_text()


def test_checkpoints_come_at_their_interval_and_two_are_kept(played: Path) -> None:
    """Before every seventh step, the last two of a run; by time at the latest when it is over."""
    assert [step_of(path) for path in sealed_checkpoints(played / "replicas" / FOLDER)] == [4 * INTERVAL, 3 * INTERVAL]
    assert len(sealed_checkpoints(played / "timed" / FOLDER)) == 2
    assert all(why_broken(path) is None for path in sealed_checkpoints(played / "replicas" / FOLDER))


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_costs_checkpoints_and_nothing_else(played: Path) -> None:
    """The run goes on and says which checkpoints are missing and why; the one before is as it was."""
    assert losses_of(played / "full" / "whole") == losses_of(played / "replicas" / "whole")
    told = (played / "full" / "notes.txt").read_text()
    for step in (2 * INTERVAL, 3 * INTERVAL, 4 * INTERVAL):
        assert f"no checkpoint of step {step}: " in told
    assert "No space left on device" in told and f"the last one is of step {INTERVAL}" in told
    assert [step_of(path) for path in sealed_checkpoints(played / "full" / FOLDER)] == [INTERVAL]
    assert why_broken(checkpoint_path(played / "full" / FOLDER, INTERVAL)) is None
    assert losses_of(played / "full" / "again") == losses_of(played / "full" / "whole")


def test_one_rank_goes_on_where_two_stopped(played: Path, tmp_path: Path) -> None:
    """Also with the newest checkpoint spoilt: the one before is used, the user is told, and the damaged one is kept for a look."""
    scenario = load_scenario(played / "own.toml")
    source = tmp_path / "two"
    source.mkdir()
    subprocess.run(["cp", "-r", str(played / "replicas" / FOLDER), str(source)], check=True)
    spoilt = checkpoint_path(source / FOLDER, 4 * INTERVAL) / "__1_0.distcp"
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    told = list[str]()
    measurement = run_plan(PlanFile(plan_of(scenario, 1, 1), scenario), tmp_path / "one", resume=source, tell=told.append)
    whole = losses_of(played / "replicas" / "whole")
    assert list(measurement.losses) == pytest.approx(whole, rel=1e-5)
    assert "passed over" in told[0] and "__1_0.distcp has" in told[0] and f"{3 * INTERVAL} steps are done" in told[1]
    assert spoilt.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=5", r"job\.seed = 0, not 5"),
        ("optimizer=sgd", r"optimizer = adam, not sgd"),
        ("steps=20", "behind 28 steps, and the job has 20"),
    ],
)
def test_another_job_is_refused(played: Path, tmp_path: Path, change: str, message: str) -> None:
    """A checkpoint is not used for other data, another optimizer, or fewer steps than it has; known before ranks start."""
    scenario = load_scenario(played / "own.toml", [f"job.{change}"])
    with pytest.raises(RunError, match=message):
        run_plan(PlanFile(plan_of(scenario, 1, 1), scenario), tmp_path / "run", resume=played / "replicas")
    assert not (tmp_path / "run" / "launcher.log").exists()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("while step == 4: pass", r"(?s)rank 1 .* hangs in step 3 at 0F0: .*job.py:\d+ in loss"),
        ("step == 4 and os.kill(os.getpid(), 19)", r"(?s)rank 0 .*waits in step 3 .*rank 1 .* hangs in step 3 at 0F0: stopped by a signal"),
    ],
)
def test_a_rank_that_hangs_ends_the_run(write_scenario: Callable[..., Scenario], tmp_path: Path, trouble: str, message: str) -> None:
    """Within the job's timeout, with the rank, its step, action and place in the message, and no process left."""
    code = f"import os; self.n = getattr(self, 'n', 0) + 1; step = (os.environ['RANK'] == '1') * (self.n + 1)\n        {trouble}"
    scenario = write_scenario(code)
    job = scenario.job.model_copy(update={"timeout_s": 8.0})
    scenario = scenario.model_copy(update={"job": job})
    with pytest.raises(RunError, match=message):
        run_plan(PlanFile(make_plan(scenario, 2, 1, 1), scenario), tmp_path / "run")
    assert not living(tmp_path)


def test_kills_at_random_moments_lose_nothing(write_scenario: Callable[..., Scenario], tmp_path: Path) -> None:
    """Rank, launcher or command: every run ends with the bits of the one without trouble, and leaves no process."""
    scenario = write_scenario("import time; time.sleep(0.05)")
    scenario = scenario.model_copy(update={"job": scenario.job.model_copy(update={"checkpoint_interval_steps": 3})})
    file = PlanFile(make_plan(scenario, 1, 2, 3), scenario)
    for kill in measure_kills(file, 2, 0, tmp_path / "kills"):
        assert kill.harmless, kill


@pytest.mark.parametrize("number", [2, 3])
def test_kills_of_divided_state_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_job: Any, number: int) -> None:
    """Under ZeRO and tensor parallelism too; a launcher that is killed leaves no folder behind."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    file = with_job(small_plans()[number], epochs=1, checkpoint_interval_steps=20)
    for kill in measure_kills(file, 1, number, tmp_path / "kills"):
        assert kill.harmless, kill
    assert not [*(tmp_path / "tmp").glob("torchelastic_*")]
