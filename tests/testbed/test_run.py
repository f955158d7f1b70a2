"""Plans over emulated nodes, and over machines that share no folder, train as one process does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.emulated.testbed import open_testbed
from chinchilla_sim.runtime.launching.launch import run_plan
from chinchilla_sim.timeline import Timeline
from tests.runtime.conftest import train_alone
from tests.testbed.conftest import node, scenario_of, star

ROOT = Path(__file__).parents[2]
PARTS = (("linear",), ("relu", "linear_1", "loss"))
CLUSTER = star(node("a", devices=2), node("b", devices=2, cpu_share=0.5), bandwidth="200 Mbit/s", latency="1 ms")

OTHER_CLOCK = ["unshare", "--time", "--monotonic", "100000", "--fork", "--kill-child"] if Path("/proc/self/ns/time").exists() else []


def test_stages_over_nodes_equal_one_process(tmp_path: Path) -> None:
    """Two stages of two replicas whose ranks alternate between nodes have the losses of one process; their bytes go over the links."""
    scenario = scenario_of(CLUSTER)
    plan = Plan(PARTS, ((0, 2), (1, 3)), (0, 2, 1, 3), 64, 2, "1f1b", ("none",) * 2, ("none",))
    with open_testbed(scenario.cluster) as bed:
        measurement = run_plan(PlanFile(plan, scenario), tmp_path, testbed=bed)
        traffic = bed.traffic()
        assert not any(host.processes() for host in bed.hosts.values())
    losses, _ = train_alone(scenario, 12)
    assert measurement.losses == pytest.approx(losses, rel=1e-5)
    assert traffic.drops == 0
    # Stage 0 is in node a, stage 1 in node b: 2 replicas x 12 steps x 32 samples x 512 values of 4 bytes, and their gradients back.
    sent = 2 * 12 * 32 * 512 * 4
    for wire in ("a -> network/switch", "b -> network/switch"):
        assert traffic.wire_bytes[wire] >= 1.04 * sent


def test_machines_meet_at_a_rendezvous(tmp_path: Path) -> None:
    """`chinchilla run PLAN --rendezvous` on two machines with 2 and 1 ranks: the first has all records and the losses of one process."""
    scenario = scenario_of(CLUSTER)
    parts = (*PARTS[:1], ("relu", "linear_1"), ("loss",))
    plan = Plan(parts, ((0,), (1,), (2,)), (0, 2, 1), 64, 2, "gpipe", ("none",) * 3, ("none",) * 2)
    PlanFile(plan, scenario).save(tmp_path / "plan.json")
    with open_testbed(scenario.cluster) as bed:
        place = f"{bed.hosts['a'].address}:29600"
        started = []
        for number, host in enumerate(bed.hosts.values()):
            command = [sys.executable, "-m", "chinchilla_sim.cli", "run", str(tmp_path / "plan.json"), "--rendezvous", place]
            command += ["--node-rank", str(number), "-o", str(tmp_path / host.name), "--json"]
            # The second machine's clock shows another time.
            clock = OTHER_CLOCK if number else []
            started.append(
                subprocess.Popen(host.command([*clock, *command]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
            )
        told = [process.communicate(timeout=110) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    assert json.loads(told[0][0])["validation_accuracy"] > 0.2
    assert told[1][0] == "" and "node 0 has the report" in told[1][1]
    assert sorted(path.name for path in (tmp_path / "b").glob("rank*.json")) == ["rank1.json"]
    assert sorted(path.name for path in (tmp_path / "a").glob("rank*.json")) == ["rank0.json", "rank1.json", "rank2.json"]
    measured = json.loads((tmp_path / "a" / "measurement.json").read_text())
    losses, _ = train_alone(scenario, 12)
    assert measured["losses"] == pytest.approx(losses, rel=1e-5)
    # Wrong clocks would make steps of a day, or messages that arrive before they are sent.
    assert 0 < max(measured["step_s"]) < 100
    spans = Timeline.from_dict(measured["timeline"]).spans
    between = [span for span in spans if span.stream == "send" and (span.rank == 1 or span.label.startswith("0"))]
    assert between and all(0 < span.end_s - span.start_s < 100 for span in between)
