"""`chinchilla import` and `export --to megatron|torchtitan|deepspeed` as a user meets them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "configs"


def chinchilla(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command, which must not import torch, as a user does."""
    code = (
        "import sys; sys.argv[0] = 'chinchilla'\nfrom chinchilla_sim.cli import main\ntry:\n    main()\nfinally:\n"
        "    assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)})


def printed(result: subprocess.CompletedProcess[str]) -> Any:
    """The JSON document that a command printed."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_pair_of_files_is_planned_at_once(tmp_path: Path) -> None:
    """config.json and DeepSpeed JSON -> scenario -> plan -> DeepSpeed JSON; without torch; notes on standard error only."""
    made = chinchilla("import", DATA / "llama.json", DATA / "deepspeed.json", "--device", "a100-sxm-80gb", "-o", "s.toml", cwd=tmp_path)
    assert made.returncode == 0 and made.stdout == "s.toml\n"
    assert "8,030,261,248 parameters" in made.stderr and "not used of" in made.stderr
    planned = printed(chinchilla("plan", "s.toml", "-o", "plan.json", "--json", cwd=tmp_path))
    assert planned["plan"]["plan"]["zero_stage"] == 3
    told = printed(chinchilla("export", "plan.json", "--to", "deepspeed", "--json", cwd=tmp_path))
    assert told["file"] == "s-deepspeed.json" and json.loads((tmp_path / "s-deepspeed.json").read_text())["train_batch_size"] == 64
    refused = chinchilla("export", "plan.json", "--to", "megatron", cwd=tmp_path)
    assert refused.returncode == 2 and "plan.zero_stage: is 3; Megatron-LM cannot say that" in refused.stderr
    titan = chinchilla("export", "plan.json", "--to", "torchtitan", "-o", "job.toml", cwd=tmp_path)
    assert titan.returncode == 0 and 'flavor = "8B"' in (tmp_path / "job.toml").read_text()


def test_megatron_arguments_there_and_back(tmp_path: Path) -> None:
    """Arguments -> scenario and own plan -> simulated -> the same arguments; a planner's plan is made equal, at a price that is said."""
    made = chinchilla("import", DATA / "llama-megatron.txt", "-o", "s.toml", "--plan", "own.json", "--json", cwd=tmp_path)
    told = printed(made)
    assert told["model"] == "llama" and told["plan"] == "own.json" and told["ignored"][0]["keys"][0] == "--attention-dropout"
    assert {"place": "search.zero_stages", "value": [1], "by": "llama-megatron.txt: --use-distributed-optimizer"} in told["used"]
    own = printed(chinchilla("simulate", "own.json", "--json", cwd=tmp_path))["plans"][0]
    planned = printed(chinchilla("plan", "s.toml", "-o", "plan.json", "--json", cwd=tmp_path))
    assert planned["simulated_step_s"] <= own["simulated_step_s"] * 1.001
    assert chinchilla("export", "own.json", "--to", "megatron", "-o", "own.sh", cwd=tmp_path).returncode == 0
    assert chinchilla("import", "own.sh", "-o", "again.toml", "--plan", "again.json", cwd=tmp_path).returncode == 0
    first, second = (json.loads((tmp_path / name).read_text())["plan"] for name in ("own.json", "again.json"))
    assert first == second
    equal = chinchilla("export", "plan.json", "--to", "megatron", "--equal-layers", "-o", "equal.sh", cwd=tmp_path)
    assert equal.returncode == 0 and "equal layers: a simulated step takes" in equal.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["import"], "no file named"),
        (["import", DATA / "llama.json"], "job.global_batch_size"),
        (["import", DATA / "llama.json", "--plan", "p.json"], "--plan: needs the scenario in a file"),
        (["import", DATA / "llama.json", "--count", "0"], "--count: must be at least 1"),
        (["import", DATA / "llama.json", "--set", "job.global_batch_size=64", "--plan", "p.json", "-o", "s.toml"], "leaves a choice"),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str | Path], part: str, tmp_path: Path) -> None:
    """Each with its cure, and no file is left."""
    result = chinchilla(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and part in result.stderr and not list(tmp_path.glob("*.toml"))


def test_without_output_the_scenario_is_printed(tmp_path: Path) -> None:
    """TOML on standard output, and nothing else there."""
    import tomllib

    result = chinchilla("import", DATA / "llama.json", "--set", "job.global_batch_size=64", cwd=tmp_path)
    assert result.returncode == 0 and tomllib.loads(result.stdout)["model"]["formula"] == "llama"
