"""`validate run` on two real ranks: why the step was off, both steps drawn, memory, and what the run teaches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.runtime.benchmark.recording_cost import measure_recorder

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "language_small.toml"
PIPELINE = ("search.pipeline_parallel_degrees=[2]", "search.microbatch_counts=[4]", "search.minimum_ranks=2", "search.schedules=['1f1b']")


def chinchilla(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "chinchilla_sim.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan of two stages, run twice; the first run teaches the second."""
    folder = tmp_path_factory.mktemp("validate")
    patch = pytest.MonkeyPatch()
    patch.setenv("CHINCHILLA_CALIBRATION", str(ROOT / "tests" / "data" / "calibration.json"))
    patch.setenv("CHINCHILLA_CACHE", str(folder / "cache"))
    try:
        chinchilla("plan", str(SCENARIO), *(word for value in PIPELINE for word in ("--set", value)), "-o", "plan.json", cwd=folder)
        first = chinchilla("validate", "run", "plan.json", "--steps", "50", "-o", "out", "--recalibrate", "--json", cwd=folder)
        second = chinchilla("validate", "run", "plan.json", "--steps", "20", "--json", cwd=folder)
    finally:
        patch.undo()
    return {
        "folder": folder,
        "first": json.loads(first.stdout),
        "log": first.stderr,
        "second": json.loads(second.stdout),
    }


def test_shares_and_residual_are_the_error(runs: dict[str, Any]) -> None:
    """Causes and residual add up to the error; the residual is at most a tenth of it (or 2 % of a step, where there is hardly any)."""
    told = runs["first"]
    causes = told["error_by_cause_s"]
    assert list(causes) == ["computation", "transfer", "waiting", "fixed cost", "codec", "residual"]
    assert sum(causes.values()) == pytest.approx(told["simulated_step_s"] - told["measured_step_s"])
    assert told["unmatched_spans"] == 0
    assert abs(causes["residual"]) <= max(0.1 * abs(told["error_s"]), 0.02 * told["measured_step_s"])


def test_memory_of_each_rank_stands_beside_the_simulated(runs: dict[str, Any]) -> None:
    """Tensors at the peak include what is held between steps and are within a factor 1.5 of the simulation; the process holds more."""
    rows = runs["first"]["memory"]
    assert [row["rank"] for row in rows] == [0, 1]
    for row in rows:
        assert 0 < row["held_bytes"] < row["tensor_bytes"] < row["process_bytes"]
        assert 1 / 1.5 < row["simulated_bytes"] / row["tensor_bytes"] < 1.5


def test_page_shows_both_steps(runs: dict[str, Any]) -> None:
    """One self-contained page with both Gantt charts on one scale and a text for those who cannot see them."""
    page = (runs["folder"] / "out" / "comparison.html").read_text()
    assert page.count("<svg") == 1 and "simulated step" in page and "measured step nearest the median" in page
    assert 'role="img"' in page and "<desc>" in page and "Error of the step by cause" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    stored = json.loads((runs["folder"] / "out" / "comparison.json").read_text())
    assert stored["measured_step_s"] == runs["first"]["measured_step_s"] and stored["measurement"]["waits"]


def test_a_run_brings_the_next_prediction_nearer(runs: dict[str, Any]) -> None:
    """The prediction that the first run taught is better than the one before, against the nearer of both runs (machines have moods)."""
    before, after = runs["first"]["simulated_step_s"], runs["second"]["simulated_step_s"]

    def error(simulated_s: float) -> float:
        return min(abs(simulated_s / runs[one]["measured_step_s"] - 1) for one in ("first", "second"))

    assert "stored what the run taught" in runs["log"]
    assert error(after) < max(0.5 * error(before), 0.05)


def test_recording_costs_less_than_one_percent() -> None:
    """The recorder's calls, with a message sent and received around every action, against a step of small actions."""
    figures = {figure.name: figure for figure in measure_recorder(pairs=10)}
    assert figures["recording a step"].value > 0
    assert figures["recording a step, share of it"].reached
