"""Plans with every gradient codec, played by two ranks in one launch: losses, bytes on the wire, and spans against their simulation."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.cost.codec import CODECS, GRADIENTS_ONLY
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.record.recorder import merge_step
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph, prepare
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline
from tests.runtime.conftest import JOB, SCENARIO, train_alone

STEPS = 30
LARGEST_ERROR = {"none": 1e-5, "fp16": 0.005, "bf16": 0.02, "int8": 0.02}
TWO_BUCKETS = "low-rank in two buckets"


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A small job of the user's own, whose last layer is wide enough for factors."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB.format(trouble="pass").replace("nn.Linear(24, 4)", "nn.Linear(24, 6)"))
    (folder / "own.toml").write_text(SCENARIO)
    return load_scenario(folder / "own.toml")


@pytest.fixture(scope="module")
def plans(scenario: Scenario) -> Mapping[str, Plan]:
    """Two replicas of one stage."""
    names = tuple(task.name for task in build_graph(scenario)[0].compute_tasks)
    plan = Plan((names,), ((0, 1),), (0, 1), scenario.job.global_batch_size, 2, "1f1b", ("none",), ())
    by_codec = {codec: replace(plan, gradient_codecs=(codec,)) for codec in CODECS}
    return by_codec | {TWO_BUCKETS: replace(by_codec["low-rank"], gradient_buckets=2)}


@pytest.fixture(scope="module")
def played(scenario: Scenario, plans: Mapping[str, Plan], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[Any]]:
    """Records of both ranks by plan."""
    folder = tmp_path_factory.mktemp("plans")
    for name, plan in plans.items():
        assert unplayable(plan) == []
        (folder / name).mkdir()
        PlanFile(plan, scenario).save(folder / name / "plan.json")
    launch_ranks("tests.runtime.play_plans", [str(folder)], 2, folder)
    return {name: [json_of(folder / name / f"rank{rank}.json") for rank in (0, 1)] for name in plans}


def json_of(path: Path) -> Any:
    """What a rank recorded."""
    return json.loads(path.read_text())


def measured(records: list[Any]) -> Timeline:
    """The last step."""
    return merge_step([record["steps"][-1] for record in records])


@pytest.mark.parametrize("codec", [*CODECS, TWO_BUCKETS])
def test_losses_stay_near_those_of_one_process(scenario: Scenario, played: Mapping[str, list[Any]], codec: str) -> None:
    """Codecs without feedback change every loss a little; with feedback the last ten are as low on average."""
    losses = torch.tensor([record["losses"] for record in played[codec]]).sum(0)
    alone = torch.tensor(train_alone(scenario, STEPS)[0])
    assert len(losses) == STEPS
    if codec in LARGEST_ERROR:
        torch.testing.assert_close(losses, alone, rtol=LARGEST_ERROR[codec], atol=0)
    else:
        assert float(losses[-10:].mean() / alone[-10:].mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("codec", [*CODECS, TWO_BUCKETS])
def test_bytes_and_spans_are_those_of_the_simulation(
    scenario: Scenario, plans: Mapping[str, Plan], played: Mapping[str, list[Any]], codec: str
) -> None:
    """Each rank sends the priced bytes, in as many collectives and packing spans as the simulated step has, in the same order."""
    setting = prepare(scenario)
    pricing = Pricer(setting.graph, setting.cluster, scenario.job).price(plans[codec])
    simulated, timeline = simulate(lower(plans[codec]), pricing, setting.cluster), measured(played[codec])
    for rank in (0, 1):
        assert timeline.sent_bytes(rank) == pytest.approx(pricing.gradients[0].sent_bytes)
        ours, theirs = ([span.label for span in one.spans_of(rank, "collective")] for one in (simulated, timeline))
        assert theirs == ours and len(ours) == CODECS[codec.split()[0]].rounds * plans[codec].gradient_buckets
        ours, theirs = ([s.label for s in one.spans_of(rank, "compute") if s.category == "codec"] for one in (simulated, timeline))
        assert theirs == ours


def test_feedback_codecs_are_for_gradients_only(plans: Mapping[str, Plan]) -> None:
    """Every codec of the registry was played, the ones with feedback among them."""
    assert set(GRADIENTS_ONLY) < set(plans)
