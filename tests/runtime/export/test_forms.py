"""Folders for torchrun, Slurm, Kubernetes and Docker: run by this machine, or read by a parser of the form."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile, load_plan
from chinchilla_sim.running import check_exportable
from chinchilla_sim.runtime.export.bundle import bundle, imported_neighbours, safe_name
from chinchilla_sim.runtime.export.folder import export_folder
from chinchilla_sim.runtime.export.machines import machines_of, number_by_node
from chinchilla_sim.scenario.load import load_scenario, parse_scenario
from chinchilla_sim.setting import prepare
from chinchilla_sim.workflow import make_best_plan, plan_file
from tests.runtime.test_run import make_plan

ROOT = Path(__file__).parents[3]
SBATCH_OPTIONS = {
    "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time", "output", "error", "partition", "account", "mem",
}  # fmt: skip


def export_plan(file: PlanFile, form: str, folder: Path) -> None:
    """What the command does with a plan that it has read."""
    check_exportable(file)
    export_folder(file, prepare(file.scenario).cluster, form, folder)


def nodes_file(counts: tuple[int, ...] = (2, 2), device: str | None = None, **changes: Any) -> PlanFile:
    """A data-parallel plan over nodes with these numbers of devices; the slots alternate between the nodes."""
    machine: dict[str, Any] = {"device": device} if device else {"peak": "1 Tflop/s", "memory": "4 GiB"}
    nodes = [{"name": f"n{index}", "devices": count, **machine} for index, count in enumerate(counts)]
    tables = {
        "name": "two nodes; $(touch mark)",
        "model": {"builtin": "mnist_mlp"},
        "job": {"global_batch_size": 64, "steps": 1000, "data": "digits"},
        "cluster": {"nodes": nodes, "network": {"bandwidth": "1 Gbit/s", "latency": "0.1 ms"}},
    }
    total = sum(counts)
    order = sorted(range(total), key=lambda slot: (slot % 2, slot)) if counts == (2, 2) else range(total)
    plan = Plan(
        (("linear", "relu", "linear_1", "loss"),), (tuple(range(total)),), tuple(order), 64, 64 // 16 // total or 1, "1f1b", ("none",), ()
    )
    return PlanFile(replace(plan, **changes), parse_scenario(tables, "nodes.toml"))


def test_torchrun_folder_trains_here(own: Any, with_job: Any, tmp_path: Path) -> None:
    """run.sh of a two-rank plan, moved to another place with the user's own code, trains as one process does and writes metrics."""
    file = with_job(PlanFile(make_plan(own, 2, 1, 1), own), steps=5, epochs=1)
    export_plan(file, "torchrun", tmp_path / "made")
    shutil.move(tmp_path / "made", tmp_path / "moved")
    (tmp_path / "job.py").unlink()
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    command = [str(tmp_path / "moved" / "run.sh"), "0", f"127.0.0.1:{free_port()}"]
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    metrics = [json.loads(line) for line in (tmp_path / "moved" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["steps"]) for line in metrics] == [(1, 5)]
    assert (tmp_path / "moved" / "weights.pt").stat().st_size > 0


def free_port() -> int:
    """A port that nobody listens on just now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("arguments", "message"), [([], "has 2 nodes"), (["2", "a:1"], "counts from 0"), (["-1", "a:1"], "counts from 0")])
def test_runner_of_several_nodes_asks_for_its_place(arguments: list[str], message: str, tmp_path: Path) -> None:
    """Without NODE_RANK and HOST:PORT, or with a node that is none, run.sh says what it needs and ends with 2."""
    export_plan(nodes_file(), "torchrun", tmp_path)
    result = subprocess.run([str(tmp_path / "run.sh"), *arguments], capture_output=True, text=True, timeout=30)
    assert result.returncode == 2 and message in result.stderr


def test_ranks_are_numbered_node_by_node() -> None:
    """A plan whose ranks alternate between nodes is renumbered; every replica keeps its device."""
    file = nodes_file()
    setting = prepare(file.scenario)
    plan = number_by_node(file.plan, setting.cluster)
    assert plan.slots == (0, 1, 2, 3) and file.plan.slots == (0, 2, 1, 3)
    before, after = ([one.slots[rank] for rank in one.placement[0]] for one in (file.plan, plan))
    assert before == after
    machines = machines_of(plan, setting.cluster)
    assert machines.rank_counts == (2, 2) and machines.alike and not machines.accelerated


def test_unequal_nodes_have_their_own_numbers_of_ranks(tmp_path: Path) -> None:
    """torchrun's script lists ranks by node; Slurm and Kubernetes, which start the same everywhere, refuse."""
    file = nodes_file((1, 3))
    export_plan(file, "torchrun", tmp_path)
    assert "ranks_per_node=(1 3)" in (tmp_path / "run.sh").read_text()
    for form in ("slurm", "kubernetes"):
        with pytest.raises(ScenarioError, match="starts the same on every node"):
            export_plan(file, form, tmp_path)


@pytest.mark.parametrize(("device", "gpus"), [(None, None), ("a100-sxm-80gb", "2")])
def test_slurm_headers_are_options_of_sbatch(device: str | None, gpus: str | None, tmp_path: Path) -> None:
    """Every #SBATCH line names an option that sbatch has, once; nodes, ranks and GPUs are the plan's; both scripts parse as bash."""
    file = nodes_file(device=device)
    export_plan(replace(file, simulated_step_s=0.3), "slurm", tmp_path)
    text = (tmp_path / "job.sbatch").read_text()
    headers = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    pairs = [re.fullmatch(r"#SBATCH --([a-z-]+)=(\S+)", line).groups() for line in headers]  # type: ignore[union-attr]
    options = dict(pairs)
    assert len(options) == len(pairs) and set(options) <= SBATCH_OPTIONS
    assert (options["nodes"], options["ntasks-per-node"], options["cpus-per-task"]) == ("2", "1", "2")
    assert options.get("gpus-per-node") == gpus and options["time"] == "00:20:00"
    # sbatch stops reading options at the first line that is no comment.
    assert text.rindex("#SBATCH") < text.index("\nset ")
    for script in ("job.sbatch", "run.sh"):
        assert subprocess.run(["bash", "-n", str(tmp_path / script)], capture_output=True, timeout=30).returncode == 0


def test_kubernetes_objects_fit_their_schemas(tmp_path: Path) -> None:
    """Service, ConfigMap and Indexed Job are valid for the API server, with nothing that it does not know; the plan arrives whole."""
    export_plan(nodes_file(device="a100-sxm-80gb"), "kubernetes", tmp_path)
    documents = list(yaml.safe_load_all((tmp_path / "job.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "ConfigMap", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)
    _, config, job = documents
    assert json.loads(config["data"]["plan.json"]) == json.loads((tmp_path / "plan.json").read_text())
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "2", "nvidia.com/gpu": "2"}
    # The name under which pod 0 is reached: that of the Job and an index, in the headless Service.
    assert pod["subdomain"] == documents[0]["metadata"]["name"] and documents[0]["spec"]["clusterIP"] == "None"
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}:29500" in pod["containers"][0]["command"][-1]


def test_plan_too_large_for_a_config_map(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kubernetes would refuse it: so does the export, and says which form can."""
    monkeypatch.setattr("chinchilla_sim.runtime.export.forms.CONFIG_MAP_LIMIT_BYTES", 100)
    with pytest.raises(ScenarioError, match="--to docker"):
        export_plan(nodes_file(), "kubernetes", tmp_path)


def test_dockerfile_builds_from_its_folder_alone(tmp_path: Path) -> None:
    """It parses; what it copies is there, requirements pin torch, the package's source is whole, and ranks are not root."""
    export_plan(nodes_file(), "docker", tmp_path)
    parser = DockerfileParser(path=str(tmp_path))
    steps = [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]
    assert steps[0] == ("FROM", "python:3.11-slim") and parser.baseimage == "python:3.11-slim"
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "ENTRYPOINT"}
    assert {name for name, _ in steps} <= known
    for source in (value.split()[0] for name, value in steps if name == "COPY"):
        assert (tmp_path / source).exists()
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["./run.sh"] and dict(steps)["USER"] != "root"
    requirements = (tmp_path / "requirements.txt").read_text()
    assert re.search(r"^torch[<>=].*2\.13", requirements, re.MULTILINE) and "pytest" not in requirements
    copied = {path.relative_to(tmp_path) for path in (tmp_path / "chinchilla_sim").rglob("*") if path.is_file()}
    package = {
        path.relative_to(ROOT) for path in (ROOT / "chinchilla_sim").rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    }
    assert copied == package


def test_names_from_outside_run_nothing(tmp_path: Path) -> None:
    """A scenario's name with shell code in it is only letters in every file that a shell reads."""
    for form in ("torchrun", "slurm", "kubernetes", "docker"):
        export_plan(nodes_file(), form, tmp_path)
    for name in ("run.sh", "job.sbatch", "job.yaml", "Dockerfile"):
        text = (tmp_path / name).read_text()
        assert "$(touch" not in text.replace("\\", "").partition("plan.json: ")[0] and safe_name("two nodes; $(touch mark)") in text


def test_neighbours_come_along(tmp_path: Path) -> None:
    """What a job's file imports from beside itself, directly or not, is in the folder; other files are not."""
    package = tmp_path / "parts"
    package.mkdir()
    (tmp_path / "job.py").write_text("import layers\nimport torch\ndef build(): ...\n")
    (tmp_path / "layers.py").write_text("from parts.inner import thing\n")
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("thing = 1\n")
    (tmp_path / "secret.py").write_text("")
    found = [str(path.relative_to(tmp_path)) for path in imported_neighbours(tmp_path / "job.py")]
    assert found == ["layers.py", "parts/__init__.py", "parts/inner.py"]


def test_bundle_is_not_signed_and_paths_are_inside(own: Any, tmp_path: Path) -> None:
    """The exported plan is everybody's: unsigned, and its factory lies in the folder."""
    (tmp_path / "out").mkdir()
    made = bundle(PlanFile(make_plan(own, 2, 1, 1), own), tmp_path / "out")
    assert made.file.scenario.model.factory == "code/job.py:build" and (tmp_path / "out" / "code" / "job.py").is_file()
    assert not load_plan(tmp_path / "out" / "plan.json").made_here


def test_what_runs_nowhere_is_not_exported(own: Any, tmp_path: Path) -> None:
    """A plan that the runtime does not play, and a model that is only a formula, are refused for every form."""
    plan = replace(make_plan(own, 2, 1, 1), activation_priority=2.0)
    with pytest.raises(ScenarioError, match="does not play priorities of messages"):
        export_plan(PlanFile(plan, own), "torchrun", tmp_path)
    setting, search = make_best_plan(prepare(load_scenario(ROOT / "scenarios" / "seed_four_nodes.toml")))
    with pytest.raises(ScenarioError, match="has no code to run"):
        export_plan(plan_file(setting, search), "docker", tmp_path)
