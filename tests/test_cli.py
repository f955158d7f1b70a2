"""The command line as a user meets it: exit codes, errors with their cure, JSON, light start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_sim.graph.contract import BUILTIN_FACTORIES, load_job

ROOT = Path(__file__).parents[1]
MNIST = str(ROOT / "scenarios" / "mnist_mlp.toml")
FOUR_NODES = str(ROOT / "scenarios" / "seed_four_nodes.toml")
SERVICE = str(ROOT / "scenarios" / "digits_service.toml")
DEADLINE = str(ROOT / "scenarios" / "deadline.toml")


def chinchilla(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "chinchilla_sim.cli", *arguments]
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | path)


def printed(result: subprocess.CompletedProcess[str]) -> Any:
    """The JSON document that a command printed."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("arguments", [["--help"], ["plan", MNIST], ["plan", FOUR_NODES, "--json"], ["schema"]])
def test_light_commands_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    """Help, schema and planning of built-in graphs import neither torch nor matplotlib; help not even pydantic or rich's heavy parts."""
    heavy = ["torch", "matplotlib"] + (["pydantic", "numpy", "networkx", "simpy"] if arguments == ["--help"] else [])
    code = (
        "import sys; sys.argv[0] = 'chinchilla'\nfrom chinchilla_sim.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        f"    assert not end.code, end.code\nassert not set({heavy!r}) & set(sys.modules), set({heavy!r}) & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr


def test_plan_writes_a_plan_that_simulate_reads(tmp_path: Path) -> None:
    """The simulated step of a written plan is the planned one; a faster network changes it offline."""
    planned = printed(chinchilla("plan", FOUR_NODES, "--set", "search.minimum_ranks=4", "-o", "plan.json", "--json", cwd=tmp_path))
    simulated = printed(chinchilla("simulate", "plan.json", "--json", cwd=tmp_path))
    assert simulated["plans"][0]["simulated_step_s"] == planned["simulated_step_s"] == planned["plan"]["simulated_step_s"]
    faster = printed(
        chinchilla("simulate", "plan.json", "plan.json", "--set", 'cluster.network.bandwidth="100 GB/s"', "--json", cwd=tmp_path)
    )
    assert len(faster["plans"]) == 2
    assert faster["plans"][0]["simulated_step_s"] < planned["simulated_step_s"]
    table = chinchilla("simulate", "plan.json", cwd=tmp_path)
    assert "Simulated plans" in table.stdout and table.returncode == 0


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Two plans of one scenario are the same file."""
    for name in ("one.json", "two.json"):
        assert chinchilla("plan", FOUR_NODES, "-o", name, cwd=tmp_path).returncode == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_all_mistakes_of_a_scenario_are_told_with_their_cure(tmp_path: Path) -> None:
    """A misspelt key, a number without unit and a link to an unknown node in one message; exit 2."""
    text = Path(FOUR_NODES).read_text().replace('bandwidth = "1 GB/s"', 'bandwith = "1 GB/s"').replace('"1 ms"', '"1"')
    text += '\n[[cluster.links]]\nbetween = ["node-0", "nod-1"]\nbandwidth = "1 GB/s"\nlatency = "1 ms"\n'
    (tmp_path / "wrong.toml").write_text(text)
    result = chinchilla("plan", "wrong.toml", cwd=tmp_path)
    assert result.returncode == 2
    for part in ("wrong.toml: cluster.network.bandwith", "did you mean 'bandwidth'", "has no unit", "'node-1'"):
        assert part in result.stderr


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["cluster.nodes.0.memory=100 MB"], ["no feasible plan: device memory", "too little", "more memory"]),
        (["search.pipeline_parallel_degrees=[4]", "model.task_count=3"], ["no feasible plan", "3 possible stages"]),
        (["search.data_parallel_degrees=[3]"], ["no feasible plan", "batch of 64"]),
        (["search.minimum_ranks=9"], ["no feasible plan: search.minimum_ranks: asks for 9 ranks of 4; write at most 4"]),
    ],
)
def test_infeasible_is_an_answer(overrides: list[str], parts: list[str], tmp_path: Path) -> None:
    """Too little memory, more stages than tasks, a batch that does not divide: exit 1, by how much, and what would help."""
    result = chinchilla("plan", FOUR_NODES, *(f"--set={text}" for text in overrides), cwd=tmp_path)
    assert result.returncode == 1
    for part in parts:
        assert part in result.stderr


def test_infeasible_is_an_answer_in_json_too(tmp_path: Path) -> None:
    """With --json the constraint, by how much and the cure stand on standard output, and the exit code is 1."""
    result = chinchilla("plan", FOUR_NODES, "--set", "search.minimum_ranks=100", "--json", cwd=tmp_path)
    assert result.returncode == 1
    told = json.loads(result.stdout)
    assert (told["plan"], told["status"], told["constraint"]) == (None, "infeasible", "search.minimum_ranks")
    assert told["shortfall"] and told["cure"] and told["cure"] in result.stderr


def test_front_is_printed_and_in_json(tmp_path: Path) -> None:
    """`plan --front` adds the table of trade-offs; in JSON the chosen plan is one of them; the plan itself is the same without."""
    table = chinchilla("plan", FOUR_NODES, "--front", cwd=tmp_path)
    assert table.returncode == 0 and "Trade-offs" in table.stdout and "memory left free" in table.stdout
    told = printed(chinchilla("plan", FOUR_NODES, "--front", "--json", cwd=tmp_path))
    (chosen,) = [member for member in told["front"] if member["chosen"]]
    assert chosen["step_s"] == told["simulated_step_s"] and chosen["step_usd"] == told["cost"]["step_usd"]
    plain = printed(chinchilla("plan", FOUR_NODES, "--json", cwd=tmp_path))
    assert plain["plan"] == told["plan"] and "front" not in plain


def test_deadline_changes_the_plan(tmp_path: Path) -> None:
    """Without its deadline the scenario takes one GPU; with an hour no plan holds: exit 1, by how much, and what would help."""
    within = printed(chinchilla("plan", DEADLINE, "--json", cwd=tmp_path))
    assert [limit["key"] for limit in within["limits"]] == ["deadline", "budget"]
    assert all(limit["value"] <= limit["most"] for limit in within["limits"])
    assert within["cost"]["job"]["time_s"] == within["limits"][0]["value"] and within["cost"]["job"]["steps"] == 390625
    slow = printed(chinchilla("plan", DEADLINE, "--set", "search.deadline=30 d", "--json", cwd=tmp_path))
    assert len(within["ranks"]) > len(slow["ranks"]) == 1 and slow["cost"]["job"]["usd"] < within["cost"]["job"]["usd"]
    refused = chinchilla("plan", DEADLINE, "--set", "search.deadline=1 h", cwd=tmp_path)
    assert refused.returncode == 1
    for part in ("no feasible plan: search.deadline: the nearest plan", "above the deadline of 1.00 h", 'write deadline = "'):
        assert part in refused.stderr


def test_late_mistakes_name_the_file_and_come_before_the_work(tmp_path: Path) -> None:
    """A device that the catalogue lacks is told with its file; what cannot be run is refused before a plan is made or printed."""
    unknown = chinchilla("plan", DEADLINE, "--set", "cluster.nodes.0.device=a100", cwd=tmp_path)
    assert unknown.returncode == 2 and f"{DEADLINE}: cluster.nodes.0.device: 'a100' is not in the catalogue" in unknown.stderr
    refused = chinchilla("run", DEADLINE, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stdout == "" and f"{DEADLINE}: model: a formula has no code to run" in refused.stderr


def test_objective_without_price_is_refused(tmp_path: Path) -> None:
    """Minimising cost where no node states a price is a mistake, not an arbitrary answer."""
    result = chinchilla("plan", MNIST, "--set", "search.objective=cost", cwd=tmp_path)
    assert result.returncode == 2 and "states its price" in result.stderr


def test_damaged_or_outdated_plan_is_refused(tmp_path: Path) -> None:
    """Half a plan.json, and one whose graph has changed: exit 2 with the reason; --force goes on with the latter."""
    assert chinchilla("plan", FOUR_NODES, "-o", "plan.json", cwd=tmp_path).returncode == 0
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    half = chinchilla("simulate", "half.json", cwd=tmp_path)
    assert half.returncode == 2 and "the file is not whole" in half.stderr
    data = json.loads(text)
    data["hashes"]["graph"] = "0" * 64
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = chinchilla("simulate", "old.json", cwd=tmp_path)
    assert old.returncode == 2 and "hashes.graph" in old.stderr and "--force" in old.stderr
    assert chinchilla("simulate", "old.json", "--force", cwd=tmp_path).returncode == 0


def test_folder_that_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    """A file in the way of the output folder: exit 2 before any work."""
    (tmp_path / "file").write_text("")
    for command in (["plan", FOUR_NODES, "-o", "file/plan.json"], ["run", MNIST, "-o", "file/run"], ["report", FOUR_NODES, "-o", "file/x"]):
        result = chinchilla(*command, cwd=tmp_path)
        assert result.returncode == 2 and "--output" in result.stderr, command


def test_job_without_code_cannot_run(tmp_path: Path) -> None:
    """A formula can be planned and simulated; running it says what to name instead."""
    result = chinchilla("run", FOUR_NODES, cwd=tmp_path)
    assert result.returncode == 2 and "builtin or a factory" in result.stderr


def test_run_report_and_validate_make_the_loop(tmp_path: Path) -> None:
    """run writes plan, weights, metrics and measurement; report shows them; validate repeats the run."""
    told = printed(chinchilla("run", MNIST, "--steps", "60", "--json", cwd=tmp_path))
    assert told["measured_step_s"] > 0 and told["simulated_step_s"] > 0
    assert 0.5 < told["validation_accuracy"] <= 1
    folder = tmp_path / "reports" / "mnist_mlp"
    assert {path.name for path in (folder / "run").iterdir()} >= {"plan.json", "weights.pt", "metrics.jsonl", "measurement.json"}
    report = printed(chinchilla("report", MNIST, "--json", cwd=tmp_path))
    assert report["measured_step_s"] == told["measured_step_s"]
    page = (folder / "report.html").read_text()
    assert "measured" in page and "<svg" in page
    assert {event["ph"] for event in json.loads((folder / "trace.json").read_text())["traceEvents"]} >= {"X", "M"}
    assert (folder / "summary.txt").read_bytes() == (ROOT / "reports" / "mnist_mlp" / "summary.txt").read_bytes()
    again = printed(chinchilla("validate", "run", str(folder / "plan.json"), "--steps", "40", "--json", cwd=tmp_path))
    assert again["step_count"] == 35 and again["measured_p5_s"] <= again["measured_step_s"] <= again["measured_p95_s"]


def test_requests_are_answered_and_compared(tmp_path: Path) -> None:
    """run answers with a trained variant and prints simulated beside measured latencies; validate does it again, in a table."""
    job = load_job(BUILTIN_FACTORIES["mnist_mlp"], {"widths": [784, 2048, 2048, 10]}, None)
    torch.save(job.model().state_dict(), tmp_path / "weights.pt")
    sets = ("--set", f"model.weights={tmp_path / 'weights.pt'}", "--set", "model.compression.quantize=int8")
    told = printed(chinchilla("run", SERVICE, *sets, "--steps", "8", "--json", "--output", "out", cwd=tmp_path))
    serving, count = told["serving"], 8 * told["plan"]["scenario"]["job"]["global_batch_size"]
    assert serving["request_count"] == count and 0 <= told["validation_accuracy"] <= 1
    for side in ("simulated", "measured"):
        assert 0 < serving[side]["p50_s"] <= serving[side]["p95_s"] <= serving[side]["p99_s"]
    error = serving["simulated"]["p50_s"] / serving["measured"]["p50_s"] - 1
    assert serving["relative_errors"]["p50_s"] == pytest.approx(error)
    assert json.loads((tmp_path / "out" / "served.json").read_text())["serving"] == serving
    again = chinchilla("validate", "run", "out/plan.json", "--steps", "4", cwd=tmp_path)
    assert "Simulated and measured latency of 200 requests/s" in again.stdout and "One batch in each stage" in again.stdout


def test_calibrate_measures_and_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured rates are positive, fit within 25 %, and plan uses them from the cache from then on."""
    monkeypatch.delenv("CHINCHILLA_CALIBRATION")
    before = chinchilla("plan", MNIST, cwd=tmp_path)
    assert "catalogue figures are used" in before.stderr
    told = printed(chinchilla("calibrate", "--ranks", "2", "--json", cwd=tmp_path))
    assert set(told["devices"]) == {"1", "2"}
    assert all(device["flop_per_s"] > 1e9 for device in told["devices"].values())
    assert all(error < 0.25 for error in told["fit_error"].values())
    after = chinchilla("plan", MNIST, cwd=tmp_path)
    assert after.returncode == 0 and "catalogue figures" not in after.stderr


def test_accuracy_of_the_article(tmp_path: Path) -> None:
    """784-512-10, batch 64, Adam, two stages, 30 epochs: validation accuracy >= 97.0 % (97.3 to 97.6 for three seeds)."""
    told = printed(chinchilla("run", MNIST, "-o", "run", "--json", cwd=tmp_path))
    assert told["validation_accuracy"] >= 0.970


def test_catalogue_lists_shows_one_and_offers_the_nearest(tmp_path: Path) -> None:
    """All entries with figures, source and date; one in full, with its curve; base units in JSON; a misspelt name is exit 2."""
    listed = chinchilla("catalogue", cwd=tmp_path).stdout
    for part in ("Devices of the catalogue", "a100-sxm-80gb", "312 Tflop/s", "Links of the catalogue", "ethernet-100g", "gloo", "2021-06"):
        assert part in listed
    one = chinchilla("catalogue", "h200-sxm", cwd=tmp_path).stdout
    assert "4800 GB/s" in one and "curve of matrix products, h100-sxm-80gb's" in one
    assert (
        printed(chinchilla("catalogue", "ethernet-10g", "--json", cwd=tmp_path))["links"]["ethernet-10g"]["bandwidth_bytes_per_s"] == 1.25e9
    )
    devices = printed(chinchilla("catalogue", "--json", cwd=tmp_path))["devices"]
    assert devices["l4"]["peak_flop_per_s"]["fp8"] == 242.5e12 and all(device["source"] and device["date"] for device in devices.values())
    wrong = chinchilla("catalogue", "h200-smx", cwd=tmp_path)
    assert wrong.returncode == 2 and "did you mean 'h200-sxm'?" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["run"], "name a scenario or a plan, or --resume FOLDER"), (["run", "--resume", "nowhere"], "nowhere/plan.json: cannot be read")],
)
def test_resuming_nothing_is_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Without a source or a run's folder there is nothing to run."""
    result = chinchilla(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr
