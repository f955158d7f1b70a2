"""The script of torch alone: trains like `chinchilla run`, imports nothing of ours, and refuses what it cannot say."""

import ast
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.export.script import export_script
from chinchilla_sim.runtime.export.stage_code import write_module
from chinchilla_sim.runtime.launching.launch import RANK_ENVIRONMENT, run_plan
from chinchilla_sim.scenario.schema import Scenario
from tests.runtime.test_run import make_plan

STEPS = 8


def looped(scenario: Scenario) -> Plan:
    """Two stages on each of two ranks."""
    return replace(make_plan(scenario, 1, 4, 4), placement=((0,), (1,), (0,), (1,)), slots=(0, 1), schedule="interleaved-1f1b")


def losses_of(folder: Path, ranks: int, other: Path) -> list[float]:
    """Run train.py elsewhere, with no way to this package, and read its losses."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(folder / "train.py")]
    environment = {"PATH": "/usr/bin:/bin", **RANK_ENVIRONMENT}
    result = subprocess.run(command, cwd=other, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["1f1b", "replicas", "interleaved"])
def test_script_trains_like_a_run(own: Scenario, with_job: Any, single_process: Any, tmp_path: Path, kind: str) -> None:
    """The first losses of a pipeline, of replicas, and of two stages per rank (with skips across stages) are those of a run."""
    plan = {"1f1b": make_plan(own, 1, 2, 4), "replicas": make_plan(own, 2, 1, 3), "interleaved": looped(own)}[kind]
    changes = {"learning_rate_schedule": "linear"} if kind == "1f1b" else {"optimizer": "adam", "learning_rate": 0.01}
    file = with_job(PlanFile(plan, own), steps=STEPS, epochs=1, **changes)
    export_script(file, tmp_path / "script")
    losses = losses_of(tmp_path / "script", 2, tmp_path)
    # Runs equal plain PyTorch (test_run.py), which has no schedule of learning rates there.
    expected = run_plan(file, tmp_path / "run").losses if kind == "1f1b" else single_process(file.scenario, STEPS)[0]
    assert len(losses) == STEPS and losses == pytest.approx(expected, rel=1e-5)
    saved = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "script").glob("trained_stage*.pt"))]
    assert len(saved) == plan.stage_count


def test_codecs_travel_as_halves(own: Scenario, with_job: Any, single_process: Any, tmp_path: Path) -> None:
    """With fp16 over the boundary and bf16 between replicas losses stay near, and are not the same."""
    plan = make_plan(own, 2, 2, 3, gradient="bf16", activation="fp16")
    file = with_job(PlanFile(plan, own), steps=STEPS, epochs=1)
    export_script(file, tmp_path)
    losses = losses_of(tmp_path, 4, tmp_path)
    expected, _ = single_process(file.scenario, STEPS)
    assert losses == pytest.approx(expected, rel=0.01) and losses != pytest.approx(expected, rel=1e-7)


def test_script_needs_torch_alone(own: Scenario, with_job: Any, tmp_path: Path) -> None:
    """It imports the standard library and torch; functions are short; it parses and ruff finds nothing in it."""
    export_script(with_job(PlanFile(make_plan(own, 1, 2, 4), own), steps=2), tmp_path)
    text = (tmp_path / "train.py").read_text()
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= {"torch"} | sys.stdlib_module_names
    lengths = [(node.end_lineno or 0) - node.lineno for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert max(lengths) < 50
    rules = ["--isolated", "--no-cache", "--select", "E,F,UP,B,SIM", "--ignore", "E402,E501", "--target-version", "py311"]
    found = subprocess.run([sys.executable, "-m", "ruff", "check", *rules, str(tmp_path / "train.py")], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    for rank, pair in enumerate(itertools.pairwise(("0RECV_B0", "1RECV_F0", ""))):
        assert f"{rank}: " in text and pair[0] in text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gradient_codecs": ("int8", "int8")}, "codecs other than fp16 and bf16"),
        ({"gradient_buckets": 2}, "gradient buckets"),
        ({"recompute": ("full", "none")}, "recompute"),
        ({"zero_stage": 1}, "ZeRO"),
        ({"schedule": "zb-h1"}, "split backward passes"),
        ({"shared_stages": ((0, 1),)}, "weights shared by stages"),
    ],
)
def test_what_a_script_cannot_say_is_refused(own: Scenario, tmp_path: Path, change: dict[str, Any], word: str) -> None:
    """The refusal names it, and a form that can."""
    with pytest.raises(ScenarioError, match=f"has no {word}; export --to torchrun"):
        export_script(PlanFile(replace(make_plan(own, 1, 2, 4), **change), own), tmp_path)
    assert not (tmp_path / "train.py").exists()


def test_module_text_computes_the_same() -> None:
    """Names that Python or nn.Module do not allow are changed, and a weight with two names is one parameter."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
            self.mixed = torch.nn.Linear(3, 3, bias=False)
            self.mixed.weight = self.layers[0].weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shift = torch.arange(3, device=x.device) * float("-inf")
            return torch.where(shift.isnan(), x, self.mixed(self.layers(x)))

    from chinchilla_sim.graph.trace import export_module

    net = Net().eval()
    inputs = torch.randn(4, 3)
    module = export_module(net, inputs)
    plain = torch.fx.Graph()
    plain.output(plain.graph_copy(module.graph, {}))
    code = write_module(torch.fx.GraphModule(module, plain))
    space: dict[str, Any] = {"torch": torch, "aten": torch.ops.aten, "inf": float("inf"), "nan": float("nan"), "device": torch.device}
    body = "\n    ".join(code.lines)
    exec(f"def forward({code.arguments}):\n    {body}", space)
    holder = type("Holder", (), {tensor.attribute: tensor.value for tensor in code.tensors})()
    for twin, first in code.twins:
        setattr(holder, twin, getattr(holder, first))
    torch.testing.assert_close(space["forward"](holder, inputs)[0], net(inputs))
    assert len({tensor.key for tensor in code.tensors}) == len(code.tensors) and all(t.attribute.isidentifier() for t in code.tensors)
