"""Nothing of a testbed outlives it, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chinchilla_sim.cli.testbed import down
from chinchilla_sim.errors import RunError, ScenarioError
from chinchilla_sim.runtime.emulated import namespaces
from chinchilla_sim.runtime.emulated.testbed import open_testbed
from tests.testbed.conftest import node, scenario_of, star

ROOT = Path(__file__).parents[2]
OWNER = """
import json, subprocess, sys, time
from chinchilla_sim.runtime.emulated.testbed import open_testbed
from tests.testbed.conftest import node, scenario_of, star

with open_testbed(scenario_of(star(node("a", cpu_share=0.5), node("b"), bandwidth="1 Gbit/s", latency="1 ms")).cluster) as bed:
    host = bed.hosts["a"]
    inside = subprocess.Popen(host.command(["sh", "-c", f"echo $$ > {host.cgroups[0]}/cgroup.procs; sleep 1000"]))
    names = [host.namespace for host in bed.hosts.values()]
    print(json.dumps({"guardian": bed.guardian, "inside": inside.pid, "names": names}), flush=True)
    time.sleep(1000)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """At most half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """A process that owns a testbed in which something runs."""
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with process:
        yield process
        process.kill()


def test_a_killed_owner_leaves_nothing(owner: subprocess.Popen[str], exists: Callable[[str], bool]) -> None:
    """kill -9 of the process that asked for a testbed: namespaces, cgroups, the guardian and what ran inside are gone."""
    assert owner.stdout
    made = json.loads(owner.stdout.readline())
    assert all(map(exists, made["names"])) and alive(made["guardian"]) and alive(made["inside"])
    owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(exists, made["names"])) and not alive(made["guardian"]) and not alive(made["inside"]))


def test_what_a_killed_guardian_leaves_is_removed(
    owner: subprocess.Popen[str], exists: Callable[[str], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    """Only kill -9 of the guardian itself leaves something behind, which `chinchilla testbed down` finds by its name and removes."""
    assert owner.stdout
    made = json.loads(owner.stdout.readline())
    with open_testbed(scenario_of(star(node("c"), bandwidth="1 Gbit/s", latency="1 ms")).cluster) as other:
        os.kill(made["guardian"], signal.SIGKILL)
        wait_until(lambda: not alive(made["guardian"]))
        assert all(map(exists, made["names"]))
        down(as_json=True)
        assert set(made["names"]) <= set(json.loads(capsys.readouterr().out)["removed"])
        assert not any(map(exists, made["names"])) and not alive(made["inside"])
        assert exists(other.hosts["c"].namespace), "a testbed that is in use was removed"
    assert not exists(other.hosts["c"].namespace)


def test_a_testbed_ends_with_its_block(exists: Callable[[str], bool]) -> None:
    """An error inside the block removes everything, and what ran inside is killed."""
    with (
        pytest.raises(ZeroDivisionError),
        open_testbed(scenario_of(star(node("a"), node("b"), bandwidth="1 Gbit/s", latency="1 ms")).cluster) as bed,
    ):
        inside = subprocess.Popen(bed.hosts["a"].command(["sleep", "1000"]))
        raise ZeroDivisionError
    assert inside.wait(10) == -signal.SIGKILL
    assert not any(exists(host.namespace) for host in bed.hosts.values())


def test_up_says_how_to_enter_and_counts(tmp_path: Path, exists: Callable[[str], bool]) -> None:
    """`chinchilla testbed up --json` says how to enter, and after Ctrl-C prints nodes and traffic as one document."""
    (tmp_path / "two.toml").write_text((ROOT / "scenarios" / "testbed_two_nodes.toml").read_text())
    command = [sys.executable, "-m", "chinchilla_sim.cli", "testbed", "up", str(tmp_path / "two.toml"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout and process.stderr
        said = [process.stderr.readline() for _ in range(3)]
        assert "Ctrl-C" in said[2] and said[0].startswith("node-0: ip netns exec ")
        names = [path.name for path in Path("/run/netns").iterdir()]
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()
        assert process.wait(30) == 0
    made = json.loads(text)
    traffic = made["traffic"]
    assert [made_node["name"] for made_node in made["nodes"]] == ["node-0", "node-1"]
    assert {made_node["namespace"] for made_node in made["nodes"]} <= set(names)
    assert traffic["drops"] == 0 and set(traffic["wire_bytes"].values()) == {0}
    assert not any(exists(made_node["namespace"]) for made_node in made["nodes"])


def test_what_cannot_be_emulated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines and stated links within nodes are a mistake of the scenario; a missing right one of this machine."""
    mixed = star(node("a"), {"name": "b", "device": "a100-sxm-80gb"}, bandwidth="1 Gbit/s", latency="1 ms")
    inner = star(node("a", devices=2), bandwidth="1 Gbit/s", latency="1 ms") | {"intra_node": {"bandwidth": "1 GB/s", "latency": "1 us"}}
    for cluster, where in ((mixed, "cluster.nodes"), (inner, "cluster.intra_node")):
        with pytest.raises(ScenarioError, match=where), open_testbed(scenario_of(cluster).cluster):
            pass
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    plain = scenario_of(star(node("a"), node("b"), bandwidth="1 Gbit/s", latency="1 ms"))
    with pytest.raises(RunError, match="needs root"), open_testbed(plain.cluster):
        pass
