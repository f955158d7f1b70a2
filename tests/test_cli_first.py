"""The first ten minutes: init, examples, completion, -v, exit codes in the help."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_sim.cli.app import app
from chinchilla_sim.graph.profile import Profile, TaskTime
from tests.test_cli import ROOT, chinchilla, printed


def test_init_writes_what_plan_accepts(tmp_path: Path) -> None:
    """Without a terminal the defaults are taken; `plan` reads the file as it is; nothing is replaced without --force."""
    made = chinchilla("init", cwd=tmp_path)
    assert made.returncode == 0 and "next: chinchilla plan scenario.toml" in made.stdout, made.stderr
    assert chinchilla("plan", "scenario.toml", cwd=tmp_path).returncode == 0
    (tmp_path / "scenario.toml").write_text("mine")
    refused = chinchilla("init", cwd=tmp_path)
    assert refused.returncode == 2 and "scenario.toml: is there already" in refused.stderr and "--force" in refused.stderr
    assert (tmp_path / "scenario.toml").read_text() == "mine"
    arguments = ["--model", "llama-2-7b", "--device", "H100", "--count", "16", "--network", "400 Gbit/s", "--objective", "cost"]
    told = printed(chinchilla("init", *arguments, "--force", "--json", cwd=tmp_path))
    (node,) = told["scenario"]["cluster"]["nodes"]
    assert (node["count"], node["devices"], node["device"]) == (2, 8, "h100-sxm-80gb") and told["notes"]
    wrong = chinchilla("init", "other.toml", "--model", "gpt2-xxl", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'gpt2-xl'" in wrong.stderr and not (tmp_path / "other.toml").exists()


def test_init_asks_on_a_terminal(tmp_path: Path) -> None:
    """What options leave open is asked; an answer that means nothing is asked for again; an empty one takes the default."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "chinchilla_sim.cli", "init", "new.toml", "--kind", "training"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        os.close(theirs)
        os.write(ours, b"gpt2-xll\ngpt2-xl\nH100\n16\n\n256\ncost\n")
        out, _ = process.communicate(timeout=60)
        told = os.read(ours, 100_000).decode()
    os.close(ours)
    assert process.returncode == 0, told
    assert "did you mean 'gpt2-xl'" in told and "What joins the nodes?" in told and "training or inference" not in told
    text = (tmp_path / "new.toml").read_text()
    for line in ('options = { preset = "gpt2-xl" }', 'bandwidth = "100 Gbit/s"', "global_batch_size = 256", 'objective = "cost"'):
        assert f"\n{line}\n" in text
    assert "new.toml is written" in out


def test_examples_are_listed_and_copied(tmp_path: Path) -> None:
    """The list has a line each; a copy can be planned; a folder without a name is a mistake."""
    listed = chinchilla("examples", cwd=tmp_path).stdout
    assert "edge_5g" in listed and "Edge devices over 5G: one image through ResNet-18" in listed
    assert printed(chinchilla("examples", "edge_5g", "-o", "mine", "--json", cwd=tmp_path)) == {"copied": ["mine/edge_5g.toml"]}
    assert chinchilla("plan", "mine/edge_5g.toml", cwd=tmp_path).returncode == 0
    assert chinchilla("examples", "-o", "mine", cwd=tmp_path).returncode == 2


def test_verbose_tells_more_on_stderr_alone(tmp_path: Path) -> None:
    """-v before or behind the command names files, calibration and counts; stdout is the same without."""
    scenario = str(ROOT / "scenarios" / "mnist_mlp.toml")
    quiet = chinchilla("plan", scenario, cwd=tmp_path)
    for arguments in (["-v", "plan", scenario], ["plan", scenario, "--verbose"]):
        told = chinchilla(*arguments, cwd=tmp_path)
        assert told.stdout == quiet.stdout
        for part in (f"scenario: {scenario}", "calibration: ", "graph: ", "configurations: ", "plans priced: "):
            assert part in told.stderr and part not in quiet.stderr


def test_help_says_the_exit_codes(tmp_path: Path) -> None:
    """They stand beneath the help of all commands and of each."""
    for arguments in (["--help"], ["plan", "--help"], ["bench", "--help"]):
        words = " ".join(chinchilla(*arguments, cwd=tmp_path).stdout.split())
        assert "Exit codes: 0 done; 1 no feasible plan" in words and "130 interrupted" in words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_where_asked(shell: str, tmp_path: Path) -> None:
    """The script of each shell completes our commands; with HOME elsewhere nothing of the user's is touched."""
    command = [sys.executable, "-m", "chinchilla_sim.cli", "--install-completion", "--shell", shell, "--output", "script"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60)
    assert told.returncode == 0, told.stderr
    assert "chinchilla" in (tmp_path / "script").read_text()


def test_every_command_but_schema_takes_json() -> None:
    """What the README promises."""
    lacking = []

    def look(name: str, group: object) -> None:
        for command in group:  # type: ignore[attr-defined]
            if command.startswith("-"):
                continue
            inner = group[command]  # type: ignore[index]
            if inner.default_command is None:
                look(f"{name} {command}", inner)
            elif "as_json" not in inner.default_command.__annotations__:
                lacking.append(f"{name} {command}".strip())

    look("", app)
    assert lacking == ["schema"]


def test_a_calibration_says_how_busy_others_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a program that computes, `calibrate` warns before and after, and --json tells the cores; what is measured is made up here."""
    profile = Profile(times=(TaskTime("linear", 64, 1e-3, 2e-3),))

    def measure(scenario: object) -> tuple[Profile, Path]:
        time.sleep(1.0)
        return profile, tmp_path / "profile.json"

    monkeypatch.setattr("chinchilla_sim.workflow.profile_scenario", measure)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            app(["calibrate", str(ROOT / "scenarios" / "mnist_mlp.toml"), "--json"], exit_on_error=False, result_action="return_value")
        finally:
            neighbour.kill()
    printed_text = capsys.readouterr()
    found = json.loads(printed_text.out)
    assert found["other_cores_before"] > 0.2 and found["other_cores"] > 0.2
    for words in ("are busy with other programs", "were busy with other programs while this was measured"):
        assert words in printed_text.err
