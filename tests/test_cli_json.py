"""What every command promises: exit code 2 for bad input, no traceback, and with --json one document on stdout whatever happens."""

import json
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.cli import app, main

MISSING = {
    **dict.fromkeys(("plan", "report", "run", "calibrate", "codecs", "testbed up", "validate variants"), ("none.toml",)),
    **dict.fromkeys(("bench compression", "bench testbed", "bench engines"), ("none.toml",)),
    **dict.fromkeys(("explain", "simulate", "validate run", "bench kills", "import"), ("none.json",)),
    **dict.fromkeys(("validate published", "validate kernels", "validate collectives", "validate schedules"), ("none.csv",)),
    **dict.fromkeys(("validate codecs", "bench ledger", "schedule"), ("none.csv",)),
    **dict.fromkeys(("validate network", "validate planner"), ("none",)),
    "budget": ("none.toml", "--days", "1"),
    "export": ("none.json", "--to", "torchrun"),
}
"""A file that is not there, for every command that reads one."""

UNKNOWN = {
    **dict.fromkeys(("examples", "catalogue"), ("nonesuch",)),
    **dict.fromkeys(("doctor", "testbed down", "bench simulator", "bench recorder"), ("--nonesuch",)),
    "init": ("--model", "nonesuch"),
    "bench fuzz": ("--parser", "nonesuch"),
    "bench planner": ("--most-devices", "many"),
}
"""A name, value or option that is not known, for the others."""


def commands(group: Any = app, prefix: str = "") -> list[str]:
    """Every command of the application."""
    found = []
    for name in group:
        if not name.startswith("-"):
            full = f"{prefix} {name}".strip()
            found += commands(group[name], full) if group[name].default_command is None else [full]
    return found


def exit_code(*words: str) -> int:
    """With what the command line ends."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


def test_every_command_is_in_the_tables() -> None:
    """A new command must say here what bad input is for it; `schema` reads nothing and prints JSON anyway."""
    assert sorted(commands()) == sorted([*MISSING, *UNKNOWN, "schema"])


@pytest.mark.parametrize("command", [*MISSING, *UNKNOWN])
def test_bad_input_is_exit_code_2_and_one_document(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what is wrong; with --json stdout tells the same as data, without it stdout is empty; nothing is written."""
    monkeypatch.chdir(tmp_path)
    words = [*command.split(), *(MISSING | UNKNOWN)[command]]
    wrong = next(word for word in words if word.strip("-").startswith("none") or word == "many")
    assert exit_code(*words) == 2
    plain = capsys.readouterr()
    assert plain.out == "" and wrong in plain.err and "Traceback" not in plain.err
    assert exit_code(*words, "--json") == 2
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert told.err == plain.err
    assert found["status"] == "bad input" and found["mistakes"] and wrong in told.out
    assert all(set(mistake) == {"where", "what", "cure"} and mistake["what"] for mistake in found["mistakes"])
    if command in MISSING:
        assert "there is no such" in plain.err
    assert not list(tmp_path.iterdir())


SCENARIO = """
model = { formula = "mlp", widths = [64, 256, 256, 10] }
job = { global_batch_size = 32 }
cluster.nodes = [{ name = "n", count = 2, peak = "10 Gflop/s", memory = "1 MB" }]
cluster.network = { bandwidth = "100 Mbit/s", latency = "1 ms" }
search = { executable = false, minimum_ranks = 2 }
"""


@pytest.mark.parametrize("command", ["plan", "explain", "report", "run", "budget"])
def test_no_feasible_plan_is_one_document(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever plans a scenario says so with the same keys, and exits 1."""
    monkeypatch.chdir(tmp_path)
    text = SCENARIO
    if command == "run":
        text = text.replace('{ formula = "mlp", widths = [64, 256, 256, 10] }', '{ builtin = "mnist_mlp" }')
        text = text.replace('name = "n", count = 2, peak = "10 Gflop/s"', 'name = "n", count = 2, device = "this-machine", cpu_share = 0.4')
    (tmp_path / "s.toml").write_text(text)
    more = ["--days", "1"] if command == "budget" else []
    assert exit_code(command, "s.toml", *more, "--json") == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["status"], found["plan"]) == ("infeasible", None)
    assert "memory" in found["constraint"] and found["shortfall"] in told.err and found["cure"] in told.err
