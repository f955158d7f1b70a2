"""Tensors of real steps, counted one by one, against the simulated peak of every rank: plans of all kinds, in one launch."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.running import simulate_fully
from chinchilla_sim.runtime.launching.launch import COUNT_VARIABLE, launch_ranks
from chinchilla_sim.runtime.record.memory import COUNTED_STEP
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph, prepare
from tests.conftest import CALIBRATION

MLP = {"builtin": "mnist_mlp", "options": {"widths": [784, 256, 256, 10]}}
GPT = {"builtin": "gpt", "options": {"preset": "small"}}
RESNET = {"builtin": "resnet", "options": {"preset": "small"}}
STAGES: dict[str, Any] = {"placement": ((0,), (1,)), "codecs": ("none", "none"), "schedule": "1f1b"}
REPLICAS: dict[str, Any] = {"placement": ((0, 1),), "codecs": ("none",), "schedule": "1f1b"}
LANES: dict[str, Any] = {"placement": ((0,),), "codecs": ("none",), "schedule": "1f1b", "tensor_parallel_degree": 2}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "one microbatch at a time": (MLP, {"optimizer": "sgd"}, STAGES | {"count": 4}),
    "all microbatches at once": (GPT, {}, STAGES | {"count": 2, "schedule": "gpipe"}),
    "int8 activations": (GPT, {}, STAGES | {"count": 4, "activation_codecs": ("int8",)}),
    "convolutions": (RESNET, {"momentum": 0.9, "optimizer": "sgd"}, STAGES | {"count": 2}),
    "weight gradients apart": (GPT, {}, STAGES | {"count": 4, "schedule": "zb-h1"}),
    "computed again": (GPT, {}, STAGES | {"count": 2, "recompute": ("full", "full")}),
    "answers": (MLP, {"kind": "inference"}, STAGES | {"count": 2, "schedule": "forward"}),
    "plain sums": (MLP, {}, REPLICAS | {"count": 1}),
    "two buckets": (MLP, {}, REPLICAS | {"count": 1, "gradient_buckets": 2}),
    "int8": (GPT, {}, REPLICAS | {"count": 2, "codecs": ("int8",)}),
    "one-bit": (MLP, {}, REPLICAS | {"count": 1, "codecs": ("one-bit",)}),
    "top-k": (MLP, {}, REPLICAS | {"count": 1, "codecs": ("top-k",)}),
    "low-rank in two buckets": (MLP, {"optimizer": "sgd"}, REPLICAS | {"count": 1, "codecs": ("low-rank",), "gradient_buckets": 2}),
    "optimizer divided": (MLP, {}, REPLICAS | {"count": 1, "zero_stage": 1}),
    "weights divided": (MLP, {}, REPLICAS | {"count": 1, "zero_stage": 3}),
    "half precision": (GPT, {"precision": "bf16"}, REPLICAS | {"count": 1}),
    "tensor parallel": (MLP, {}, LANES | {"count": 1}),
}


def scenario_of(model: dict[str, Any], job: dict[str, Any]) -> Scenario:
    """The built-in job for as many steps as it takes to count one."""
    size = 16 if model is GPT else 64
    tables = {
        "name": "memory",
        "model": model,
        "job": {"global_batch_size": size, "steps": COUNTED_STEP + 1, **job},
        "cluster": {"kind": "this-machine", "ranks": 2},
    }
    return parse_scenario(tables, "memory")


def plan_of(scenario: Scenario, kind: dict[str, Any]) -> Plan:
    """The plan; two stages meet in the middle of the tasks."""
    given = dict(kind)
    placement, codecs = given.pop("placement"), given.pop("codecs")
    names = tuple(task.name for task in build_graph(scenario)[0].compute_tasks)
    half = len(names) // 2
    stages = (names,) if len(placement) == 1 else (names[:half], names[half:])
    activations = given.pop("activation_codecs", ("none",) * (len(stages) - 1))
    count, schedule = given.pop("count"), given.pop("schedule")
    return Plan(stages, placement, (0, 1), scenario.job.global_batch_size, count, schedule, codecs, activations, **given)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[tuple[float, float]]]:
    """(simulated, counted) bytes of every rank by case."""
    folder, files = tmp_path_factory.mktemp("memory"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHINCHILLA_CALIBRATION", str(CALIBRATION))
        patch.setenv("CHINCHILLA_CACHE", str(folder / "cache"))
        patch.setenv(COUNT_VARIABLE, "1")
        for name, (model, job, kind) in CASES.items():
            scenario = scenario_of(model, job)
            files[name] = PlanFile(plan_of(scenario, kind), scenario)
            (folder / name).mkdir()
            files[name].save(folder / name / "plan.json")
        launch_ranks("tests.runtime.play_plans", [str(folder)], 2, folder)
        found = {}
        for name, file in files.items():
            timeline = simulate_fully(prepare(file.scenario), file.plan).timeline
            width = file.plan.group_width
            counted = [json.loads((folder / name / f"rank{width * rank}.json").read_text()) for rank in range(file.plan.rank_count)]
            found[name] = [(timeline.peak_memory_bytes(rank), one["memory"]["tensor_bytes"]) for rank, one in enumerate(counted)]
    return found


@pytest.mark.parametrize("case", CASES)
def test_simulated_peak_is_what_tensors_took(peaks: Mapping[str, list[tuple[float, float]]], case: str) -> None:
    """Within 15 % on every rank."""
    for simulated, counted in peaks[case]:
        assert counted > 0
        assert simulated == pytest.approx(counted, rel=0.15)


def test_peaks_are_right_on_average(peaks: Mapping[str, list[tuple[float, float]]]) -> None:
    """Over all cases the mean error is below 5 %, and its mean with the sign below 3 %."""
    errors = [simulated / counted - 1.0 for rows in peaks.values() for simulated, counted in rows]
    assert sum(map(abs, errors)) / len(errors) < 0.05
    assert abs(sum(errors)) / len(errors) < 0.03
