"""What a run teaches: simulations with other constants stand for reality."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.calibration import load_calibration
from chinchilla_sim.cluster.recalibration import Recalibration, load_recalibration, save_recalibration
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.setting import prepare, recalibration_path
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.validation.recalibrate import recalibrate
from tests.validation.reality import World, as_measured, plan_of, step_s

WIDTHS = [784, 512, 512, 256, 10]
TRUTH = Recalibration(
    between_passes_s=2e-4,
    optimizer_scale=1.6,
    codec_scale=2.5,
    latency_scale=3.0,
    byte_scale=1.5,
    collective_scales={"all_reduce/2": 1.4, "all_gather/2": 0.8},
)


def graph_of() -> TaskGraph:
    """A small perceptron."""
    return mlp(WIDTHS, 256)


def worlds(calibration: Path) -> tuple[World, World]:
    """This machine as calibrated, and as it really is: everything takes another time."""
    graph = graph_of()
    text = {"name": "here", "model": {"formula": "mlp", "widths": WIDTHS}, "job": {"global_batch_size": 256}}
    scenario = parse_scenario(text | {"cluster": {"kind": "this-machine", "ranks": 2}}, "test")
    cluster = build_cluster(scenario.cluster, scenario.job.precision, load_calibration(calibration))
    slower = {task.name: (1.3 + 0.2 * index, 1.8) for index, task in enumerate(graph.compute_tasks)}
    real = World(graph, TRUTH.correct_cluster(cluster), scenario.job, Profile(scales=slower))
    return World(graph, cluster, scenario.job), real


def taught_by(world: World, real: World, plan: Plan, earlier: Recalibration | None = None) -> Recalibration:
    """What three equal steps of a plan in the real world teach; the recorder sees gaps, not what causes them."""
    lived = real.simulate(plan)
    return recalibrate(world.simulate(plan), [gaps_shown(real, plan, as_measured(lived.graph, lived.times))] * 3, earlier, "today")


def gaps_shown(real: World, plan: Plan, step: Timeline) -> Timeline:
    """The recorder starts a pass when its work before it is over."""
    spans = tuple(
        replace(span, start_s=span.start_s + TRUTH.between_passes_s) if span.category in ("forward", "backward") else span
        for span in step.spans
    )
    return replace(step, spans=spans)


def corrected(world: World, taught: Recalibration) -> World:
    """The world as it is predicted after a run."""
    return replace(world, cluster=taught.correct_cluster(world.cluster), profile=Profile(scales=taught.task_scales))


def error(world: World, real: World, plan: Plan) -> float:
    """Relative error of a predicted step."""
    return abs(step_s(world.simulate(plan)) / step_s(real.simulate(plan)) - 1)


@pytest.mark.parametrize("name", ["pipeline", "replicas", "packed"])
def test_next_prediction_is_better_and_of_another_plan_too(stored_calibration: Path, name: str) -> None:
    """After one run the error of its plan falls below 2 %, and those of other plans shrink to less than half."""
    world, real = worlds(stored_calibration)
    graph = world.graph
    cuts = [4]
    plans = {
        "pipeline": plan_of(graph, cuts, microbatches=8),
        "replicas": plan_of(graph, [], replicas=2, microbatches=2),
        "packed": plan_of(graph, cuts, microbatches=4, activation_codecs=("int8",)),
    }
    after = corrected(world, taught_by(world, real, plans[name]))
    assert error(after, real, plans[name]) < 0.02 < error(world, real, plans[name])
    for other in plans.values():
        assert error(after, real, other) < 0.5 * error(world, real, other)
    smaller = plan_of(graph, [], microbatches=16)
    assert error(after, real, smaller) < 0.5 * error(world, real, smaller)


def test_known_factors_are_found(stored_calibration: Path) -> None:
    """Optimizer, codec, collective and the gaps before passes come out as they were put in."""
    world, real = worlds(stored_calibration)
    taught = taught_by(world, real, plan_of(world.graph, [], replicas=2, microbatches=2, gradient_codecs=("int8",)))
    assert taught.optimizer_scale == pytest.approx(1.6)
    assert taught.codec_scale == pytest.approx(2.5)
    assert taught.collective_scales == pytest.approx({"all_gather/2": 0.8})
    assert taught.between_passes_s == pytest.approx(2e-4)
    assert (taught.latency_scale, taught.byte_scale) == (1.0, 1.0)


def test_a_second_run_adds_nothing_to_a_right_prediction(stored_calibration: Path) -> None:
    """What was learnt once is kept: the same run again teaches the same factors."""
    world, real = worlds(stored_calibration)
    plan = plan_of(world.graph, [4], microbatches=8)
    once = taught_by(world, real, plan)
    twice = taught_by(corrected(world, once), real, plan, once)
    assert twice.between_passes_s == pytest.approx(once.between_passes_s, rel=0.05)
    for name, factors in once.task_scales.items():
        assert twice.task_scales[name] == pytest.approx(factors, rel=0.05)


def test_recalibration_survives_its_file_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    """Saved and read it is the same; a file of something else names itself and the cure."""
    path = tmp_path / "cache" / "recalibration.json"
    taught = replace(TRUTH, task_scales={"a": (1.5, 2.0)}, date="2026-11-28")
    save_recalibration(taught, path)
    assert load_recalibration(path) == taught
    path.write_text(json.dumps({"format": "else"}))
    with pytest.raises(ScenarioError, match="--recalibrate"):
        load_recalibration(path)


def test_prepare_uses_what_was_learnt(tmp_path: Path) -> None:
    """A stored recalibration of a model changes its predictions on this machine, is part of a plan's hashes, and is told."""
    text = {"name": "here", "model": {"formula": "mlp", "widths": WIDTHS}, "job": {"global_batch_size": 256}}
    scenario = parse_scenario(text | {"cluster": {"kind": "this-machine", "ranks": 2}}, "test")
    before = prepare(scenario)
    assert before.recalibration is None and "recalibration" not in before.hashes
    save_recalibration(replace(TRUTH, date="2026-11-28"), recalibration_path(before.graph))
    after = prepare(scenario)
    assert after.hashes["recalibration"] != "none" and any("2026-11-28" in note for note in after.notes)
    link, corrected_link = (setting.cluster.idle_link(0, 1) for setting in (before, after))
    assert corrected_link.latency_s == pytest.approx(3 * link.latency_s)
    other = parse_scenario(
        text | {"model": {"formula": "mlp", "widths": [784, 10]}, "cluster": {"kind": "this-machine", "ranks": 2}}, "test"
    )
    assert prepare(other).recalibration is None


def test_getting_the_batch_is_learnt(stored_calibration: Path) -> None:
    """What a run took before its first pass to get the batch is what the next prediction counts for it."""
    world, real = worlds(stored_calibration)
    real = replace(real, profile=replace(real.profile, input_s=3e-3))
    plan = plan_of(world.graph, [4], microbatches=4)
    taught = taught_by(world, real, plan)
    assert taught.input_s == pytest.approx(3e-3)
    after = replace(
        world, cluster=taught.correct_cluster(world.cluster), profile=Profile(input_s=taught.input_s, scales=taught.task_scales)
    )
    assert error(after, real, plan) < 0.02 < error(world, real, plan)
