"""Several scenarios planned at once: the plans of each alone, in the order given, whatever becomes of the others."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.sweep import Outcome, Question, answer_question, plan_here, plan_on_dask, question_of

ROOT = Path(__file__).parents[1]
SCENARIOS = [ROOT / "scenarios" / f"{name}.toml" for name in ("edge_5g", "mnist_mlp", "compressed_language")]
COMMAND = [sys.executable, "-m", "chinchilla_sim.cli", "plan"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def questions_of(*files: Path) -> list[Question]:
    """Questions of good files."""
    asked = [question_of(number, file, (), None) for number, file in enumerate(files)]
    return [one for one in asked if isinstance(one, Question)]


def answers(outcomes: Any) -> dict[int, Any]:
    """What was found, by number, without the seconds that it took."""
    return {outcome.number: (outcome.row.name, outcome.row.result, outcome.plan) for outcome in outcomes}


def plan(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`chinchilla plan` as a user runs it."""
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def variant(folder: Path, name: str, *changes: tuple[str, str]) -> Path:
    """The scenario of four nodes under another name, with some text changed."""
    text = (ROOT / "scenarios" / "seed_four_nodes.toml").read_text()
    for before, after in changes:
        text = re.sub(before, after, text)
    (folder / f"{name}.toml").write_text(text)
    return folder / f"{name}.toml"


def test_processes_find_what_each_scenario_alone_finds() -> None:
    """Two processes, three scenarios: plans and all figures are those of planning one after the other."""
    asked = questions_of(*SCENARIOS)
    assert answers(plan_here(asked, 2)) == answers(map(answer_question, asked))


def test_a_dask_cluster_finds_the_same() -> None:
    """Workers of a cluster on this machine give the plans of --jobs; a scenario of this machine is planned by the one who asks."""
    distributed = pytest.importorskip("distributed")
    asked = questions_of(*SCENARIOS)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1", silence_logs="ERROR"
    ) as cluster:
        assert answers(plan_on_dask(asked, cluster.scheduler_address)) == answers(plan_here(asked, 2))


def test_an_address_where_no_scheduler_answers_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the option, the address and how to start a scheduler."""
    pytest.importorskip("distributed")
    monkeypatch.setattr("chinchilla_sim.sweep.ANSWER_WITHIN", "0.5s")
    with pytest.raises(ScenarioError, match=r"--scheduler: no Dask scheduler answers at tcp://127\.0\.0\.1:9; start one with `dask sched"):
        list(plan_on_dask(questions_of(SCENARIOS[0]), "tcp://127.0.0.1:9"))


def test_one_bad_file_and_one_infeasible_job_stop_no_other(tmp_path: Path) -> None:
    """Rows and plans in the order of the command line; exit 2 for the bad file, 1 once only the infeasible one is left, 0 without it."""
    small = variant(tmp_path, "small", ("memory = .*", 'memory = "100 MB"'))
    wrong = variant(tmp_path, "wrong", ("bandwidth", "bandwith"))
    told = plan(small, SCENARIOS[0], wrong, SCENARIOS[1], "-o", "plans", "--jobs", "2", "--json", cwd=tmp_path)
    rows = json.loads(told.stdout)["scenarios"]
    assert told.returncode == 2
    assert [(row["scenario"], row["status"], row["exit_code"]) for row in rows] == [
        ("small", "no feasible plan", 1),
        ("edge_5g", "planned", 0),
        ("wrong", "bad input", 2),
        ("mnist_mlp", "planned", 0),
    ]
    assert "MB too little" in rows[0]["problem"] and "did you mean 'bandwidth'" in rows[2]["problem"]
    assert sorted(path.name for path in (tmp_path / "plans").iterdir()) == ["edge_5g.json", "mnist_mlp.json"]
    assert json.loads((tmp_path / "plans" / "edge_5g.json").read_text()) == rows[1]["plan"]
    table = plan(small, SCENARIOS[0], cwd=tmp_path)
    assert table.returncode == 1 and table.stdout.index("small ") < table.stdout.index("edge_5g ") and "Without a plan" in table.stdout
    assert "2/2" in table.stderr
    assert plan(*SCENARIOS[:2], cwd=tmp_path).returncode == 0


def test_a_process_that_is_killed_fails_alone(tmp_path: Path) -> None:
    """A model whose code ends its process is told; those that waited beside it are planned."""
    (tmp_path / "killer.py").write_text("import os\nos._exit(9)\n")
    killer = tmp_path / "killer.toml"
    killer.write_text('model = { factory = "killer.py:build" }\n[job]\nglobal_batch_size = 4\n[cluster]\nkind = "this-machine"\n')
    outcomes: dict[int, Outcome] = {outcome.number: outcome for outcome in plan_here(questions_of(killer, *SCENARIOS[:2]), 2)}
    assert [outcomes[number].row.status for number in range(3)] == ["failed", "planned", "planned"]
    assert "killed" in outcomes[0].row.problem


def test_an_interrupt_leaves_what_is_done(tmp_path: Path) -> None:
    """Ctrl-C while a long search runs: exit 130 at once, the finished plan is written, the other is listed as interrupted."""
    slow = ROOT / "scenarios" / "racks_of_gpus.toml"
    command = [*COMMAND, str(slow), str(SCENARIOS[0]), "--jobs", "2", "-o", "plans"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr and process.stderr.readline().startswith("1/2  edge_5g")
        process.send_signal(signal.SIGINT)
        started_s = time.monotonic()
        table, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started_s < 20
    assert [path.name for path in (tmp_path / "plans").iterdir()] == ["edge_5g.json"]
    assert re.search(r"racks_of_gpus +interrupted", table) and re.search(r"edge_5g +one rank", table) and "Traceback" not in errors


def test_plans_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two scenarios of one name would write one file: said before any search, with the name; and one process is the least."""
    told = plan(SCENARIOS[0], SCENARIOS[0], "-o", "plans", cwd=tmp_path)
    assert told.returncode == 2 and "2 scenarios are called 'edge_5g'" in told.stderr and not (tmp_path / "plans").exists()
    assert "--jobs: must be at least 1, not 0" in plan(*SCENARIOS[:2], "--jobs", "0", cwd=tmp_path).stderr
    assert "no scenario named" in plan(cwd=tmp_path).stderr


def test_a_plan_under_load_is_told_by_plan_and_by_simulate(tmp_path: Path) -> None:
    """The percentiles of a planned job are those of its written plan; twice the arrivals wait longer; too many are no plan."""
    serving = ROOT / "scenarios" / "serving.toml"
    made = plan(serving, "-o", "plan.json", "--json", cwd=tmp_path)
    told = json.loads(made.stdout)["serving"]
    command = [sys.executable, "-m", "chinchilla_sim.cli", "simulate", "plan.json"]
    rates = [["--set", f'job.arrival_rate="{rate} requests/s"'] for rate in (800, 1000)]
    for options, compare in zip(rates, (float.__eq__, float.__gt__), strict=True):
        result = subprocess.run([*command, *options, "--json"], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
        assert compare(json.loads(result.stdout)["plans"][0]["serving"]["p95_s"], told["p95_s"]), result.stderr
    assert "Latency of 800 requests/s" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT).stdout
    refused = plan(serving, "--set", 'job.arrival_rate="9000 requests/s"', cwd=tmp_path)
    assert refused.returncode == 1 and "9000 requests/s arrive, 2.87 times the 3140 requests/s" in refused.stderr
