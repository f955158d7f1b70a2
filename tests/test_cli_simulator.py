"""Commands around the simulator: schedules drawn, rows from CSV played, traces with causes, disturbed steps."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.cli import app
from chinchilla_sim.errors import NoFeasiblePlanError, ScenarioError

EXAMPLES = Path(__file__).parents[1] / "scenarios"
SCENARIO = """
model = { formula = "mlp", widths = [64, 256, 256, 10] }
job = { global_batch_size = 32 }
cluster.nodes = [{ name = "n", count = 2, peak = "10 Gflop/s", memory = "1 GiB" }]
cluster.network = { bandwidth = "100 Mbit/s", latency = "1 ms" }
search = { executable = false, minimum_ranks = 2, pipeline_parallel_degrees = [2], microbatch_counts = [4], schedules = ["zb-h1"] }
disturbances = { jitter = 0.1, failures = { mean_time_between_failures = "100 h", checkpoint = "10 s", restart = "1 min" } }
"""


def call(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints."""
    app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    return capsys.readouterr().out


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A plan of two stages."""
    (tmp_path / "s.toml").write_text(SCENARIO)
    call(capsys, "plan", tmp_path / "s.toml", "-o", tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_schedule_prints_what_pytorch_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """1F1B of two ranks as CSV; the CSV drawn again is the same program; --json tells its times."""
    text = call(capsys, "schedule", "1f1b", "--ranks", 2, "--microbatches", 3, "--csv")
    assert text == "0F0,0F1,0B0,0F2,0B1,0B2\n1F0,1B0,1F1,1B1,1F2,1B2\n"
    (tmp_path / "rows.csv").write_text(text)
    assert call(capsys, "schedule", tmp_path / "rows.csv", "--csv") == text
    drawn = json.loads(call(capsys, "schedule", "1f1b", "--ranks", 2, "--microbatches", 3, "--json"))
    assert (drawn["step_s"], drawn["ideal_s"]) == (12, 9)


def test_schedule_draws_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """A table of rows and a sketch."""
    text = call(capsys, "schedule", "zb-v", "--ranks", 3, "--microbatches", 6)
    assert "7I0" not in text and "5I0" in text and "rank 2" in text and "of the step is idle" in text


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["1f1c"], "did you mean '1f1b'"),
        (["dualpipe-v", "--ranks", "4", "--microbatches", "4"], "needs 8 microbatches"),
        (["none.csv"], "there is no such file"),
        (["1f1b", "--ranks", "0"], "--ranks: must be at least 1, not 0"),
        (["1f1b", "--transfer=-1"], "must not be negative"),
    ],
)
def test_schedule_refuses_with_a_cure(words: list[str], what: str) -> None:
    """Unknown names, sizes that do not fit, files that are not there."""
    with pytest.raises(ScenarioError, match=what):
        app(["schedule", *words], exit_on_error=False, result_action="return_value")


def test_rows_from_csv_take_the_place_of_the_schedule(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GPipe's rows typed by hand are what is simulated; wrong rows are told with their rank."""
    rows = tmp_path / "gpipe.csv"
    rows.write_text("0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3\n")
    given, typed = (json.loads(call(capsys, "simulate", plan, *more, "--json"))["plans"][0] for more in ([], ["--program", rows]))
    assert "zb-h1" in given["summary"] and "custom" in typed["summary"]
    assert typed["simulated_step_s"] != given["simulated_step_s"]
    rows.write_text("0F0,0F1,0F2,0F3,0B0,0B1,0B2\n1F0,1B0\n")
    with pytest.raises(ScenarioError, match=r"gpipe.csv: row 1: microbatch 3 of stage 0 needs F then B.*; give every pass"):
        call(capsys, "simulate", plan, "--program", rows)


def test_rows_that_wait_for_each_other_are_bad_input(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A backward pass before its forward pass: file, rows, who waits for whom, cure; in a CSV, drawn or played, and inside a plan."""
    rows = tmp_path / "rows.csv"
    text = "0F0,0B0,0F1,0F2,0F3,0B1,0B2,0B3\n1F0,1F1,1B0,1B1,1F2,1F3,1B2,1B3\n"
    rows.write_text(text)
    circle = r"cannot be played to the end: 0B0 of rank 0 waits for 1SEND_B0 of rank 1.* waits for 1F1 of rank 1.*; put F behind F"
    for words in (["simulate", plan, "--program", rows], ["schedule", rows]):
        with pytest.raises(ScenarioError, match=rf"rows\.csv: rows 1 and 2: {circle}") as caught:
            call(capsys, *words)
        assert caught.value.exit_code == 2
    data = json.loads(plan.read_text())
    data["plan"] |= {"schedule": "custom", "order": [row.replace(",", " ") for row in text.split()]}
    plan.write_text(json.dumps(data))
    for command in ("simulate", "explain"):
        with pytest.raises(ScenarioError, match=rf"plan\.json: plan\.order, rows 1 and 2: {circle}"):
            call(capsys, command, plan)


def test_trace_tells_causes_and_the_critical_path(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Idle events name what is waited for; the critical path is a process of its own that ends with the step."""
    call(capsys, "simulate", plan, "--trace", tmp_path / "trace.json")
    events: list[dict[str, Any]] = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    idle = [event["name"] for event in events if event.get("cat") == "idle"]
    assert any("waits for 0SEND_F0 of rank 0, which follows 0F0 of rank 0" in name for name in idle)
    assert any("data is on the way" in name for name in idle)
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    (critical,) = (pid for pid, name in names.items() if name.endswith("critical path"))
    path = [event for event in events if event["ph"] == "X" and event["pid"] == critical]
    last = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X" and event.get("cat") != "idle")
    assert max(event["ts"] + event["dur"] for event in path) == pytest.approx(last)


def test_disturbed_steps_and_goodput(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """p5 < p50 < p95, goodput beside Daly's formula; the same seed prints the same bytes."""
    first, second = (call(capsys, "simulate", plan, "--json") for _ in range(2))
    assert first == second
    found = json.loads(first)["plans"][0]
    assert found["p5_s"] < found["p50_s"] < found["p95_s"]
    assert found["goodput"]["simulated"] == pytest.approx(found["goodput"]["expected"], rel=0.02)
    assert "Daly" in call(capsys, "simulate", plan)


def test_disturbance_of_an_unknown_node_is_named(plan: Path) -> None:
    """The mistake stands with its place and the known names."""
    text = 'disturbances.traffic=[{between=["n-0","m"],bandwidth="1 Mbit/s"}]'
    with pytest.raises(ScenarioError, match=r"disturbances\.traffic\.0\.between: there is no node 'm'; known are n-0, n-1"):
        app(["simulate", str(plan), "--set", text], exit_on_error=False, result_action="return_value")


def test_explain_tells_what_binds(capsys: pytest.CaptureFixture[str], plan: Path) -> None:
    """A sentence and two tables; --json tells the same, also of another network."""
    text = call(capsys, "explain", plan)
    assert "binds" in text and "network bandwidth x 2" in text
    found = json.loads(call(capsys, "explain", plan, "--json"))
    slow = json.loads(call(capsys, "explain", plan, "--set", 'cluster.network.bandwidth="1 Mbit/s"', "--json"))
    assert slow["binding"] == "transfer" and slow["step_s"] > found["step_s"]
    assert {"what", "step_s", "change"} == set(found["sensitivities"][0])


def test_stages_with_replica_counts_of_their_own_go_through_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a plan is found, written, simulated, explained and reported like any other."""
    scenario = tmp_path / "s.toml"
    lists = (
        'executable = false, stage_replicas = "free", minimum_ranks = 3, data_parallel_degrees = [1, 2], pipeline_parallel_degrees = [2]'
    )
    scenario.write_text(
        f"""
model = {{ formula = "mlp", widths = [256, 512, 256, 10] }}
job = {{ global_batch_size = 32 }}
cluster.nodes = [{{ name = "n", count = 3, peak = "1 Gflop/s", memory = "1 GiB" }}]
cluster.network = {{ bandwidth = "1 Gbit/s", latency = "100 us" }}
search = {{ {lists}, microbatch_counts = [8], schedules = ["1f1b"] }}
"""
    )
    text = call(capsys, "plan", scenario, "-o", tmp_path / "plan.json")
    summary = json.loads((tmp_path / "plan.json").read_text())["summary"]
    assert summary in ("2 stages of 1/2 replicas, 8 microbatches of 4, 1f1b", "2 stages of 2/1 replicas, 8 microbatches of 4, 1f1b")
    assert summary in text and "rank 2" in text
    assert json.loads(call(capsys, "simulate", tmp_path / "plan.json", "--json"))["plans"][0]["summary"] == summary
    assert "Critical path" in call(capsys, "explain", tmp_path / "plan.json")
    call(capsys, "report", scenario, "-o", tmp_path / "report")
    assert summary.split(",")[0] in (tmp_path / "report" / "report.html").read_text()
    assert summary in (tmp_path / "report" / "summary.txt").read_text()


SETS = ("--set", "cluster.nodes.0.memory=1 MB", "--set", "search.maximum_step_time=1 us")


def infeasible(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints that ends with exit code 1."""
    with pytest.raises(SystemExit) as end:
        call(capsys, *words)
    assert end.value.code == 1
    return capsys.readouterr().out


def test_looking_at_an_infeasible_plan_shows_it_and_exits_1(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too little memory and a limit that is too tight: simulate (all plans of the table) and explain say both, with what would help."""
    assert "is not feasible" not in call(capsys, "simulate", plan)
    (tmp_path / "other.json").write_text(plan.read_text())
    for words in (["simulate", plan, tmp_path / "other.json"], ["explain", plan]):
        text = infeasible(capsys, *words, *SETS)
        assert "is not feasible: search.maximum_step_time: takes" in text and 'write maximum_step_time = "' in text
        assert "is not feasible: device memory: rank 0 needs" in text and "or use devices with 1.41 MB of memory" in text
    assert infeasible(capsys, "simulate", plan, tmp_path / "other.json", *SETS).count("is not feasible: device memory") == 2


def test_an_infeasible_plan_is_one_document(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the document comes out as ever, and says what is broken."""
    (told,) = json.loads(infeasible(capsys, "simulate", plan, *SETS, "--json"))["plans"]
    assert told["fits"] is False and [limit["holds"] for limit in told["limits"]] == [False] and told["status"] == "infeasible"
    explained = json.loads(infeasible(capsys, "explain", plan, *SETS, "--json"))
    assert explained["breaches"] == told["breaches"] and explained["headroom_bytes"] < 0
    assert [breach["constraint"] for breach in told["breaches"]] == ["device memory", "search.maximum_step_time"]
    (told,) = json.loads(call(capsys, "simulate", plan, "--json"))["plans"]
    assert (told["fits"], told["status"], told["breaches"]) == (True, "feasible", []) and "limits" not in told


def test_what_would_help_does(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan with as much memory and time as the message asks for is feasible."""
    found = json.loads(infeasible(capsys, "simulate", plan, *SETS, "--json"))["plans"][0]["breaches"]
    memory = re.search(r"devices with (.*) of memory", found[0]["cure"])
    limit = re.search(r'maximum_step_time = "(.*?)"', found[1]["cure"])
    assert memory and limit
    call(capsys, "simulate", plan, "--set", f"cluster.nodes.0.memory={memory[1]}", "--set", f"search.maximum_step_time={limit[1]}")


def test_acting_on_an_infeasible_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """run, validate run, export: nothing is started or written where the plan breaks a limit, unless --force says to go on."""
    scenario = ["plan", EXAMPLES / "mnist_mlp.toml", "--set", "search.maximum_step_time=1 h", "-o", tmp_path / "plan.json"]
    call(capsys, *scenario)
    data = json.loads((tmp_path / "plan.json").read_text())
    data["scenario"]["search"]["maximum_step_time"] = "1 us"
    (tmp_path / "plan.json").write_text(json.dumps(data))
    out = ["-o", tmp_path / "out"]
    for words in (["export", "--to", "torchrun", *out], ["export", "--to", "script", *out], ["run", *out], ["validate", "run", *out]):
        with pytest.raises(NoFeasiblePlanError, match=r"plan\.json: is not feasible: search\.maximum_step_time.*or go on with --force"):
            call(capsys, *words, tmp_path / "plan.json")
    assert not (tmp_path / "out" / "plan.json").exists()
    call(capsys, "export", tmp_path / "plan.json", "--to", "torchrun", *out, "--force")
    assert (tmp_path / "out" / "plan.json").exists()


def test_files_that_cannot_be_written_are_mistakes(plan: Path, tmp_path: Path) -> None:
    """A folder where a file is to be written is refused before the work starts, and nothing is left behind."""
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for words in (["plan", tmp_path / "s.toml", "-o"], ["simulate", plan, "--trace"]):
        with pytest.raises(ScenarioError, match="folder is a folder; name a file in it, such as"):
            app([*map(str, words), str(tmp_path / "folder")], exit_on_error=False, result_action="return_value")
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_of_no_steps_is_a_mistake(plan: Path) -> None:
    """--steps counts from 1, in `run` and in `validate run`."""
    for words in (["run", plan, "--steps", "0"], ["validate", "run", plan, "--steps", "0"]):
        with pytest.raises(ScenarioError, match="--steps: must be at least 1, not 0"):
            app(list(map(str, words)), exit_on_error=False, result_action="return_value")
