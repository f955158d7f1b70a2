"""Checkpoints of divided and half-precision state: the same plan goes on to the last bit, any other within rounding."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, RESUME_FILE, checkpoint_path
from chinchilla_sim.runtime.saved.checkpoint_reader import read_metadata, read_tensors, saved_kinds
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.tensor_jobs import Tied
from tests.runtime.test_tensor_parallel import losses_of, plan_of

STEPS, INTERVAL = 11, 7
RELATIVE = {"fp32": 1e-5, "bf16": 1e-2}

SCENARIO = """
[model]
factory = "{jobs}:{model}"

[job]
global_batch_size = 24
steps = {steps}
learning_rate = 0.003
checkpoint_interval_steps = {interval}

[cluster]
kind = "this-machine"
ranks = 4
"""

MakePlan = Callable[[TaskGraph], Plan]


def make(width: int, stages: int = 1, replicas: int = 1, **changes: Any) -> MakePlan:
    """A plan once its graph is there."""
    return lambda graph: plan_of(graph, width, stages, replicas, **changes)


CHANGES: Mapping[str, tuple[str, MakePlan, MakePlan]] = {
    "replicas": ("fp32", make(1, 1, 4), make(1, 1, 4, zero_stage=3)),
    "zero-1": ("fp32", make(1, 1, 4, zero_stage=1), make(2, 2)),
    "zero-2": ("fp32", make(1, 2, 2, zero_stage=2), make(4)),
    "zero-3": ("fp32", make(1, 2, 2, zero_stage=3), make(1, 1, 4, zero_stage=1)),
    "tensor": ("fp32", make(2, 2), make(1, 1, 4, zero_stage=2)),
    "half": ("bf16", make(1, 2, 2), make(1, 1, 4, zero_stage=3)),
    "half-zero-2": ("bf16", make(1, 1, 4, zero_stage=2), make(1, 2, 2)),
    "half-zero-3": ("bf16", make(1, 1, 4, zero_stage=3), make(2, 1, 2)),
    "half-tensor": ("bf16", make(2, 1, 2), make(1, 2, 2, zero_stage=1)),
}
"""Precision, the plan of a run, and the plan that it goes on with."""

SAME: Mapping[str, MakePlan] = {
    "feedback-zero-1": make(1, 1, 4, zero_stage=1, gradient_codecs=("int8",)),
    "feedback-tensor": make(2, 1, 2, gradient_codecs=("top-k",)),
}
"""Plans that go on themselves only: with dropout, and error feedback."""

ALONE = ("zero-1", "zero-2", "zero-3", "tensor", "half-tensor")
"""Whose checkpoints a single rank takes up."""


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scenario]:
    """The jobs."""
    folder, jobs = tmp_path_factory.mktemp("job"), Path(__file__).with_name("tensor_jobs.py")
    for model in ("tied", "tied_dropping"):
        (folder / f"{model}.toml").write_text(SCENARIO.format(jobs=jobs, model=model, steps=STEPS, interval=INTERVAL))
    return {
        "fp32": load_scenario(folder / "tied.toml"),
        "bf16": load_scenario(folder / "tied.toml", ["job.precision=bf16"]),
        "dropout": load_scenario(folder / "tied_dropping.toml"),
    }


@pytest.fixture(scope="module")
def played(scenarios: Mapping[str, Scenario], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs and their continuations, over four ranks and, below `alone`, one."""
    root = tmp_path_factory.mktemp("changes")
    graphs = {kind: build_graph(scenario)[0] for kind, scenario in scenarios.items()}

    def save(kind: str, make_plan: MakePlan, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        plan = make_plan(graphs[kind])
        assert not mistakes_of(plan), (path, mistakes_of(plan))
        PlanFile(plan, scenarios[kind]).save(path)

    for name, (kind, before, after) in CHANGES.items():
        save(kind, before, root / name / "plan.json")
        save(kind, after, root / name / "after.json")
    for name, plan in SAME.items():
        save("dropout", plan, root / name / "plan.json")
    launch_ranks("tests.runtime.play_resumptions", [str(root)], 4, root)
    for name in ALONE:
        save(CHANGES[name][0], make(1), root / "alone" / name / "plan.json")
        (root / "alone" / name / RESUME_FILE).write_text(json.dumps({"checkpoints": str(root / name / FOLDER)}))
    launch_ranks("tests.runtime.play_plans", [str(root / "alone")], 1, root / "alone")
    return root


def plan_in(path: Path) -> Plan:
    """The plan of a run that was played."""
    from chinchilla_sim.planner.plan_file import load_plan

    return load_plan(path).plan


@pytest.mark.parametrize("name", [*CHANGES, *SAME])
def test_the_same_plan_goes_on_to_the_last_bit(played: Path, name: str) -> None:
    """Losses of all steps and final weights, with dropout and what codecs have not sent; only the last steps are made again."""
    whole, again = played / name / "whole", played / name / "again"
    plan = plan_in(played / name / "plan.json")
    assert losses_of(whole, plan) == losses_of(again, plan) and len(losses_of(whole, plan)) == STEPS
    weights, same = (torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, again))
    assert weights.keys() == same.keys()
    for key, tensor in weights.items():
        assert torch.equal(tensor, same[key]), key
    assert len(json.loads((again / "rank0.json").read_text())["intervals"]) == STEPS - INTERVAL


@pytest.mark.parametrize("name", CHANGES)
def test_another_plan_goes_on_within_rounding(played: Path, name: str) -> None:
    """Whatever divides weights, moments and masters before and after."""
    kind = CHANGES[name][0]
    whole = losses_of(played / name / "whole", plan_in(played / name / "plan.json"))
    after = losses_of(played / name / "after", plan_in(played / name / "after.json"))
    assert after == pytest.approx(whole, rel=RELATIVE[kind]) and after[:INTERVAL] == whole[:INTERVAL]
    assert "another plan" in (played / name / "after" / "notes.txt").read_text()


@pytest.mark.parametrize("name", ALONE)
def test_one_rank_goes_on_where_four_stopped(played: Path, name: str) -> None:
    """The same, and every weight at the end."""
    kind, alone = CHANGES[name][0], played / "alone" / name
    whole = losses_of(played / name / "whole", plan_in(played / name / "plan.json"))
    assert losses_of(alone, plan_in(alone / "plan.json")) == pytest.approx(whole, rel=RELATIVE[kind])
    if kind == "fp32":
        saved, found = (torch.load(folder / "weights.pt", weights_only=True) for folder in (played / name / "whole", alone))
        # Gradients of key biases are rounding alone, which Adam makes steps of.
        for key in saved.keys() - {key for key in saved if key.endswith("qkv.bias")}:
            torch.testing.assert_close(found[key], saved[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_has_the_models_names_and_shapes(played: Path, name: str) -> None:
    """Of the weights in use, in fp32, and Adam's moments, a tied weight once; whatever the plan."""
    path = checkpoint_path(played / name / FOLDER, INTERVAL)
    metadata = read_metadata(path)
    saved = {key: tuple(size) for key, (size, _) in saved_kinds(metadata).items() if key.startswith(("model/", "optimizer/"))}
    weights = {key: tuple(weight.shape) for key, weight in Tied().named_parameters() if ".key." not in key}
    expected = {f"model/{key}": shape for key, shape in weights.items()}
    expected |= {f"optimizer/{key}/{moment}": shape for key, shape in weights.items() for moment in ("exp_avg", "exp_avg_sq")}
    expected |= {f"optimizer/{key}/step": () for key in weights}
    assert expected.items() <= saved.items()
    assert {key for key in saved.keys() - expected.keys() if not key.endswith("mask")} == set()
    tensors = read_tensors(path, metadata, expected)
    assert all(tensors[f"optimizer/{key}/step"] == INTERVAL for key in weights)
    assert {tensors[f"model/{key}"].dtype for key in weights} == {torch.float32}
