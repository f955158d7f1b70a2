"""Every kind of plan trains like one process: first 20 losses, and all weights behind them, to 1e-5."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import CUSTOM, Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.schedules.listed import StageSeconds, list_rows
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.conftest import train_alone

STEPS = 20
RELATIVE = 1e-5

JOB = '''
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 2, w // 2).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-1, -2) / (w // 2) ** 0.5, -1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(n, t, w))
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Repeated blocks, a head tied to the embedding, a skip over all of them and one from the input."""

    def __init__(self, width=8, words=11, blocks=4):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.mix = nn.Linear(2 * width, width)

    def forward(self, ids):
        x = skip = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        mixed = torch.tanh(self.mix(torch.cat([x, skip], -1))) * (ids > 2).unsqueeze(-1)
        return nn.functional.linear(mixed, self.embedding.weight)


class Job:
    def model(self):
        return Net()

    def example_batch(self, size):
        return torch.zeros(size, 6, dtype=torch.int64), torch.zeros(size, 6, dtype=torch.int64)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def batches(self, split, seed, epoch):
        ids = torch.randint(0, 11, (500, 7), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        yield ids[:, :-1], ids[:, 1:]


def build():
    return Job()
'''

SCENARIO = """
[model]
factory = "job.py:build"

[job]
global_batch_size = 24
steps = 20
optimizer = "sgd"
learning_rate = 0.05
momentum = 0.5

[cluster]
kind = "this-machine"
ranks = 4
"""


def cut(graph: TaskGraph, stages: int) -> tuple[tuple[str, ...], ...]:
    """The tasks in so many stages of about equal numbers."""
    names = [task.name for task in graph.compute_tasks]
    ends = [index + 1 for index, may in enumerate(allowed_cuts(graph, training=True)) if may]
    chosen = [min(ends, key=lambda end: abs(end - len(names) * stage / stages)) for stage in range(1, stages)]
    assert len(set(chosen)) == stages - 1
    return tuple(tuple(names[start:end]) for start, end in itertools.pairwise([0, *chosen, len(names)]))


def plan_of(
    graph: TaskGraph, schedule: str, ranks: int, replicas: int = 1, microbatches: int = 1, per_rank: int = 1, **changes: Any
) -> Plan:
    """A plan of equal stages laid out as its schedule asks for."""
    count = ranks * per_rank
    place = [SCHEDULES[schedule].rank_of_stage(stage, ranks) for stage in range(count)]
    plan = Plan(
        stages=cut(graph, count),
        placement=tuple(tuple(position * replicas + replica for replica in range(replicas)) for position in place),
        slots=tuple(range(ranks * replicas)),
        global_batch_size=24,
        microbatch_count=microbatches,
        schedule=schedule,
        gradient_codecs=("none",) * count,
        activation_codecs=("none",) * (count - 1),
    )
    plan = replace(plan, **changes)
    if SCHEDULES[schedule].row is None:
        rows = plan_of(graph, "zb-h1", ranks, replicas, microbatches)
        from chinchilla_sim.planner.program import passes_of

        plan = replace(plan, order=tuple(" ".join(map(str, row)) for row in passes_of(rows, 0)))
    return with_sharing(plan, graph)


def scattered(graph: TaskGraph) -> Plan:
    """Rank 0 has the first, third and last piece, rank 1 the others, in rows that list scheduling drew."""
    plan = plan_of(graph, "1f1b", 5, microbatches=4)
    rows, _ = list_rows([0, 1, 0, 1, 0], [StageSeconds(1.0, 2.0)] * 5, 4, 3)
    order = tuple(" ".join(map(str, row)) for row in rows)
    return replace(plan, placement=((0,), (1,), (0,), (1,), (0,)), slots=(0, 1), schedule=CUSTOM, order=order)


def stream(graph: TaskGraph, *counts: int) -> Plan:
    """Stages with replica counts of their own."""
    plan, ranks = plan_of(graph, "1f1b", len(counts), microbatches=6), iter(range(sum(counts)))
    placement = tuple(tuple(next(ranks) for _ in range(count)) for count in counts)
    return replace(plan, placement=placement, slots=tuple(range(sum(counts))))


def two_ranks(graph: TaskGraph) -> Mapping[str, Plan]:
    """Plans on two ranks."""
    pipelines = {
        name: plan_of(graph, name, 2, microbatches=4, per_rank=per_rank)
        for name, per_rank in (
            ("gpipe", 1), ("1f1b", 1), ("zb-h1", 1), ("zb-h2", 1), ("zb-1p", 1),
            ("looped-bfs", 2), ("interleaved-1f1b", 2), ("interleaved-zb", 2), ("zb-v", 2), ("dualpipe-v", 2),
        )
    }  # fmt: skip
    return pipelines | {
        "replicas": plan_of(graph, "1f1b", 1, 2),
        "replicas-accumulating": plan_of(graph, "1f1b", 1, 2, microbatches=3),
        "replicas-in-buckets": plan_of(graph, "1f1b", 1, 2, microbatches=2, gradient_buckets=3),
        "replicas-unequal": plan_of(graph, "1f1b", 1, 2, replica_microbatch_counts=(4, 2)),
        "full-recompute": plan_of(graph, "1f1b", 2, microbatches=2, recompute=("full", "full")),
        "selective-recompute": plan_of(graph, "1f1b", 2, microbatches=2, recompute=("selective", "none")),
        "recompute-in-buckets": plan_of(graph, "1f1b", 1, 2, microbatches=2, recompute=("full",), gradient_buckets=2),
        "recompute-split": plan_of(graph, "zb-h1", 2, microbatches=3, recompute=("full", "selective")),
        "scattered": scattered(graph),
    }


def four_ranks(graph: TaskGraph) -> Mapping[str, Plan]:
    """Plans on four ranks."""
    return {
        "replicas-in-buckets": plan_of(graph, "1f1b", 1, 4, gradient_buckets=4),
        "pipeline": plan_of(graph, "1f1b", 4, microbatches=6),
        "pipeline-split": plan_of(graph, "zb-h2", 4, microbatches=6),
        "both": plan_of(graph, "1f1b", 2, 2, microbatches=3, gradient_buckets=2),
        "both-gpipe": plan_of(graph, "gpipe", 2, 2, microbatches=2),
        "both-looped": plan_of(graph, "interleaved-1f1b", 2, 2, microbatches=2, per_rank=2),
        "both-split-in-buckets": plan_of(graph, "zb-v", 2, 2, microbatches=4, per_rank=2, gradient_buckets=2),
        "both-unequal": plan_of(graph, "1f1b", 2, 2, replica_microbatch_counts=(5, 1)),
        "stream-3-1": stream(graph, 3, 1),
        "stream-1-2-1": stream(graph, 1, 2, 1),
        "stream-1-3": replace(stream(graph, 1, 3), schedule="gpipe", gradient_buckets=2),
    }


PLANS = {2: two_ranks, 4: four_ranks}


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
        for name, plan in plans(graph).items():
            assert not mistakes_of(plan), (name, mistakes_of(plan))
            (folder / name).mkdir()
            PlanFile(plan, scenario).save(folder / name / "plan.json")
        launch_ranks("tests.runtime.play_plans", [str(folder)], ranks, folder)
    return folders


def names_of(ranks: int) -> Sequence[str]:
    """Names of the plans on so many ranks, without building them."""
    return {2: _TWO, 4: _FOUR}[ranks]


_TWO = (
    "gpipe", "1f1b", "zb-h1", "zb-h2", "zb-1p", "looped-bfs", "interleaved-1f1b", "interleaved-zb", "zb-v", "dualpipe-v", "replicas",
    "replicas-accumulating", "replicas-in-buckets", "replicas-unequal", "full-recompute", "selective-recompute", "recompute-in-buckets",
    "recompute-split", "scattered",
)  # fmt: skip
_FOUR = (
    "replicas-in-buckets", "pipeline", "pipeline-split", "both", "both-gpipe", "both-looped", "both-split-in-buckets", "both-unequal",
    "stream-3-1", "stream-1-2-1", "stream-1-3",
)  # fmt: skip


@pytest.mark.parametrize(("ranks", "name"), [(ranks, name) for ranks in PLANS for name in names_of(ranks)])
def test_plan_trains_like_one_process(played: Mapping[int, Path], alone: Any, ranks: int, name: str) -> None:
    """Twenty losses and every weight behind them are those of plain PyTorch."""
    folder = played[ranks] / name
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    losses = [sum(parts) for parts in zip(*(record["losses"] for record in records if record["losses"]), strict=True)]
    assert losses == pytest.approx(alone[0], rel=RELATIVE) and len(losses) == STEPS
    saved = torch.load(folder / "weights.pt", weights_only=True)
    for key, tensor in alone[1].items():
        torch.testing.assert_close(saved[key], tensor, rtol=RELATIVE, atol=2e-6)


def test_every_plan_is_listed(scenario: Scenario) -> None:
    """The names above are those of the plans."""
    graph, _ = build_graph(scenario)
    assert {ranks: tuple(plans(graph)) for ranks, plans in PLANS.items()} == {2: _TWO, 4: _FOUR}


def test_buckets_leave_during_the_backward_pass(played: Mapping[int, Path]) -> None:
    """With three buckets the last backward pass is three spans, and the first exchange begins before the pass has ended."""
    record = json.loads((played[2] / "replicas-in-buckets" / "rank0.json").read_text())
    step = record["steps"][-1]
    passes = [row for row in step["compute"] if row[0] == "0B1"]
    exchanges = [row for row in step["collectives"] if row[0] == "gradients"]
    assert len(passes) == len(exchanges) == 3
    assert exchanges[0][5] < passes[1][2] and math.isclose(sum(row[7] for row in exchanges), exchanges[0][7] * 3, rel_tol=0.5)


def test_split_passes_are_played(played: Mapping[int, Path]) -> None:
    """In zb-h1 every microbatch has an I and a W, and no B."""
    record = json.loads((played[2] / "zb-h1" / "rank0.json").read_text())
    labels = [row[0] for row in record["steps"][-1]["compute"]]
    assert {f"0{op}{microbatch}" for op in (Op.F, Op.I, Op.W) for microbatch in range(4)} <= {*labels}
    assert not any(label.startswith("0B") for label in labels)
