"""Measured tasks: every task of the traced graph has times, and planning uses them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chinchilla_sim.graph.contract import factory_of, load_job
from chinchilla_sim.graph.profile import Profile, TaskTime
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.runtime.measurement.profiler import input_seconds, microbatch_sizes, profile_tasks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.setting import build_graph, find_profile, prepare, profile_path
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.workflow import make_plan, profile_scenario

SCENARIO = Path(__file__).parents[3] / "scenarios" / "mnist_mlp.toml"


class Job:
    """A network with a convolution, a norm in training mode, an operator in place and a skip."""

    def model(self) -> nn.Module:
        """A fresh module."""
        return Net()

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Random images and labels."""
        return torch.rand(size, 1, 8, 8), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy."""
        return cross_entropy(outputs, targets)

    def batches(self, split: str, seed: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """None are needed."""
        return []


class Net(nn.Module):
    """(batch, 1, 8, 8) -> (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        kept = self.relu(self.norm(self.first(x)))
        return self.head((self.second(kept) + kept).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [True, False])
def test_every_task_is_timed(training: bool) -> None:
    """One row per task of the traced graph, with a backward pass where the graph has one."""
    graph = trace_job(Job(), 4, training, "net")
    rows = {row["task"]: row for row in profile_tasks(Job(), 4, training)}
    assert list(rows) == [task.name for task in graph.compute_tasks]
    assert all(row["forward_s"] > 0 for row in rows.values())
    products = [task for task in graph.compute_tasks if task.weight_gradient_flop]
    assert products and all(rows[task.name]["backward_s"] > 0 for task in products)


def test_sizes_are_halvings_of_the_batch() -> None:
    """The whole batch and up to three halvings that are whole."""
    assert (microbatch_sizes(64), microbatch_sizes(6), microbatch_sizes(7)) == ([8, 16, 32, 64], [3, 6], [7])


def test_stored_times_decide_the_plan() -> None:
    """Times beside the graph replace formulas: the simulated step of one rank is their sum and what is not a task's."""
    scenario = load_scenario(SCENARIO, ["search.minimum_ranks=1", "cluster.ranks=1"])
    plain = prepare(scenario)
    times = tuple(TaskTime(task.name, 64, 1.0, 2.0, busy_ranks=1) for task in plain.graph.compute_tasks)
    path = profile_path(plain.graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(Profile(times, source="by hand").to_dict()))
    assert find_profile(plain.graph).times == times
    setting = prepare(scenario)
    assert any("4 of 4 tasks are measured (by hand)" in note for note in setting.notes)
    one_rank = make_plan(setting).best
    assert one_rank.step_s == pytest.approx(4 * 3.0, rel=0.01)
    assert setting.hashes["profile"] != plain.hashes.get("profile")


def test_batch_takes_time_too() -> None:
    """What comes before a step is measured on the job's own data, shows as a span of its own, and lengthens the step by as much."""
    scenario = load_scenario(SCENARIO)
    job = load_job(*factory_of(scenario), to_run=True)
    seconds = input_seconds(job, scenario)
    assert seconds > 0
    graph, _ = build_graph(scenario)
    setting = prepare(scenario)
    plan = make_plan(setting).best.plan
    steps = []
    for profile in (Profile(), Profile(input_s=0.25)):
        pricing = Pricer(graph, setting.cluster, scenario.job, profile).price(plan)
        timeline = simulate(lower(plan), pricing, setting.cluster)
        steps.append(timeline.step_s)
    assert steps[1] == pytest.approx(steps[0] + 0.25)
    assert next(span.label for span in timeline.spans_of(0, "compute")) == "INPUT"
    assert Profile.from_dict(Profile(input_s=0.25).to_dict()) == Profile(input_s=0.25)


def test_zero_3_is_measured_with_the_tasks() -> None:
    """A profile of two ranks knows what FSDP2 takes itself; it lengthens passes of plans that divide weights, and no others."""
    scenario = load_scenario(SCENARIO, ["search.zero_stages=[3]", "search.pipeline_parallel_degrees=[1]", "job.global_batch_size=16"])
    profile, _ = profile_scenario(scenario)
    assert all(seconds > 0 for seconds in profile.sharding_s) and len(profile.sharding_s) == 2
    setting = prepare(scenario)
    plan = make_plan(setting).best.plan
    for one, expected in ((plan, profile.sharding_s), (replace(plan, zero_stage=0), (0.0, 0.0))):
        prices = [
            Pricer(setting.graph, setting.cluster, scenario.job, each).price(one).stages[0][0]
            for each in (profile, replace(profile, sharding_s=()))
        ]
        message_s = setting.cluster.device(0, 2).host_message_s
        added = [prices[0].action_s[op] - prices[1].action_s[op] for op in (Op.F, Op.B)]
        counted = [max(0.0, seconds - count * message_s) for seconds, count in zip(expected, (2, 4), strict=True)]
        assert added == pytest.approx(counted)
