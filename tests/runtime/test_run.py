"""Real runs over torch.distributed against plain PyTorch in one process, and ranks that fail."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.drafting.placement import placements
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.runtime.launching.launch import run_plan
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph, prepare

RELATIVE = 1e-5
SCENARIOS = Path(__file__).parents[2] / "scenarios"
CUTS = {1: [], 2: [3], 3: [2, 5], 4: [1, 3, 5]}


def make_plan(
    scenario: Scenario,
    replicas: int,
    stages: int,
    microbatches: int,
    schedule: str = "1f1b",
    gradient: str = "none",
    activation: str = "none",
) -> Plan:
    """A plan of the user's own job."""
    names = [task.name for task in build_graph(scenario)[0].compute_tasks]
    edges = [0, *CUTS[stages], len(names)]
    parts = tuple(tuple(names[start:end]) for start, end in itertools.pairwise(edges))
    placement = next(iter(placements(replicas, stages)))
    batch = scenario.job.global_batch_size
    codecs = (gradient,) * stages, (activation,) * (stages - 1)
    return Plan(parts, placement, tuple(range(replicas * stages)), batch, microbatches, schedule, *codecs)


@pytest.mark.parametrize(
    ("replicas", "stages", "microbatches", "schedule"),
    [(2, 1, 1, "1f1b"), (1, 3, 4, "1f1b"), (1, 2, 4, "gpipe"), (2, 2, 3, "1f1b")],
)
def test_losses_and_weights_equal_one_process(
    own: Scenario, tmp_path: Path, single_process: Any, replicas: int, stages: int, microbatches: int, schedule: str
) -> None:
    """Without codec every loss and, after 30 steps, every weight equals plain PyTorch's to 1e-5, skips across stages included."""
    measurement = run_plan(PlanFile(make_plan(own, replicas, stages, microbatches, schedule), own), tmp_path / "run")
    losses, weights = single_process(own, 30)
    assert measurement.losses == pytest.approx(losses, rel=RELATIVE)
    assert measurement.weights is not None
    saved = torch.load(measurement.weights, weights_only=True)
    assert saved.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(saved[name], tensor, rtol=RELATIVE, atol=1e-6)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_target_samples_end_the_run(own: Scenario, tmp_path: Path, with_job: Any) -> None:
    """Two full batches and one sample more are three steps."""
    samples = 2 * own.job.global_batch_size + 1
    measurement = run_plan(with_job(PlanFile(make_plan(own, 1, 1, 1), own), target_samples=samples), tmp_path / "run")
    assert len(measurement.losses) == 3


def test_gradients_equal_one_process(own: Scenario, tmp_path: Path, single_process: Any, with_job: Any) -> None:
    """One step of SGD with learning rate 1 moves every weight by its gradient: equal to 1e-5 of the gradient's norm."""
    file = with_job(PlanFile(make_plan(own, 2, 2, 3), own), steps=1, epochs=1, learning_rate=1.0)
    measurement = run_plan(file, tmp_path / "run")
    _, after = single_process(file.scenario, 1)
    _, before = single_process(file.scenario, 0)
    saved = torch.load(str(measurement.weights), weights_only=True)
    for name in after:
        ours, theirs = before[name] - saved[name], before[name] - after[name]
        assert float((ours - theirs).norm() / theirs.norm()) <= RELATIVE, name


@pytest.mark.parametrize(("gradient", "activation", "largest"), [("int8", "bf16", 0.02), ("bf16", "int8", 0.02), ("fp16", "fp16", 0.005)])
def test_codecs_stay_near_and_send_what_the_plan_says(
    own: Scenario, tmp_path: Path, single_process: Any, gradient: str, activation: str, largest: float
) -> None:
    """Codecs change losses a little, and measured bytes on the wire equal the priced ones."""
    plan = make_plan(own, 2, 2, 3, gradient=gradient, activation=activation)
    measurement = run_plan(PlanFile(plan, own), tmp_path / "run")
    losses, _ = single_process(own, 30)
    assert measurement.losses == pytest.approx(losses, rel=largest)
    assert measurement.losses != pytest.approx(losses, rel=1e-7)
    setting = prepare(own)
    pricing = Pricer(setting.graph, setting.cluster, own.job).price(plan)
    for rank in range(4):
        (stage,), _ = plan.position[rank]
        boundary = pricing.boundary_bytes[0] if stage == 0 else pricing.boundary_gradient_bytes[0]
        assert measurement.timeline.sent_bytes(rank) == pytest.approx(3 * boundary + pricing.gradients[stage].sent_bytes)


def test_network_of_the_article_equals_one_process(tmp_path: Path, single_process: Any) -> None:
    """The first 20 losses of 784-512-10 with Adam over two stages and two replicas equal a single process to 1e-5."""
    scenario = load_scenario(SCENARIOS / "mnist_mlp.toml", ["job.steps=20", "job.learning_rate_schedule=constant"])
    plan = Plan((("linear",), ("relu", "linear_1", "loss")), ((0, 2), (1, 3)), (0, 1, 2, 3), 64, 2, "1f1b", ("none",) * 2, ("none",))
    measurement = run_plan(PlanFile(plan, scenario), tmp_path / "run")
    losses, _ = single_process(scenario, 20)
    assert measurement.losses == pytest.approx(losses, rel=RELATIVE)
    assert set(measurement.metrics) == {"validation_accuracy", "validation_loss"}


def test_inference_plays_forward_passes_only(own: Scenario, tmp_path: Path, with_job: Any) -> None:
    """A forward program over two stages measures steps and has neither losses nor new weights."""
    scenario = with_job(PlanFile(make_plan(own, 1, 2, 3), own), kind="inference", steps=10).scenario
    measurement = run_plan(PlanFile(make_plan(scenario, 1, 2, 3, "forward"), scenario), tmp_path / "run")
    assert {span.category for span in measurement.timeline.spans} == {"input", "forward", "transfer"}
    assert measurement.losses == () and measurement.weights is None and len(measurement.step_s) == 5


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("import os; _ = 1 / (0 if os.environ['RANK'] == '1' else 1)", "ZeroDivisionError"),
        ("import os; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)", "died without a traceback"),
    ],
)
def test_rank_that_fails_ends_the_run(write_scenario: Callable[..., Scenario], tmp_path: Path, trouble: str, message: str) -> None:
    """The others are stopped within seconds, the error holds the rank's own traceback, and no process is left."""
    scenario = write_scenario(trouble)
    with pytest.raises(RunError, match=message):
        run_plan(PlanFile(make_plan(scenario, 2, 1, 1), scenario), tmp_path / "run")
    assert not processes_of(tmp_path)


def test_killed_command_leaves_no_process(write_scenario: Callable[..., Scenario], tmp_path: Path) -> None:
    """kill -9 of the command in the middle of a run ends its launcher and ranks."""
    scenario = write_scenario("import time; time.sleep(0.05)")
    PlanFile(make_plan(scenario, 2, 1, 1), scenario).save(tmp_path / "own.json")
    code = (
        "from pathlib import Path\nfrom chinchilla_sim.planner.plan_file import load_plan\n"
        "from chinchilla_sim.runtime.launching.launch import run_plan\n"
        f"run_plan(load_plan(Path({str(tmp_path / 'own.json')!r})), Path({str(tmp_path / 'run')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until(lambda: len(processes_of(tmp_path)) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: not processes_of(tmp_path))


def wait_until(condition: Callable[[], bool], patience_s: float = 60.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that work on this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command and int(entry.parent.name) != os.getpid():
            found.append(command)
    return found
