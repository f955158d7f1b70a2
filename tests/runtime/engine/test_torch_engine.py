"""The second engine, torch.distributed.pipelining: the same losses as ours, and a clear refusal where it cannot play."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.benchmark.engine_race import run_race
from chinchilla_sim.runtime.engine.engines import check_engine
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.conftest import train_alone
from tests.runtime.test_equality import JOB, SCENARIO, plan_of

STEPS = 6
UNTIED = JOB.replace("nn.functional.linear(mixed, self.embedding.weight)", "self.head(mixed)").replace(
    "self.mix = ", "self.head = nn.Linear(width, words)\n        self.mix = "
)
PLANS: Mapping[int, Mapping[str, tuple[Any, ...]]] = {
    2: {
        name: (name, 2, 1, 4, per_rank)
        for name, per_rank in {
            "gpipe": 1, "1f1b": 1, "zb-h1": 1, "looped-bfs": 2, "interleaved-1f1b": 2, "interleaved-zb": 2, "zb-v": 2, "dualpipe-v": 2,
        }.items()
    } | {"replicas": ("1f1b", 1, 2, 3, 1)},
    4: {"both": ("1f1b", 2, 2, 3, 1), "both-looped": ("interleaved-1f1b", 2, 2, 2, 2)},
}  # fmt: skip


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Skips over stages, one of them from the input (whole numbers, which have no gradient), and no shared weight."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(UNTIED)
    (folder / "own.toml").write_text(SCENARIO.replace("steps = 20", f"steps = {STEPS}"))
    return load_scenario(folder / "own.toml")


@pytest.fixture(scope="module")
def alone(scenario: Scenario) -> list[float]:
    """Losses of one process."""
    return train_alone(scenario, STEPS)[0]


@pytest.fixture(scope="module")
def played(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """All plans, one launch for each number of ranks."""
    graph, _ = build_graph(scenario)
    folders = {}
    for ranks, plans in PLANS.items():
        folder = folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        for name, (schedule, wide, replicas, microbatches, per_rank) in plans.items():
            (folder / name).mkdir()
            PlanFile(plan_of(graph, schedule, wide, replicas, microbatches, per_rank), scenario).save(folder / name / "plan.json")
        launch_ranks("tests.runtime.play_plans", [str(folder), "torch"], ranks, folder)
    return folders


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks, plans in PLANS.items() for name in plans])
def test_losses_are_ours(played: Mapping[int, Path], alone: list[float], ranks: int, name: str) -> None:
    """The losses of torch's engine are those of one process, as ours are, to 1e-5; every pass is written down."""
    folder = played[ranks] / name
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    losses = [sum(parts) for parts in zip(*(record["losses"] for record in records if record["losses"]), strict=True)]
    assert losses == pytest.approx(alone, rel=1e-5)
    *_, microbatches, per_rank = PLANS[ranks][name]
    for record in records:
        labels = [row[0] for row in record["steps"][-1]["compute"]]
        assert sum(label[1] == "F" for label in labels) == microbatches * per_rank, labels
        assert sum(label.endswith("OPTIM") for label in labels) == per_rank


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gradient_codecs": ("int8", "none")}, "codecs"),
        ({"schedule": "zb-h2"}, "schedule zb-h2"),
        ({"shared_stages": ((0, 1),)}, "weights shared by stages"),
        ({"microbatch_count": 1}, "fewer microbatches than stages"),
        ({"replica_microbatch_counts": (4,)}, "unequal microbatch counts"),
        ({"schedule": "forward"}, "forward passes alone"),
    ],
)
def test_what_torch_does_not_play_is_refused(change: dict[str, Any], word: str) -> None:
    """The refusal names what it is and the cure, before anything is started; our engine has no say here."""
    plan = replace(Plan((("a",), ("b",)), ((0,), (1,)), (0, 1), 8, 4, "1f1b", ("none",) * 2, ("none",)), **change)
    check_engine(plan, "chinchilla")
    with pytest.raises(ScenarioError, match=f"does not play .*{word}; run it without --engine torch"):
        check_engine(plan, "torch")


def test_race_takes_turns(scenario: Scenario, tmp_path: Path) -> None:
    """Both engines make the steps of every round, on the same plan in one launch; the ratio is that of their medians."""
    graph, _ = build_graph(scenario)
    race = run_race(PlanFile(plan_of(graph, "1f1b", 2, 1, 4), scenario), rounds=2, round_steps=3)
    assert {engine: [len(one) for one in rounds] for engine, rounds in race.step_s.items()} == {"chinchilla": [3, 3], "torch": [3, 3]}
    assert all(seconds > 0 for rounds in race.step_s.values() for one in rounds for seconds in one)
    assert len(race.round_ratios) == 2 and race.ratio > 0 and set(race.to_dict()) >= {"torch_over_ours", "torch_step_s"}
