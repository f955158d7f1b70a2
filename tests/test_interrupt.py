"""Ctrl-C: a real SIGINT leaves what there was so far, with exit code 130."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_sim.cli.app import app
from chinchilla_sim.console import Interrupt
from chinchilla_sim.planner.plan_file import load_plan
from chinchilla_sim.validation.testbed_cases import LinkCase, read_cases
from tests.test_cli import MNIST, ROOT

SCENARIOS = ROOT / "scenarios"


def interrupted(arguments: list[str], when: Callable[[str], bool], cwd: Path) -> tuple[str, str]:
    """stdout and stderr of a command that gets SIGINT once a line of stderr says so, and ends by it."""
    command = [sys.executable, "-m", "chinchilla_sim.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        seen = []
        for line in process.stderr:
            seen.append(line)
            if when(line):
                break
        process.send_signal(signal.SIGINT)
        table, errors = process.communicate(timeout=120)
    assert process.returncode == 130, "".join(seen) + errors
    assert "Traceback" not in errors
    return table, "".join(seen) + errors


def test_an_interrupted_search_gives_its_best_so_far(tmp_path: Path) -> None:
    """SIGINT at the beginning of a long search: a plan is printed, says that it was cut off, and is written to its file."""
    arguments = ["plan", str(SCENARIOS / "racks_of_gpus.toml"), "-v", "--json", "-o", "plan.json"]
    table, errors = interrupted(arguments, lambda line: line.startswith("planned in"), tmp_path)
    told = json.loads(table)
    assert told["truncated"] and told["simulated_step_s"] > 0 and "ending with what there is so far" in errors
    assert load_plan(tmp_path / "plan.json").simulated_step_s == told["simulated_step_s"]


def test_an_interrupted_run_says_what_it_left(tmp_path: Path) -> None:
    """SIGINT behind the first epoch: no rank is left, weights and metrics are there, and how to go on from the checkpoint is told."""
    arguments = ["run", MNIST, "--set", "job.epochs=500", "--set", "job.checkpoint_interval_steps=50", "-o", "out"]
    _, errors = interrupted(arguments, lambda line: line.startswith("epoch "), tmp_path)
    assert "weights.pt and metrics.jsonl of" in errors and "`chinchilla run --resume out` goes on from step" in errors
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["epoch"] == 1 and (tmp_path / "out" / "weights.pt").exists()
    assert _processes_about(str(tmp_path)) == []


def test_an_interrupted_sweep_gives_the_rows_so_far(tmp_path: Path) -> None:
    """SIGINT while the second batch is mapped: the first one's row is printed and written."""
    graphs = 0

    def second_batch(line: str) -> bool:
        nonlocal graphs
        graphs += line.startswith("graph:")
        return graphs == 2

    batches = ["--batches", "8,16,32,64,128", "--bandwidths", "1 Gbit/s,2 Gbit/s"]
    arguments = ["codecs", str(SCENARIOS / "uneven_layers.toml"), "-v", *batches, "-o", "map", "--json"]
    table, _ = interrupted(arguments, second_batch, tmp_path)
    told = json.loads(table)
    done = [cell["global_batch_size"] for cell in told["cells"]]
    assert 2 <= len(done) < 10 and done[:2] == [8, 8]
    assert json.loads((tmp_path / "map" / "codecs.json").read_text()) == told


def test_rows_of_an_interrupted_bench_are_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of three scenarios is interrupted: the first one's row is printed and kept, and exit is 130."""
    ran = []

    def run_case(path: Path, steps: int) -> LinkCase:
        if ran:
            raise KeyboardInterrupt
        ran.append(path)
        return LinkCase(path.stem, "2 stages", 2, 1e6, 1e6, 0.1, 0.1, 0.0, steps, 1)

    monkeypatch.setattr("chinchilla_sim.trials.measure_once", lambda paths, told: None)
    monkeypatch.setattr("chinchilla_sim.trials.run_case", run_case)
    files = [str(path) for path in sorted((SCENARIOS / "testbed").glob("*.toml"))[:3]]
    with pytest.raises(SystemExit) as end:
        app(["bench", "testbed", *files, "-o", str(tmp_path / "rows.csv"), "--json"], exit_on_error=False)
    assert end.value.code == 130
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["cases"]) == 1 and [case.name for case in read_cases(tmp_path / "rows.csv")] == [Path(files[0]).stem]
    assert "about" in printed.err and "goes on behind the rows" in printed.err


def test_the_second_interrupt_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """The first is a question that the block may answer, the second is a KeyboardInterrupt; behind the block all is as before."""
    before, interrupt = signal.getsignal(signal.SIGINT), Interrupt()
    interrupt.leave()  # nothing was asked: nothing ends
    with pytest.raises(KeyboardInterrupt), interrupt.heeded():
        assert not interrupt()
        signal.raise_signal(signal.SIGINT)
        assert interrupt()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before and "Ctrl-C again" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        interrupt.leave()


def _processes_about(text: str) -> list[int]:
    """Processes whose command line names something, when those that end have had some time for it."""
    until_s = time.monotonic() + 20
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found += [int(path.parent.name)] if text.encode() in path.read_bytes() else []
            except OSError:
                continue
        if not found or time.monotonic() > until_s:
            return found
        time.sleep(0.2)
