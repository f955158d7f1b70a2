"""Tensor parallelism, alone and with replicas and pipelines: trained like one process, with the collectives that the simulator counts."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.shard import shard_graph
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.blocking import arriving, inside
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.recompute import Blocks
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.record.recorder import merge_step
from chinchilla_sim.runtime.stage.lanes import Lanes, apart
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from chinchilla_sim.simulator.engine import simulate
from tests.planner.selection.test_search import cluster_of
from tests.runtime.conftest import train_alone

STEPS = 8
RELATIVE = 1e-5

SCENARIO = """
[model]
factory = "{jobs}:{model}"

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
    """Stages of about equal numbers of tasks on groups of `width`, cut where few tensors cross (`shift` tasks further on)."""
    names = [task.name for task in graph.compute_tasks]
    ends = [index + 1 for index, may in enumerate(allowed_cuts(graph, training=True)) if may]
    shift, reach = changes.pop("shift", 0), len(names) / stages / 2

    def crossing(end: int) -> int:
        return len(graph.live_after(graph.position[names[end - 1]]))

    targets = [len(names) * stage / stages + shift for stage in range(1, stages)]
    near = [[end for end in ends if abs(end - target) < reach] for target in targets]
    chosen = [min(some, key=lambda end: (crossing(end), abs(end - target))) for some, target in zip(near, targets, strict=True)]
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


PLANS: Mapping[int, Mapping[str, Callable[[TaskGraph], Plan]]] = {
    2: {
        "alone": lambda graph: plan_of(graph, 2),
        "recomputed": lambda graph: plan_of(graph, 2, recompute=("full",)),
        "stages": lambda graph: plan_of(graph, 2, 2, schedule="looped-bfs", per_rank=2),
    },
    4: {
        "alone": lambda graph: plan_of(graph, 4),
        "replicas": lambda graph: plan_of(graph, 2, 1, 2),
        "replicas-in-buckets": lambda graph: plan_of(graph, 2, 1, 2, gradient_buckets=3),
        "zero-1": lambda graph: plan_of(graph, 2, 1, 2, zero_stage=1),
        "zero-2-in-buckets": lambda graph: plan_of(graph, 2, 1, 2, zero_stage=2, gradient_buckets=3),
        "zero-3-in-buckets": lambda graph: plan_of(graph, 2, 1, 2, zero_stage=3, gradient_buckets=3),
        "pipeline": lambda graph: plan_of(graph, 2, 2, microbatches=4),
        "pipeline-divided": lambda graph: plan_of(graph, 2, 2, shift=1),
        "pipeline-split": lambda graph: plan_of(graph, 2, 2, schedule="zb-h1", microbatches=4, recompute=("selective", "full")),
        "pipeline-interleaved": lambda graph: plan_of(graph, 2, 4, schedule="interleaved-1f1b", per_rank=2, microbatches=4),
    },
}
PLAYED = {
    "gpt": PLANS,
    "clipped": {2: ("alone",), 4: ("replicas", "pipeline", "zero-2-in-buckets", "zero-3-in-buckets")},
    "mlp": {2: ("alone",), 4: ("alone", "replicas", "pipeline", "pipeline-divided")},
    "mixed": {2: ("alone",), 4: ("pipeline",)},
    "grouped": {2: ("alone",), 4: ("alone",)},
    "dropping": {2: ("alone", "recomputed")},
}
CASES = [(model, ranks, name) for model, by_ranks in PLAYED.items() for ranks, names in by_ranks.items() for name in names]
EXACT = [case for case in CASES if case[0] != "dropping"]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scenario]:
    """The jobs."""
    folder = tmp_path_factory.mktemp("job")
    for model in PLAYED:
        (folder / f"{model}.toml").write_text(SCENARIO.format(jobs=Path(__file__).with_name("tensor_jobs.py"), model=model))
    changes = {"clipped": ["job.clip_gradient_norm=0.3"]}
    return {model: load_scenario(folder / f"{model}.toml", changes.get(model, [])) for model in PLAYED}


@pytest.fixture(scope="module")
def graphs(scenarios: Mapping[str, Scenario]) -> Mapping[str, TaskGraph]:
    """What the planner sees of them."""
    return {model: build_graph(scenario)[0] for model, scenario in scenarios.items()}


@pytest.fixture(scope="module")
def plans(graphs: Mapping[str, TaskGraph]) -> Mapping[tuple[str, int, str], Plan]:
    """All plans, by model, processes and name."""
    return {
        (model, ranks, name): replace(PLANS[ranks][name](graphs[model]), clips_gradients=model == "clipped") for model, ranks, name in CASES
    }


@pytest.fixture(scope="module")
def played(scenarios: Mapping[str, Scenario], plans: Mapping[tuple[str, int, str], Plan], tmp_path_factory: Any) -> Mapping[int, Path]:
    """Folders of all plans, played in one launch for each number of processes."""
    folders = {ranks: tmp_path_factory.mktemp(f"processes{ranks}") for ranks in (2, 4)}
    for (model, ranks, name), plan in plans.items():
        assert not mistakes_of(plan) and not unplayable(plan), (name, mistakes_of(plan), unplayable(plan))
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


def losses_of(folder: Path, plan: Plan) -> list[float]:
    """Sums over the replicas."""
    return [sum(parts) for parts in zip(*(row["losses"] for row in records_of(folder, plan) if row["losses"]), strict=True)]


@pytest.mark.parametrize(("model", "ranks", "name"), EXACT)
def test_plan_trains_like_one_process(plans: Any, played: Any, alone: Any, model: str, ranks: int, name: str) -> None:
    """Losses, and every weight behind them, are those of plain PyTorch."""
    folder, plan = played[ranks] / f"{model}-{name}", plans[model, ranks, name]
    losses = losses_of(folder, plan)
    assert losses == pytest.approx(alone[model][0], rel=RELATIVE) and len(losses) == STEPS
    saved = torch.load(folder / "weights.pt", weights_only=True)
    for key, tensor in alone[model][1].items():
        torch.testing.assert_close(saved[key], tensor, rtol=RELATIVE, atol=2e-6)


@pytest.mark.parametrize(("model", "ranks", "name"), EXACT)
def test_collectives_are_those_that_are_priced(graphs: Any, plans: Any, played: Any, model: str, ranks: int, name: str) -> None:
    """Number, kind and payload of what every rank's passes wait for; full recompute runs those of the forward pass again."""
    plan, graph = plans[model, ranks, name], graphs[model]
    part = shard_graph(graph, plan.tensor_parallel_degree)
    for rank, record in enumerate(records_of(played[ranks] / f"{model}-{name}", plan)):
        expected: Counter[tuple[str, str, int]] = Counter()
        for stage in plan.position[rank][0]:
            tasks = [part.graph.tasks[part.graph.position[name]] for name in plan.stages[stage]]
            again = Blocks(part.graph).recompute(tasks).again if plan.recompute_of(stage) == "full" else ()
            repeated, _ = inside(part, plan, stage, [task for task in tasks if task.name in again])
            for row in (inside(part, plan, stage, tasks), arriving(part, plan, stage), (repeated, [])):
                for way, collectives in zip("FB", row, strict=True):
                    for one in collectives:
                        payload = round(one.payload_bytes * plan.microbatch_size / graph.batch_size)
                        expected[way, one.kind, payload] += STEPS * plan.microbatch_count
        assert {tuple(row[:3]): row[3] for row in record["lane_collectives"]} == dict(expected)


@pytest.mark.parametrize(("model", "name", "divided"), [("gpt", "pipeline", 0), ("mlp", "pipeline", 0), ("mlp", "pipeline-divided", 1)])
def test_bytes_between_stages_are_those_of_the_plan(
    graphs: Any, plans: Any, played: Any, scenarios: Any, model: str, name: str, divided: int
) -> None:
    """Every process sends its part or its share of a boundary's tensors: all of a rank's together what one would send alone."""
    plan, graph = plans[model, 4, name], graphs[model]
    pricing = Pricer(graph, cluster_of(*[{}] * 4), scenarios[model].job).price(plan)
    crossing = graph.live_after(graph.position[plan.stages[0][-1]])
    assert sum(task.name in shard_graph(graph, 2).divided for task in crossing) == divided
    sent = [row for record in records_of(played[4] / f"{model}-{name}", plan) for row in record["steps"][-1]["sends"]]
    assert len(sent) == 2 * plan.microbatch_count
    assert all(row[6] == pricing.message_bytes(row[0], row[1]) for row in sent)


@pytest.mark.parametrize(("model", "ranks", "name"), EXACT)
def test_a_rank_sends_what_is_simulated(graphs: Any, plans: Any, played: Any, scenarios: Any, model: str, ranks: int, name: str) -> None:
    """All that a rank sends in a step, inside its passes too: measured and simulated alike."""
    plan, cluster = plans[model, ranks, name], cluster_of(*[{}] * ranks)
    pricing = Pricer(graphs[model], cluster, scenarios[model].job).price(plan)
    simulated = simulate(lower(plan), pricing, cluster)
    measured = merge_step([record["steps"][-1] for record in records_of(played[ranks] / f"{model}-{name}", plan)])
    for rank in range(plan.rank_count):
        assert measured.sent_bytes(rank) == pytest.approx(simulated.sent_bytes(rank), rel=0.01)
        assert simulated.sent_bytes(rank) > 0


@pytest.mark.parametrize("name", ["replicas-in-buckets", "zero-1", "zero-2-in-buckets", "zero-3-in-buckets"])
def test_bytes_between_replicas_are_those_of_the_plan(graphs: Any, plans: Any, played: Any, scenarios: Any, name: str) -> None:
    """Every lane exchanges the gradients and gathers the weights of its own part; a rank's records tell the bytes of all its lanes."""
    plan = plans["gpt", 4, name]
    pricing = Pricer(graphs["gpt"], cluster_of(*[{}] * 4), scenarios["gpt"].job).price(plan)
    passes = plan.microbatch_count if plan.zero_stage == 3 else 1
    rows = records_of(played[4] / f"gpt-{name}", plan)[0]["steps"][-1]["collectives"]
    sent = {what: sum(row[7] for row in rows if row[0] == what) / 2 for what in ("gradients", "weights")}
    assert sent["gradients"] == pytest.approx(passes * pricing.gradients[0].sent_bytes, rel=0.01)
    gathers = 2 * passes if plan.zero_stage == 3 else 1
    assert sent["weights"] == pytest.approx(gathers * pricing.weights[0].sent_bytes if plan.zero_stage else 0.0, rel=0.01)


def test_a_clipped_step_waits_for_the_norm_of_all_lanes(graphs: Any, plans: Any, scenarios: Any) -> None:
    """Also on one rank: a sum of four bytes over its devices, which the simulation plays."""
    plan = plans["clipped", 2, "alone"]
    pricer = Pricer(graphs["clipped"], cluster_of({}, {}), scenarios["clipped"].job)
    pricing = pricer.price(plan)
    assert [one.payload_bytes for one in pricing.norm] == [4.0] and sorted(pricing.norm[0].orders[0]) == [0, 1]
    spans = {span.label: span for span in simulate(lower(plan), pricing, cluster_of({}, {})).spans}
    assert spans["0NORM_GRAD"].end_s <= spans["0REDUCE_NORM"].start_s < spans["0REDUCE_NORM"].end_s <= spans["0OPTIM"].start_s


def test_dropped_values_are_the_same_when_a_pass_runs_again(plans: Any, played: Any) -> None:
    """Masks of whole tensors and of parts come back with recompute: the losses do not change by a bit."""
    once, again = (losses_of(played[2] / f"dropping-{name}", plans["dropping", 2, name]) for name in ("alone", "recomputed"))
    assert once == pytest.approx(again, rel=1e-6) and len(once) == STEPS


def test_lanes_drop_different_values_of_their_parts() -> None:
    """Processes that share a generator draw apart for parts, and are alike again behind it."""
    drawn, left = [], []
    for lane in range(2):
        torch.manual_seed(5)
        drawn.append(apart(torch.nn.functional.dropout, Lanes(None, 2, lane))(torch.ones(100)))
        left.append(torch.rand(3))
    assert not torch.equal(*drawn) and torch.equal(*left)
