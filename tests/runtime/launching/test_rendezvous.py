"""Where the launchers of a run meet."""

import json
import socket
import sys
from pathlib import Path

import pytest

from chinchilla_sim.errors import RunError, ScenarioError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.launching.launch import NodeLaunch, join_run, launch_ranks, node_processes
from chinchilla_sim.runtime.launching.rendezvous import Rendezvous, check_first_node, interface_towards, parse_rendezvous
from chinchilla_sim.scenario.load import parse_scenario


def four_ranks() -> PlanFile:
    """Two stages of two replicas on slots of two nodes; the second node comes first, and ranks alternate."""
    nodes = [{"name": name, "devices": 2, "peak": "1 Tflop/s", "memory": "8 GB"} for name in "ab"]
    network = {"bandwidth": "1 Gbit/s", "latency": "1 ms"}
    content = {"model": {"builtin": "mnist_mlp"}, "job": {"global_batch_size": 64}, "cluster": {"nodes": nodes, "network": network}}
    parts = (("linear",), ("relu", "linear_1", "loss"))
    plan = Plan(parts, ((0, 2), (1, 3)), (2, 0, 3, 1), 64, 2, "1f1b", ("none",) * 2, ("none",))
    return PlanFile(plan, parse_scenario({"name": "t", **content}, "t.toml"))


def test_processes_are_grouped_by_the_nodes_of_the_plan() -> None:
    """The node of process 0 is the first, whatever its place in the scenario; each has the processes of its slots."""
    assert node_processes(four_ranks()) == {"b": (0, 2), "a": (1, 3)}


def test_without_a_rendezvous_a_run_listens_on_loopback_only(tmp_path: Path) -> None:
    """No process of a run on this machine listens at an address that others reach."""
    launch_ranks("tests.runtime.listening", [str(tmp_path)], 2, tmp_path)
    found = json.loads((tmp_path / "listening.json").read_text())
    assert len(found) >= 2
    assert set(found) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_a_rank_that_fails_is_told_with_its_node_ranks(tmp_path: Path) -> None:
    """Every launcher has a log of its own where there are several; one keeps the short name."""
    assert NodeLaunch((0, 2), 1, 2).log(tmp_path).name == "launcher1.log"
    assert NodeLaunch((0, 1)).log(tmp_path).name == "launcher.log"
    assert NodeLaunch((0, 2), 1, 2).environment["CHINCHILLA_PROCESSES"] == "0,2"
    assert NodeLaunch((0, 1)).command("m", []).count("chinchilla_sim.runtime.launching.start") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked for as in Linux")
def test_loopback_is_reached_through_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface follows from the route, unless the user names one."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert interface_towards("127.0.0.1") == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert interface_towards("127.0.0.1") == "ib0"


def test_the_first_node_listens_at_an_address_of_its_own(tmp_path: Path) -> None:
    """An address of another machine, or a port that is taken, is an error before anything starts; other nodes need not listen."""
    check_first_node(Rendezvous("192.0.2.7", 29500, node_rank=1))
    with pytest.raises(RunError, match=r"node 0 cannot listen at --rendezvous 192\.0\.2\.7:29500.*name an address of this machine"):
        join_run(four_ranks(), tmp_path, Rendezvous("192.0.2.7", 29500, node_rank=0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError, match="free port"):
            check_first_node(Rendezvous("127.0.0.1", port, node_rank=0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "node_rank", "where"), [("10.0.0.1", 0, "--rendezvous"), ("h:0", 0, "--rendezvous"), ("h:1", -1, "--node-rank")]
)
def test_a_wrong_rendezvous_is_refused(text: str, node_rank: int, where: str) -> None:
    """It is HOST:PORT and a number from 0."""
    with pytest.raises(ScenarioError, match=where):
        parse_rendezvous(text, node_rank)


def test_a_node_that_the_plan_does_not_use_is_refused(tmp_path: Path) -> None:
    """The error lists the nodes by number."""
    with pytest.raises(ScenarioError, match="--node-rank: is 2, but the plan uses 2 nodes; 0 is b, 1 is a"):
        join_run(four_ranks(), tmp_path, Rendezvous("127.0.0.1", 29500, node_rank=2))
