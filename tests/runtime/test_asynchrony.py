"""Local steps and late gradients, played by real ranks: they train like loops of plain PyTorch in one process, to 1e-5."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chinchilla_sim.cost.codec import CODECS, exchange_kind
from chinchilla_sim.graph.contract import factory_of, load_job
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.exchanges.exchange import bucket_codec
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, sealed_checkpoints, step_of
from chinchilla_sim.runtime.record.recorder import cycle_timeline, exchanges, kept_timelines, step_seconds
from chinchilla_sim.runtime.stage.batches import global_batches
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.conftest import JOB, SCENARIO
from tests.runtime.test_equality import plan_of

STEPS = 20
RELATIVE = 1e-5
ROUNDED = 1e-3
DILOCO = {"outer_learning_rate": 0.7, "outer_momentum": 0.9}


@dataclass(frozen=True)
class Case:
    """A plan, and what its job has beside the scenario's."""

    plan: Plan
    job: Mapping[str, object]


def two_ranks(graph: TaskGraph) -> dict[str, Case]:
    """Two replicas of one stage, with every codec."""
    local = plan_of(graph, "1f1b", 1, 2, microbatches=2, local_steps=4)
    late = replace(local, local_steps=1, gradient_delay=1)
    unequal = {"replica_microbatch_counts": (4, 2)}
    cases = {
        "local": Case(local, {}),
        "local-adam-momentum": Case(local, DILOCO | {"optimizer": "adam", "learning_rate": 0.01}),
        "local-unequal-ends-between": Case(replace(local, local_steps=3, **unequal), DILOCO | {"momentum": 0.5}),
        "local-in-buckets": Case(replace(local, gradient_buckets=2), {}),
        "late": Case(late, {}),
        "late-adam": Case(late, {"optimizer": "adam", "learning_rate": 0.01}),
        "late-unequal": Case(replace(late, **unequal), {"momentum": 0.5}),
        "late-in-buckets": Case(replace(late, gradient_buckets=2), {}),
    }
    for codec in CODECS:
        if codec != "none":
            cases[f"local-{codec}"] = Case(replace(local, gradient_codecs=(codec,)), {})
            # Factors of low rank amplify rounding from about the 14th step on.
            few = {"steps": 10} if codec == "low-rank" else {}
            cases[f"late-{codec}"] = Case(replace(late, gradient_codecs=(codec,)), {"learning_rate": 0.1} | few)
    return cases


def four_ranks(graph: TaskGraph) -> dict[str, Case]:
    """Pipelines side by side, and four replicas."""
    both = plan_of(graph, "1f1b", 2, 2, microbatches=2)
    return {
        "pipelines-local": Case(replace(both, local_steps=4), DILOCO),
        "pipelines-late": Case(replace(both, gradient_delay=1, gradient_codecs=("fp16", "none")), {}),
        "looped-local": Case(plan_of(graph, "interleaved-1f1b", 2, 2, microbatches=2, per_rank=2, local_steps=5), {}),
        "split-late": Case(plan_of(graph, "zb-h1", 2, 2, microbatches=3, gradient_delay=1), {}),
        "replicas-local": Case(plan_of(graph, "1f1b", 1, 4, local_steps=2), {}),
    }


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A job whose last layer is wide enough for factors of low rank, and which has four layers to cut behind."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB.format(trouble="pass").replace("nn.Linear(24, 4)", "nn.Linear(24, 6)"))
    (folder / "own.toml").write_text(SCENARIO)
    return load_scenario(folder / "own.toml")


def with_changes(scenario: Scenario, case: Case) -> Scenario:
    """The scenario of a case."""
    return scenario.model_copy(update={"job": scenario.job.model_copy(update={"steps": STEPS, **case.job})})


@pytest.fixture(scope="module")
def played(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, Path]]:
    """Folders of all plans, played in one launch for each number of ranks."""
    graph, _ = build_graph(scenario)
    found = {}
    for ranks, cases in ((2, two_ranks(graph)), (4, four_ranks(graph))):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        for name, case in cases.items():
            assert not mistakes_of(case.plan) and not unplayable(case.plan), name
            (folder / name).mkdir()
            PlanFile(case.plan, with_changes(scenario, case)).save(folder / name / "plan.json")
            found[name] = case, folder / name
        launch_ranks("tests.runtime.play_plans", [str(folder)], ranks, folder)
    return found


# The same in one process


@dataclass
class Replicas:
    """Replicas of a model in this process; codecs do to what each of them sends what they do on the wire."""

    scenario: Scenario
    plan: Plan

    def __post_init__(self) -> None:
        self.job = load_job(*factory_of(self.scenario), to_run=True)
        torch.manual_seed(self.scenario.job.seed)
        first, replicas = self.job.model(), range(self.plan.data_parallel_degree)
        self.models = [deepcopy(first) for _ in replicas]
        counts = [self.plan.microbatches_of(replica) for replica in replicas]
        self.shares = [count / sum(counts) for count in counts]
        self.codec = self.plan.gradient_codecs[0]
        self.codecs = [bucket_codec(self.codec, list(model.parameters())) for model in self.models]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The job's own."""
        spec = self.scenario.job
        if spec.optimizer == "adam":
            return torch.optim.Adam(model.parameters(), lr=spec.learning_rate)
        return torch.optim.SGD(model.parameters(), lr=spec.learning_rate, momentum=spec.momentum)

    def batches(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Every replica's samples of every step."""
        spec, ends = self.scenario.job, [0]
        for share in self.shares:
            ends.append(ends[-1] + round(share * spec.global_batch_size))
        for epoch in range(spec.epochs):
            for inputs, targets in global_batches(self.job.batches("train", spec.seed, epoch), spec.global_batch_size):
                yield [(inputs[a:b], targets[a:b]) for a, b in pairwise(ends)]

    def loss(self, replica: int, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean over a replica's samples."""
        loss: Tensor = self.job.loss(self.models[replica](batch[0]), batch[1])
        return loss

    def exchanged(self, values: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """What the sum of all replicas' values is behind their codecs."""
        if self.codec in ("none", "fp16", "bf16"):
            sent = {"none": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.codec]
            return [sum((part.to(sent) for part in parts), torch.tensor(0, dtype=sent)).float() for parts in zip(*values, strict=True)]
        for codec, gradients in zip(self.codecs, values, strict=True):
            for parameter, name in zip(codec.parameters, range(len(codec.parameters)), strict=True):
                index = getattr(codec, "names", range(len(codec.parameters)))[name]
                parameter.grad = gradients[index].clone()
            codec.pack()
        if exchange_kind(self.codec) == "all_gather":
            self.codecs[0].unpack([codec.payloads[0].clone() for codec in self.codecs])
        else:
            self._sum_rounds()
        order = getattr(self.codecs[0], "names", list(range(len(self.codecs[0].gradients))))
        return [self.codecs[0].gradients[order.index(index)].clone() for index in range(len(order))]

    def _sum_rounds(self) -> None:
        """Both rounds of low-rank."""
        for number in range(len(self.codecs[0].payloads)):
            if number:
                for codec in self.codecs:
                    codec.prepare_second()
            total = sum(codec.payloads[number].clone() for codec in self.codecs)
            for codec in self.codecs:
                codec.payloads[number].copy_(total)
        for codec in self.codecs:
            codec.unpack(codec.payloads[:1])


def train_locally(replicas: Replicas) -> tuple[list[float], dict[str, Tensor]]:
    """Local SGD: every replica's own optimizer, and SGD with Nesterov momentum over mean differences."""
    spec, period = replicas.scenario.job, replicas.plan.local_steps
    shared = deepcopy(replicas.models[0])
    outer = torch.optim.SGD(shared.parameters(), spec.outer_learning_rate, spec.outer_momentum, nesterov=spec.outer_momentum > 0)
    optimizers, losses = [replicas.optimizer(model) for model in replicas.models], list[float]()
    for parts, step in zip(replicas.batches(), range(replicas.scenario.job.steps or 0), strict=False):
        found = [replicas.loss(replica, part) for replica, part in enumerate(parts)]
        for loss, optimizer in zip(found, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(sum(share * float(loss.detach()) for share, loss in zip(replicas.shares, found, strict=True)))
        if (step + 1) % period == 0:
            with torch.no_grad():
                moved = [
                    [share * (one - own) for one, own in zip(shared.parameters(), model.parameters(), strict=True)]
                    for share, model in zip(replicas.shares, replicas.models, strict=True)
                ]
            for one, mean in zip(shared.parameters(), replicas.exchanged(moved), strict=True):
                one.grad = mean
            outer.step()
            for model in replicas.models:
                model.load_state_dict(shared.state_dict())
    states = [model.state_dict() for model in replicas.models]
    means = {key: sum(share * state[key] for share, state in zip(replicas.shares, states, strict=True)) for key in states[0]}
    return losses, means  # type: ignore[return-value]


def train_late(replicas: Replicas) -> tuple[list[float], dict[str, Tensor]]:
    """Each step applies the gradients of the step before."""
    model = replicas.models[0]
    optimizer, losses, before = replicas.optimizer(model), list[float](), list[Tensor]()
    for parts, _ in zip(replicas.batches(), range(replicas.scenario.job.steps or 0), strict=False):
        gradients, mean = [], 0.0
        for replica, (part, share) in enumerate(zip(parts, replicas.shares, strict=True)):
            replicas.models[replica].load_state_dict(model.state_dict())
            loss = replicas.loss(replica, part) * share
            gradients.append(torch.autograd.grad(loss, list(replicas.models[replica].parameters())))
            mean += float(loss.detach())
        losses.append(mean)
        for one, late in zip(model.parameters(), before, strict=bool(before)):
            one.grad = late
        if before:
            optimizer.step()
        before = replicas.exchanged(gradients)
    return losses, model.state_dict()


TWO = (
    "local", "local-adam-momentum", "local-unequal-ends-between", "local-in-buckets", "late", "late-adam", "late-unequal",
    "late-in-buckets",
    *(f"{kind}-{codec}" for codec in CODECS if codec != "none" for kind in ("local", "late")),
)  # fmt: skip
FOUR = ("pipelines-local", "pipelines-late", "looped-local", "split-late", "replicas-local")


@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_trains_like_a_loop_in_one_process(played: Mapping[str, tuple[Case, Path]], scenario: Scenario, name: str) -> None:
    """Every loss, and all weights behind the last step, are those of the loop written out above."""
    case, folder = played[name]
    replicas = Replicas(with_changes(scenario, case), case.plan)
    losses, weights = (train_locally if case.plan.local_steps > 1 else train_late)(replicas)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    measured = [sum(parts) for parts in zip(*(record["losses"] for record in records if record["losses"]), strict=True)]
    # Rounding in another order may bring a value to the next one that a codec knows.
    tolerance = RELATIVE if {*case.plan.gradient_codecs} == {"none"} else ROUNDED
    assert measured == pytest.approx(losses, rel=tolerance) and len(losses) == with_changes(scenario, case).job.steps
    saved = torch.load(folder / "weights.pt", weights_only=True)
    for key, tensor in weights.items():
        torch.testing.assert_close(saved[key], tensor, rtol=tolerance, atol=tolerance / 5)


def test_every_case_is_listed(scenario: Scenario) -> None:
    """The names above are those of the plans."""
    graph, _ = build_graph(scenario)
    assert {*TWO} == {*two_ranks(graph)} and {*FOUR} == {*four_ranks(graph)}


def test_only_every_fourth_step_exchanges(played: Mapping[str, tuple[Case, Path]]) -> None:
    """Of the kept steps each fourth has a collective; each figure of the measurement is the mean over four steps."""
    _, folder = played["local"]
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    marks = [exchanges(timeline) for timeline in kept_timelines(records)]
    assert marks == [(step + 1) % 4 == 0 for step in range(5, STEPS)]
    cycle = cycle_timeline(records, 4, [(0,), (1,)])
    assert exchanges(cycle) and cycle.local is not None and not exchanges(cycle.local) and cycle.makespan_s > cycle.local.makespan_s
    begun = [min(span.start_s for span in cycle.local.spans_of(rank)) for rank in (0, 1)]
    assert begun == pytest.approx([cycle.local.start_s] * 2, rel=1e-12)
    whole, means = step_seconds(records), step_seconds(records, 4)
    assert means == pytest.approx([sum(whole[start : start + 4]) / 4 for start in (0, 4, 8)])


def test_late_gradients_travel_while_the_next_step_computes(played: Mapping[str, tuple[Case, Path]]) -> None:
    """The exchange is the first thing of a step, but of the first one, and its result is awaited behind the last pass."""
    _, folder = played["late"]
    steps: list[Any] = json.loads((folder / "rank0.json").read_text())["steps"]
    assert [len(step["collectives"]) for step in steps] == [0] + [1] * (STEPS - 1)
    for step in steps[1:]:
        (row,), passes = step["collectives"], [one for one in step["compute"] if one[1] in ("forward", "backward")]
        assert row[5] <= passes[0][2] and row[6] >= passes[-1][3]


# Checkpoints


@pytest.fixture(scope="module")
def resumed(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs over two ranks, and their continuations."""
    root, cases = tmp_path_factory.mktemp("resumptions"), two_ranks(build_graph(scenario)[0])
    for name in RESUMED:
        case = cases[name]
        if name == "local-top-k":
            case = Case(replace(case.plan, replica_microbatch_counts=(4, 2)), DILOCO | {"optimizer": "adam", "learning_rate": 0.01})
        (root / name).mkdir()
        saving = with_changes(scenario, Case(case.plan, {**case.job, "steps": STEPS, "checkpoint_interval_steps": 7}))
        PlanFile(case.plan, saving).save(root / name / "plan.json")
        other = replace(case.plan, local_steps=1, gradient_delay=0, replica_microbatch_counts=())
        PlanFile(other, saving).save(root / name / "after.json")
    launch_ranks("tests.runtime.play_resumptions", [str(root)], 2, root)
    return root


RESUMED = ("local-top-k", "late", "late-low-rank", "late-int8")


@pytest.mark.parametrize("name", RESUMED)
def test_checkpoints_hold_what_each_replica_has_of_its_own(resumed: Path, name: str) -> None:
    """Outer momentum, each replica's optimizer, and gradients under way: a run that goes on ends with the bits of the whole one."""
    found = []
    for part in ("whole", "again"):
        records = [json.loads((resumed / name / part / f"rank{rank}.json").read_text()) for rank in (0, 1)]
        found.append([record["losses"] for record in records])
    assert found[0] == found[1] and len(found[0][0]) == STEPS and len(records[0]["intervals"]) < STEPS
    whole, again = (torch.load(resumed / name / part / "weights.pt", weights_only=True) for part in ("whole", "again"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_checkpoints_wait_until_all_replicas_agree(resumed: Path) -> None:
    """Every 7 steps, but with 4 local steps before the next multiple of 4."""
    assert [step_of(path) for path in sealed_checkpoints(resumed / "local-top-k" / FOLDER)] == [16, 8]
    assert [step_of(path) for path in sealed_checkpoints(resumed / "late" / FOLDER)] == [14, 7]


def test_another_plan_goes_on_without_it_and_says_so(resumed: Path) -> None:
    """Synchronous steps go on from the weights alone."""
    for name in RESUMED:
        assert "what replicas had each of their own is dropped" in (resumed / name / "after" / "notes.txt").read_text()
