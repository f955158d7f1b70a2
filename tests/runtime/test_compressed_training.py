"""Compressed variants trained and applied over several ranks, like in one process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.graph.contract import factory_of, load_job
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.rank.optimizers import make_optimizer
from chinchilla_sim.runtime.stage.batches import global_batches
from chinchilla_sim.runtime.stage.whole_variant import trainable_variant, variant_module
from chinchilla_sim.runtime.variant.sparsity import Masks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph

MNIST = Path(__file__).parents[2] / "scenarios" / "mnist_mlp.toml"
STEPS, BATCH = 12, 64
CPU = torch.device("cpu")
WIDTHS = "[784, 48, 48, 48, 10]"


@dataclass(frozen=True)
class Case:
    """A variant on replicas of some stages."""

    compression: Mapping[str, Any]
    stages: int = 1
    replicas: int = 1
    microbatches: int = 1
    training: bool = True

    @property
    def ranks(self) -> int:
        """Of the whole plan."""
        return self.stages * self.replicas


CASES = {
    "pruned, replicas": Case({"prune": 0.5}, replicas=2),
    "pruned, stages": Case({"prune": 0.5}, stages=2, microbatches=4),
    "low rank, stages": Case({"low_rank": 0.5}, stages=2, microbatches=2),
    "shared by stages": Case({"share_weights": True}, stages=2, microbatches=2),
    "sparse, replicas": Case({"sparsity": 0.8}, replicas=2),
    "int8, stages": Case({"quantize": "int8"}, stages=2),
    "int4, replicas": Case({"quantize": "int4"}, replicas=2),
    "pruned int8 answers": Case({"prune": 0.5, "quantize": "int8"}, stages=2, training=False),
    "shared and pruned, both": Case({"share_weights": True, "prune": 0.25}, stages=2, replicas=2, microbatches=2),
    "pruned int8 answers over four": Case({"prune": 0.5, "quantize": "int8-static"}, stages=4, training=False),
}


def scenario_of(case: Case) -> Scenario:
    """A small network on digits."""
    compression = "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in case.compression.items()) + "}"
    values = {
        "model.options": f"{{widths = {WIDTHS}}}", "model.compression": compression, "job.epochs": 1, "job.steps": STEPS,
        "job.kind": "training" if case.training else "inference", "job.learning_rate_schedule": "constant", "job.optimizer": "sgd",
        "job.learning_rate": 0.1, "cluster.ranks": case.ranks,
    }  # fmt: skip
    return load_scenario(MNIST, [f"{key}={value}" for key, value in values.items()])


def file_of(case: Case) -> PlanFile:
    """Cuts that give each stage a linear layer."""
    scenario = scenario_of(case)
    graph, _ = build_graph(scenario)
    names = [task.name for task in graph.compute_tasks]
    starts = [index for index, task in enumerate(graph.compute_tasks) if task.op == "linear" and not task.name.endswith("_narrow")]
    cuts = [0, *(starts[1 + index * (len(starts) - 1) // case.stages] for index in range(1, case.stages)), len(names)]
    rows = tuple(tuple(names[start:end]) for start, end in pairwise(cuts))
    placement = tuple(tuple(range(stage * case.replicas, (stage + 1) * case.replicas)) for stage in range(case.stages))
    schedule = "1f1b" if case.training and case.stages > 1 else "gpipe" if case.training else "forward"
    codecs = ("none",) * case.stages, ("none",) * (case.stages - 1)
    plan = Plan(rows, placement, tuple(range(case.ranks)), BATCH, case.microbatches, schedule, *codecs)
    return PlanFile(with_sharing(plan, graph), scenario)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of all cases, played in one launch for each number of ranks."""
    folders: dict[str, Path] = {}
    for ranks in sorted({case.ranks for case in CASES.values()}):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        for number, (name, case) in enumerate(CASES.items()):
            if case.ranks == ranks:
                folders[name] = folder / f"{number:02}"
                folders[name].mkdir()
                file_of(case).save(folders[name] / "plan.json")
        launch_ranks("tests.runtime.play_plans", [str(folder)], ranks, folder)
    return folders


def train_alone(case: Case) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the variant in this process, and the whole model's weights behind them."""
    scenario, variant = scenario_of(case), Variant(**scenario_of(case).model.compression.changes)
    job = load_job(*factory_of(scenario), to_run=True)
    torch.manual_seed(scenario.job.seed)
    model = job.model()
    made = trainable_variant(job, model, BATCH, CPU, variant)
    parameters = list(made.module.parameters())
    optimizer = make_optimizer(scenario.job, parameters)
    masks = Masks(parameters, variant.sparsity, STEPS) if variant.sparsity else None
    losses = []
    for step, (inputs, targets) in enumerate(global_batches(job.batches("train", scenario.job.seed, 0), BATCH), start=1):
        if step > STEPS:
            break
        optimizer.zero_grad()
        loss = job.loss(made.module(inputs), targets)
        loss.backward()
        optimizer.step()
        if masks:
            masks.after_step(step)
        losses.append(float(loss.detach()))
    return losses, dict(model.state_dict()) | made.expand({name: tensor.detach() for name, tensor in made.module.named_parameters()})


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.training])
def test_a_variant_trains_like_in_one_process(name: str, played: dict[str, Path]) -> None:
    """The losses of one process with the same variant, and its weights, written into the whole model; the metrics are the variant's."""
    case, folder = CASES[name], played[name]
    losses, weights = train_alone(case)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    # Each replica of the last stage tells its share.
    told = [sum(shares) for shares in zip(*(record["losses"] for record in records if record["losses"]), strict=True)]
    assert told == pytest.approx(losses, rel=1e-5) and losses[-1] < losses[0]
    stored = torch.load(folder / "weights.pt", weights_only=True)
    for key, tensor in weights.items():
        torch.testing.assert_close(stored[key], tensor, rtol=1e-3, atol=1e-5)
    scenario = scenario_of(case)
    job = load_job(*factory_of(scenario), to_run=True)
    model = job.model()
    model.load_state_dict(stored)
    plan = file_of(case).plan
    told_metrics = next(record["metrics"] for record in records if record["metrics"])
    own = variant_module(job, model, plan, CPU, Variant(**scenario.model.compression.changes))
    assert job.evaluate(own)["validation_loss"] == pytest.approx(told_metrics["validation_loss"], rel=1e-3)  # type: ignore[attr-defined]
    if "sparsity" in case.compression:
        share = float((stored["0.weight"] == 0).double().mean())
        assert share == pytest.approx(case.compression["sparsity"], abs=0.01)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.training])
def test_a_variant_answers_over_ranks(name: str, played: dict[str, Path]) -> None:
    """Every rank makes its steps of a pipeline whose weights are pruned and in int8."""
    case, folder = CASES[name], played[name]
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(case.ranks)]
    assert all(len(record["intervals"]) == STEPS for record in records)
