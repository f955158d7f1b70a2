"""A plan file never executes code: every command that reads one, against a plan whose function would leave a file behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import MNIST, ROOT, chinchilla

JOB = """
from pathlib import Path
Path({mark!r}).write_text("imported")
"""
SCENARIO = """
[model]
factory = "{factory}"

[job]
global_batch_size = 8

[cluster]
kind = "this-machine"
ranks = 1
"""
COMMANDS = [
    ("simulate", "plan.json"), ("explain", "plan.json"), ("run", "plan.json"), ("validate", "run", "plan.json"),
    ("export", "plan.json", "--to", "torchrun"), ("export", "plan.json", "--to", "script"),
]  # fmt: skip


def malicious_plan(folder: Path, factory: str) -> Path:
    """A plan from elsewhere that names a function; importing it writes the file that is returned."""
    mark = folder / "mark"
    (folder / "evil.py").write_text(JOB.format(mark=str(mark)))
    plan = {
        "stages": [["linear", "loss"]], "placement": [[0]], "slots": [0], "global_batch_size": 8, "microbatch_count": 1,
        "schedule": "1f1b", "gradient_codecs": ["none"], "activation_codecs": [],
    }  # fmt: skip
    scenario = {
        "name": "evil", "model": {"factory": factory}, "job": {"global_batch_size": 8}, "cluster": {"kind": "this-machine", "ranks": 1},
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps({"format": "chinchilla-plan", "version": 1, "plan": plan, "scenario": scenario}))
    return mark


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_function_of_a_foreign_plan_is_not_imported(command: tuple[str, ...], tmp_path: Path) -> None:
    """The command ends with 2 and names the cure; the function's file was not even imported."""
    mark = malicious_plan(tmp_path, "evil.py:build")
    result = chinchilla(*command, cwd=tmp_path)
    assert result.returncode == 2 and "--allow-factory" in result.stderr and not mark.exists()


@pytest.mark.parametrize("factory", ["evil:build", "{folder}/evil.py:build", "./sub/../evil.py:build"])
def test_however_the_function_is_named(factory: str, tmp_path: Path) -> None:
    """A module, an absolute path and a crooked one are refused alike."""
    mark = malicious_plan(tmp_path, factory.format(folder=tmp_path))
    (tmp_path / "sub").mkdir()
    result = chinchilla("simulate", "plan.json", cwd=tmp_path)
    assert result.returncode == 2 and "not made here" in result.stderr and not mark.exists()


def test_rank_refuses_too(tmp_path: Path) -> None:
    """A rank that is started by hand on a foreign plan imports nothing either."""
    mark = malicious_plan(tmp_path, f"{tmp_path}/evil.py:build")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "chinchilla_sim.runtime.worker"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode and not mark.exists() and "--allow-factory" in (tmp_path / "rank0.error").read_text()


def test_allowed_or_named_by_a_scenario_it_is_imported(tmp_path: Path) -> None:
    """With --allow-factory, and from a scenario that the user gives, the same file is imported (and found to have no such function)."""
    mark = malicious_plan(tmp_path, "evil.py:build")
    assert "has no function" in chinchilla("simulate", "plan.json", "--allow-factory", cwd=tmp_path).stderr
    assert mark.exists()
    mark.unlink()
    (tmp_path / "own.toml").write_text(SCENARIO.format(factory="evil.py:build"))
    assert "has no function" in chinchilla("plan", "own.toml", cwd=tmp_path).stderr
    assert mark.exists()


def test_engine_that_cannot_play_a_plan_is_bad_input(tmp_path: Path) -> None:
    """`run --engine torch` of a plan with codecs ends with 2 before anything starts, and says what torch lacks."""
    settings = ["--set", 'search.gradient_codecs=["int8"]', "--set", 'search.activation_codecs=["int8"]']
    assert chinchilla("plan", MNIST, *settings, "-o", "plan.json", cwd=tmp_path).returncode == 0
    result = chinchilla("run", "plan.json", "--engine", "torch", "-o", "run", cwd=tmp_path)
    assert result.returncode == 2 and "does not play codecs" in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
