"""`calibrate --accuracy` and what a plan makes of it, as a user meets them."""

import json
from pathlib import Path

import pytest

from chinchilla_sim.planner.accuracy import load_table
from tests.test_cli import ROOT, chinchilla, printed

FLOOR = str(ROOT / "scenarios" / "accuracy_floor.toml")
STORED = ROOT / "scenarios" / "accuracy" / "digits.json"


def test_what_is_measured_decides_the_next_plan(tmp_path: Path) -> None:
    """Short runs are stored under --output and read by search.accuracy_table; the plan tells date, seeds, steps, and the product."""
    lists = ["--set", 'search.gradient_codecs=["none", "int8"]', "--set", 'search.activation_codecs=["none"]']
    options = ["--seeds", "3", "--steps", "20", "--output", "table.json", "--json", *lists]
    measured = printed(chinchilla("calibrate", FLOOR, "--accuracy", *options, cwd=tmp_path))
    assert [row["change"] for row in measured["changes"]] == ["as it is", "gradients: int8"]
    assert measured["changes"][1]["seeds"] == 3 and measured["table"] == json.loads((tmp_path / "table.json").read_text())
    own = ["--set", f"search.accuracy_table={tmp_path / 'table.json'}", "--set", "job.target_accuracy=0.2", *lists]
    planned = printed(chinchilla("plan", FLOOR, *own, "--set", "search.max_accuracy_drop=0.9", "-o", "plan.json", "--json", cwd=tmp_path))
    best = planned["candidates"][0]
    assert planned["accuracy"]["measured"]["seeds"] == 3 and planned["minimized"] == "time_to_accuracy"
    assert best["objective"] == pytest.approx(best["step_s"] * best["accuracy"]["steps"])
    explained = chinchilla("explain", "plan.json", cwd=tmp_path)
    assert explained.returncode == 0 and "3 seeds of 20 steps with 2 replicas" in explained.stdout
    (tmp_path / "table.json").unlink()
    assert chinchilla("simulate", "plan.json", cwd=tmp_path).returncode == 0


def test_a_floor_that_nothing_reaches_is_an_answer(tmp_path: Path) -> None:
    """Exit code 1, with a floor that would do."""
    lists = ["--set", 'search.gradient_codecs=["one-bit"]']
    refused = chinchilla("plan", FLOOR, *lists, "--set", "search.max_accuracy_drop=0.001", cwd=tmp_path)
    assert refused.returncode == 1 and "search.max_accuracy_drop: with gradients: one-bit the accuracy may drop by" in refused.stderr
    enough = refused.stderr.split("max_accuracy_drop = ")[1].split(",")[0]
    assert chinchilla("plan", FLOOR, *lists, "--set", f"search.max_accuracy_drop={enough}", cwd=tmp_path).returncode == 0


def test_mistakes_come_before_any_run(tmp_path: Path) -> None:
    """Options without --accuracy, --accuracy without a job, and a job without code are refused."""
    assert "--seeds: is for --accuracy" in chinchilla("calibrate", "--seeds", "3", cwd=tmp_path).stderr
    assert "needs a job to run" in chinchilla("calibrate", "--accuracy", cwd=tmp_path).stderr
    formula = chinchilla("calibrate", "--accuracy", str(ROOT / "scenarios" / "seed_four_nodes.toml"), cwd=tmp_path)
    assert formula.returncode == 2 and "has no code to run" in formula.stderr


def test_the_shipped_table_is_of_the_shipped_scenario() -> None:
    """At least three seeds of every codec, none left out."""
    table = load_table(STORED)
    assert len(table.changes) == 9 and table.refused == {}
    assert all(len(runs) == table.seed_count >= 3 for runs in table.by_change.values())
