"""Sharded plans (ZeRO 1 to 3) train like one process: first 20 losses, and all weights behind them, to 1e-5."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.launch import launch_ranks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.conftest import train_alone
from tests.runtime.test_equality import JOB, RELATIVE, SCENARIO, STEPS, plan_of, stream


def two_ranks(graph: TaskGraph) -> Mapping[str, Plan]:
    """Plans on two ranks."""
    whole, buckets = (plan_of(graph, "1f1b", 1, 2, microbatches=2, gradient_buckets=count) for count in (1, 3))
    found = {f"zero-{stage}": replace(whole, zero_stage=stage) for stage in (1, 2, 3)}
    found |= {f"zero-{stage}-in-buckets": replace(buckets, zero_stage=stage) for stage in (1, 2, 3)}
    recompute = replace(buckets, recompute=("full",))
    return found | {
        "zero-1-unequal": plan_of(graph, "1f1b", 1, 2, replica_microbatch_counts=(4, 2), zero_stage=1),
        "zero-2-recompute": replace(recompute, zero_stage=2),
        "zero-3-recompute": replace(recompute, zero_stage=3),
        "zero-3-selective": replace(buckets, recompute=("selective",), zero_stage=3),
    }


def four_ranks(graph: TaskGraph) -> Mapping[str, Plan]:
    """Plans on four ranks."""
    both = plan_of(graph, "1f1b", 2, 2, microbatches=3, gradient_buckets=2)
    found = {f"both-{stage}": replace(both, zero_stage=stage) for stage in (1, 2, 3)}
    return found | {
        "zero-1-split": plan_of(graph, "zb-v", 2, 2, microbatches=4, per_rank=2, gradient_buckets=2, zero_stage=1),
        "zero-2-of-four": plan_of(graph, "1f1b", 1, 4, microbatches=2, gradient_buckets=3, zero_stage=2),
        "zero-3-of-four": plan_of(graph, "1f1b", 1, 4, microbatches=2, gradient_buckets=3, zero_stage=3),
        "zero-3-looped": plan_of(graph, "interleaved-1f1b", 2, 2, microbatches=2, per_rank=2, zero_stage=3),
        "zero-3-gpipe": plan_of(graph, "gpipe", 2, 2, microbatches=3, recompute=("full", "none"), zero_stage=3),
    }


PLANS = {2: two_ranks, 4: four_ranks}
NAMES = {
    2: (
        "zero-1", "zero-2", "zero-3", "zero-1-in-buckets", "zero-2-in-buckets", "zero-3-in-buckets", "zero-1-unequal", "zero-2-recompute",
        "zero-3-recompute", "zero-3-selective",
    ),
    4: ("both-1", "both-2", "both-3", "zero-1-split", "zero-2-of-four", "zero-3-of-four", "zero-3-looped", "zero-3-gpipe"),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """The job with everything that makes stages hard."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB)
    (folder / "own.toml").write_text(SCENARIO)
    return load_scenario(folder / "own.toml")


@pytest.fixture(scope="module")
def alone(scenario: Scenario) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of one process."""
    return train_alone(scenario, STEPS)


@pytest.fixture(scope="module")
def played(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Folders of all plans, played in one launch for each number of ranks."""
    graph, _ = build_graph(scenario)
    folders = {}
    for ranks, plans in PLANS.items():
        folder = folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        assert tuple(plans(graph)) == NAMES[ranks]
        for name, plan in plans(graph).items():
            assert not mistakes_of(plan) and not unplayable(plan), (name, mistakes_of(plan), unplayable(plan))
            (folder / name).mkdir()
            PlanFile(plan, scenario).save(folder / name / "plan.json")
        launch_ranks("tests.runtime.play_plans", [str(folder)], ranks, folder)
    return folders


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks in PLANS for name in NAMES[ranks]])
def test_sharded_plan_trains_like_one_process(played: Mapping[int, Path], alone: Any, ranks: int, name: str) -> None:
    """Twenty losses and every weight behind them are those of plain PyTorch."""
    folder = played[ranks] / name
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    losses = [sum(parts) for parts in zip(*(record["losses"] for record in records if record["losses"]), strict=True)]
    assert losses == pytest.approx(alone[0], rel=RELATIVE) and len(losses) == STEPS
    saved = torch.load(folder / "weights.pt", weights_only=True)
    for key, tensor in alone[1].items():
        torch.testing.assert_close(saved[key], tensor, rtol=RELATIVE, atol=2e-6)
