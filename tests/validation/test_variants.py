"""Variants, simulated and measured: ratios are paired, what computes alike counts once, and a command shows it."""

import json
from pathlib import Path

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.profile import Profile, TaskTime
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.setting import Setting, build_graph, prepare, profile_path
from chinchilla_sim.validation.variants import MeasuredVariant, SimulatedVariant, check_variants
from chinchilla_sim.variants import compare_variants

DIGITS = Path(__file__).parents[2] / "scenarios" / "compressed_digits.toml"


def side(name: str, seconds: float) -> SimulatedVariant:
    """A variant of some size."""
    return SimulatedVariant(name, 1.0, 1.0, 1.0, seconds)


def test_ratios_are_those_of_the_same_round() -> None:
    """By hand: a machine that is twice as slow in one round of three changes no ratio; a row of equal seconds counts once."""
    sides = [side("as it is", 4.0), side("zeros", 4.0), side("half", 2.0), side("tenth", 1.0)]
    measured = [MeasuredVariant(seconds, 1.0) for seconds in ((4.0, 8.0, 4.0), (4.0, 8.0, 4.0), (2.5, 5.0, 2.5), (0.5, 1.0, 0.5))]
    check = check_variants(8, sides, measured)
    assert [row.measured_ratio for row in check.rows] == [1.0, 1.0, 1.6, 8.0]
    assert [row.relative_error for row in check.rows] == pytest.approx([0.0, 0.0, -0.2, 1.0])
    assert check.median_error == pytest.approx(0.2) and check.pairs_in_order == (3, 3)
    assert check.median_ratio_error == pytest.approx((0.25 + 0.5) / 2)


def test_a_scenario_without_variants_is_refused() -> None:
    """There is nothing to compare the model with."""
    with pytest.raises(ScenarioError, match="names no variant to compare the model with"):
        compare_variants(load_scenario(DIGITS, ["search.variants=[]"]), train=False)


def test_variants_are_trained_measured_and_evaluated() -> None:
    """One launch: bytes in memory are those that are planned with, and behind one epoch all variants know digits."""
    variants = '[{ prune = 0.5, fine_tune_epochs = 1 }, { quantize = "int8-static" }, { sparsity = 0.5 }, { quantize = "int4" }]'
    check = compare_variants(load_scenario(DIGITS, ["job.epochs=1", f"search.variants={variants}"]), train=True)
    assert [row.parameter_bytes for row in check.rows] == [row.measured_bytes for row in check.rows]
    assert all(row.metrics["validation_accuracy"] > 0.8 and row.measured_s > 0 for row in check.rows)
    pruned, sparse = check.rows[1], check.rows[3]
    assert pruned.forward_flop == check.rows[0].forward_flop / 2 and sparse.file_bytes < sparse.parameter_bytes
    assert json.loads(json.dumps(check.to_dict()))["variants"][1]["name"] == "pruned 50 %, 1 epochs more"


def planned(compression: str) -> Setting:
    """The network with one change."""
    return prepare(load_scenario(DIGITS, ["search.variants=[]", f"model.compression={compression}"]))


def test_a_variant_takes_its_share_of_what_was_measured() -> None:
    """Without a profile of its own: measured seconds of the model, times what formulas say of variant and model; both factors have one."""
    whole = load_scenario(DIGITS, ["search.variants=[]"])
    graph, _ = build_graph(whole)
    times = tuple(TaskTime(task.name, 64, 1e-3, 0.0) for task in graph.compute_tasks)
    path = profile_path(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(Profile(times).to_dict()))
    for compression in ("{ prune = 0.5 }", "{ low_rank = 0.5 }"):
        setting = planned(compression)
        assert setting.profile.tasks and setting.profile.held_bytes == graph.total_parameter_bytes
        assert {task.name for task in setting.graph.compute_tasks} <= setting.profile.measured_tasks
    own = planned("{ prune = 0.5 }")
    measured = Profile((TaskTime("linear", 64, 5e-3, 0.0),))
    profile_path(own.graph).write_text(json.dumps(measured.to_dict()))
    assert planned("{ prune = 0.5 }").profile.times == measured.times
