"""Sharded (ZeRO 1 to 3), clipped and bf16 plans train like one process: losses, and all weights behind them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.conftest import train_alone
from tests.runtime.test_equality import JOB, RELATIVE, SCENARIO, STEPS, plan_of, stream

CLIPPED = {"clip_gradient_norm": 0.3}
BF16 = {"precision": "bf16"}
BF16_RELATIVE = 1e-2


@dataclass(frozen=True)
class Case:
    """A plan, what it changes in [job], and how near it must come to one process."""

    plan: Plan
    job: Mapping[str, object] = field(default_factory=dict)
    relative: float = RELATIVE


def two_ranks(graph: TaskGraph) -> Mapping[str, Case]:
    """Cases on two ranks."""
    whole, buckets = (plan_of(graph, "1f1b", 1, 2, microbatches=2, gradient_buckets=count) for count in (1, 3))
    pipeline = plan_of(graph, "1f1b", 2, microbatches=4)
    return {
        "zero-1": Case(replace(whole, zero_stage=1)),
        "zero-1-unequal": Case(plan_of(graph, "1f1b", 1, 2, replica_microbatch_counts=(4, 2), zero_stage=1)),
        "zero-1-int8": Case(replace(buckets, zero_stage=1, gradient_codecs=("int8",)), relative=1e-2),
        "zero-2-in-buckets": Case(replace(buckets, zero_stage=2)),
        "zero-3-in-buckets": Case(replace(buckets, zero_stage=3)),
        "zero-3-recompute": Case(replace(buckets, zero_stage=3, recompute=("full",)), CLIPPED),
        "zero-3-fp16": Case(replace(buckets, zero_stage=3, gradient_codecs=("fp16",)), relative=1e-3),
        "clipped-pipeline": Case(pipeline, CLIPPED),
        "clipped-looped": Case(plan_of(graph, "interleaved-1f1b", 2, microbatches=4, per_rank=2), CLIPPED),
        "bf16": Case(buckets, BF16, BF16_RELATIVE),
        "bf16-pipeline": Case(replace(pipeline, activation_codecs=("int8",)), BF16, BF16_RELATIVE),
        "bf16-zero-3": Case(replace(buckets, zero_stage=3), BF16, BF16_RELATIVE),
    }


def four_ranks(graph: TaskGraph) -> Mapping[str, Case]:
    """Cases on four ranks."""
    both = plan_of(graph, "1f1b", 2, 2, microbatches=3, gradient_buckets=2)
    split = plan_of(graph, "zb-v", 2, 2, microbatches=4, per_rank=2, gradient_buckets=2, zero_stage=1)
    return {
        "zero-1-split": Case(split, CLIPPED),
        "zero-2": Case(replace(both, zero_stage=2), CLIPPED),
        "zero-3": Case(replace(both, zero_stage=3), CLIPPED),
        "zero-3-of-four": Case(plan_of(graph, "1f1b", 1, 4, microbatches=2, gradient_buckets=3, zero_stage=3)),
        "zero-3-looped": Case(plan_of(graph, "interleaved-1f1b", 2, 2, microbatches=2, per_rank=2, zero_stage=3)),
        "clipped": Case(both, CLIPPED),
        "clipped-stream": Case(stream(graph, 3, 1), CLIPPED),
        "bf16-zero-1": Case(replace(both, zero_stage=1), BF16 | CLIPPED, BF16_RELATIVE),
    }


CASES = {2: two_ranks, 4: four_ranks}
NAMES = {
    2: (
        "zero-1", "zero-1-unequal", "zero-1-int8", "zero-2-in-buckets", "zero-3-in-buckets", "zero-3-recompute", "zero-3-fp16",
        "clipped-pipeline", "clipped-looped", "bf16", "bf16-pipeline", "bf16-zero-3",
    ),
    4: ("zero-1-split", "zero-2", "zero-3", "zero-3-of-four", "zero-3-looped", "clipped", "clipped-stream", "bf16-zero-1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """The job with everything that makes stages hard."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB)
    (folder / "own.toml").write_text(SCENARIO)
    return load_scenario(folder / "own.toml")


def changed(scenario: Scenario, job: Mapping[str, object]) -> Scenario:
    """The scenario with other values of [job]."""
    return scenario.model_copy(update={"job": scenario.job.model_copy(update=dict(job))})


@pytest.fixture(scope="module")
def cases(scenario: Scenario) -> Mapping[int, Mapping[str, Case]]:
    """All cases by number of ranks; plans clip where their job asks for it."""
    graph, _ = build_graph(scenario)
    found = {}
    for ranks, build in CASES.items():
        found[ranks] = {
            name: replace(case, plan=replace(case.plan, clips_gradients="clip_gradient_norm" in case.job))
            for name, case in build(graph).items()
        }
        assert tuple(found[ranks]) == NAMES[ranks]
    return found


@pytest.fixture(scope="module")
def played(scenario: Scenario, cases: Mapping[int, Mapping[str, Case]], tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Folders of all cases, played in one launch for each number of ranks."""
    folders = {}
    for ranks, by_name in cases.items():
        folder = folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        for name, case in by_name.items():
            assert not mistakes_of(case.plan) and not unplayable(case.plan), (name, mistakes_of(case.plan), unplayable(case.plan))
            (folder / name).mkdir()
            PlanFile(case.plan, changed(scenario, case.job)).save(folder / name / "plan.json")
        launch_ranks("tests.runtime.play_plans", [str(folder)], ranks, folder)
    return folders


@pytest.fixture(scope="module")
def train(scenario: Scenario) -> Callable[[Mapping[str, object]], Any]:
    """Losses and weights of one process with some values of [job]."""
    found: dict[str, Any] = {}

    def train_with(job: Mapping[str, object]) -> Any:
        if str(job) not in found:
            found[str(job)] = train_alone(changed(scenario, job), STEPS)
        return found[str(job)]

    return train_with


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks in NAMES for name in NAMES[ranks]])
def test_plan_trains_like_one_process(played: Mapping[int, Path], cases: Any, train: Any, ranks: int, name: str) -> None:
    """Twenty losses and every weight behind them are those of plain PyTorch."""
    case, folder = cases[ranks][name], played[ranks] / name
    expected, weights = train(case.job)
    losses = [sum(parts) for parts in zip(*(record["losses"] for record in records_of(folder, ranks) if record["losses"]), strict=True)]
    assert losses == pytest.approx(expected, rel=case.relative) and len(losses) == STEPS
    saved = torch.load(folder / "weights.pt", weights_only=True)
    for key, tensor in weights.items():
        assert saved[key].dtype == tensor.dtype
        torch.testing.assert_close(saved[key].float(), tensor.float(), rtol=case.relative, atol=max(2e-6, case.relative / 2))


def records_of(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """What the ranks wrote."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def test_clipping_matters(train: Any) -> None:
    """The limit is below the norms of this job: without it losses differ by more than the cases may."""
    assert train(CLIPPED)[0][-1] != pytest.approx(train({})[0][-1], rel=1e-2)


@pytest.mark.parametrize(("name", "exchanges", "gathers"), [("zero-1", 1, 1), ("zero-2-in-buckets", 3, 1), ("zero-3-in-buckets", 6, 12)])
def test_bytes_on_the_wire(played: Mapping[int, Path], scenario: Scenario, name: str, exchanges: int, gathers: int) -> None:
    """Of two ranks each sends half of all gradients and half of all weights: once a step, with ZeRO 3 in each pass of two microbatches."""
    graph, _ = build_graph(scenario)
    total = graph.trained_bytes_of(graph.compute_tasks)
    record = records_of(played[2] / name, 2)[0]["steps"][-1]
    rows = {what: [row for row in record["collectives"] if row[0] == what] for what in ("gradients", "weights")}
    # Units that share the tied head are one with ZeRO 3, gathered and summed together.
    merged = name.startswith("zero-3")
    assert len(rows["gradients"]) == (exchanges - 2 * merged) and len(rows["weights"]) == (gathers - 4 * merged)
    passes = 2 if merged else 1
    assert sum(row[7] for row in rows["gradients"]) == pytest.approx(passes * total / 2, rel=0.02)
    assert sum(row[7] for row in rows["weights"]) == pytest.approx(2 * passes * total / 2 if merged else total / 2, rel=0.02)
    assert all(row[6] is not None for row in record["collectives"])
