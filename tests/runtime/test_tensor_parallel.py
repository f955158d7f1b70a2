"""Tensor parallelism, alone and with replicas and pipelines: trained like one process, with the collectives that the simulator counts."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.shard import collectives_of, shard_graph
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.partition import allowed_cuts
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.sharing import with_sharing
from chinchilla_sim.runtime.launch import launch_ranks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.conftest import train_alone

STEPS = 8
RELATIVE = 1e-5

JOB = '''
import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention, silu

WIDTH, HEADS, WORDS = 64, 4, 130


class Attention(nn.Module):
    """Queries, keys and values in one product, or apart with two heads of keys for four of queries."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH if fused else 2 * WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, t, w = x.shape
        if self.fused:
            q, k, v = self.qkv(x).view(n, t, 3, HEADS, w // HEADS).permute(2, 0, 3, 1, 4)
            y = torch.softmax(q @ k.transpose(-1, -2) / (w // HEADS) ** 0.5 + torch.ones(t, t, device=x.device).triu(1) * -1e9, -1) @ v
        else:
            q, v = (part.view(n, t, HEADS, -1).transpose(1, 2) for part in self.qkv(x).split(w, dim=-1))
            k = self.key(x).view(n, t, HEADS, -1).transpose(1, 2)
            y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, t, w))


class Block(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.norm, self.attention, self.norm2 = nn.LayerNorm(WIDTH), Attention(fused), nn.LayerNorm(WIDTH)
        self.up, self.gate, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        y = self.norm2(x)
        return x + self.down(gelu(self.up(y)) * silu(self.gate(y)))


class Gpt(nn.Module):
    """Tied head, learned places, a skip over all blocks."""

    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(8, WIDTH)
        self.blocks = nn.ModuleList([Block(True), Block(False)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = skip = self.embedding(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return nn.functional.linear(self.norm(x + skip), self.embedding.weight)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        first, second = (nn.Linear(24, 256), nn.ReLU(), nn.Linear(256, 160)), (nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 4))
        self.layers = nn.Sequential(*first, nn.Tanh(), *second)

    def forward(self, x):
        return self.layers(x)


class GptJob:
    def model(self):
        return Gpt()

    def example_batch(self, size):
        return torch.zeros(size, 6, dtype=torch.int64), torch.zeros(size, 6, dtype=torch.int64)

    def loss(self, outputs, targets):
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def batches(self, split, seed, epoch):
        ids = torch.randint(0, WORDS, (400, 7), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        yield ids[:, :-1], ids[:, 1:]


class MlpJob(GptJob):
    def model(self):
        return Mlp()

    def example_batch(self, size):
        return torch.zeros(size, 24), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs, targets):
        return cross_entropy(outputs, targets)

    def batches(self, split, seed, epoch):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        yield torch.randn(400, 24, generator=generator), torch.randint(0, 4, (400,), generator=generator)


def gpt():
    return GptJob()


def mlp():
    return MlpJob()
'''

SCENARIO = """
[model]
factory = "job.py:{model}"

[job]
global_batch_size = 24
steps = 8
optimizer = "sgd"
learning_rate = 0.05
momentum = 0.5

[cluster]
kind = "this-machine"
ranks = 4
"""


def plan_of(graph: TaskGraph, width: int, stages: int = 1, replicas: int = 1, schedule: str = "1f1b", **changes: Any) -> Plan:
    """Stages of about equal numbers of tasks on groups of `width`."""
    names = [task.name for task in graph.compute_tasks]
    ends = [index + 1 for index, may in enumerate(allowed_cuts(graph, training=True)) if may]
    chosen = [min(ends, key=lambda end: abs(end - len(names) * stage / stages)) for stage in range(1, stages)]
    per_rank = changes.pop("per_rank", 1)
    place = [SCHEDULES[schedule].rank_of_stage(stage, stages // per_rank) for stage in range(stages)]
    plan = Plan(
        stages=tuple(tuple(names[start:end]) for start, end in itertools.pairwise([0, *chosen, len(names)])),
        placement=tuple(tuple(position * replicas + replica for replica in range(replicas)) for position in place),
        slots=tuple(range(stages // per_rank * replicas * width)),
        global_batch_size=24,
        microbatch_count=changes.pop("microbatches", 2),
        schedule=schedule,
        gradient_codecs=("none",) * stages,
        activation_codecs=("none",) * (stages - 1),
        tensor_parallel_degree=width,
    )
    return with_sharing(replace(plan, **changes), graph)


def two(graph: TaskGraph) -> dict[str, Plan]:
    """On two processes."""
    return {
        "alone": plan_of(graph, 2),
        "recomputed": plan_of(graph, 2, recompute=("full",)),
        "stages": plan_of(graph, 2, 2, schedule="looped-bfs", per_rank=2),
    }


def four(graph: TaskGraph) -> dict[str, Plan]:
    """On four."""
    return {
        "alone": plan_of(graph, 4),
        "replicas": plan_of(graph, 2, 1, 2),
        "replicas-in-buckets": plan_of(graph, 2, 1, 2, gradient_buckets=3),
        "pipeline": plan_of(graph, 2, 2, microbatches=4),
        "pipeline-split": plan_of(graph, 2, 2, schedule="zb-h1", microbatches=4, recompute=("selective", "full")),
        "pipeline-interleaved": plan_of(graph, 2, 4, schedule="interleaved-1f1b", per_rank=2, microbatches=4),
    }


CASES = [(model, ranks, name) for model in ("gpt", "mlp") for ranks, names in (
    (2, ("alone", "recomputed", "stages")),
    (4, ("alone", "replicas", "replicas-in-buckets", "pipeline", "pipeline-split", "pipeline-interleaved")),
) for name in names]  # fmt: skip


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scenario]:
    """The two jobs."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB)
    for model in ("gpt", "mlp"):
        (folder / f"{model}.toml").write_text(SCENARIO.format(model=model))
    return {model: load_scenario(folder / f"{model}.toml") for model in ("gpt", "mlp")}


@pytest.fixture(scope="module")
def plans(scenarios: Mapping[str, Scenario]) -> Mapping[tuple[str, int, str], Plan]:
    """All plans, by model, processes and name."""
    found = {}
    for model, scenario in scenarios.items():
        graph, _ = build_graph(scenario)
        for ranks, make in ((2, two), (4, four)):
            found |= {(model, ranks, name): plan for name, plan in make(graph).items()}
    assert list(found) == CASES
    return found


@pytest.fixture(scope="module")
def played(scenarios: Mapping[str, Scenario], plans: Mapping[tuple[str, int, str], Plan], tmp_path_factory: Any) -> Mapping[int, Path]:
    """Folders of all plans, played in one launch for each number of processes."""
    folders = {ranks: tmp_path_factory.mktemp(f"processes{ranks}") for ranks in (2, 4)}
    for (model, ranks, name), plan in plans.items():
        assert not mistakes_of(plan), (name, mistakes_of(plan))
        folder = folders[ranks] / f"{model}-{name}"
        folder.mkdir()
        PlanFile(plan, scenarios[model]).save(folder / "plan.json")
    for ranks, folder in folders.items():
        launch_ranks("tests.runtime.play_plans", [str(folder)], ranks, folder)
    return folders


@pytest.fixture(scope="module")
def alone(scenarios: Mapping[str, Scenario]) -> Mapping[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Losses and weights of one process."""
    return {model: train_alone(scenario, STEPS) for model, scenario in scenarios.items()}


def records_of(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """What the first process of each rank recorded."""
    return [json.loads((folder / f"rank{process}.json").read_text()) for process in range(0, len(plan.slots), plan.group_width)]


@pytest.mark.parametrize(("model", "ranks", "name"), CASES)
def test_plan_trains_like_one_process(plans: Any, played: Any, alone: Any, model: str, ranks: int, name: str) -> None:
    """Losses, and every weight behind them, are those of plain PyTorch."""
    folder, plan = played[ranks] / f"{model}-{name}", plans[model, ranks, name]
    losses = [sum(parts) for parts in zip(*(row["losses"] for row in records_of(folder, plan) if row["losses"]), strict=True)]
    assert losses == pytest.approx(alone[model][0], rel=RELATIVE) and len(losses) == STEPS
    saved = torch.load(folder / "weights.pt", weights_only=True)
    for key, tensor in alone[model][1].items():
        torch.testing.assert_close(saved[key], tensor, rtol=RELATIVE, atol=2e-6)


@pytest.mark.parametrize(("model", "ranks"), [(model, ranks) for model in ("gpt", "mlp") for ranks in (2, 4)])
def test_collectives_are_those_that_the_simulator_counts(scenarios: Any, plans: Any, played: Any, model: str, ranks: int) -> None:
    """Number, kind and payload of what runs inside the passes, forward and backward."""
    plan = plans[model, ranks, "alone"]
    graph, _ = build_graph(scenarios[model])
    scale = plan.microbatch_size / graph.batch_size
    passes = STEPS * plan.microbatch_count
    expected: Counter[tuple[str, str, int]] = Counter()
    for way, found in zip("FB", collectives_of(shard_graph(graph, ranks).collectives.values()), strict=True):
        for one in found:
            expected[way, one.kind, round(one.payload_bytes * scale)] += passes
    record = records_of(played[ranks] / f"{model}-alone", plan)[0]
    measured = {(way, kind, size): count for way, kind, size, count in record["lane_collectives"]}
    assert measured == dict(expected)
