"""Emulated clusters for tests: they need Linux and root, and are skipped with the reason elsewhere (in CI as root, a skip is a failure)."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.runtime.emulated.namespaces import why_unavailable
from chinchilla_sim.runtime.emulated.testbed import Testbed, open_testbed
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.schema import Scenario

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def needs_testbed() -> None:
    """Skip where no cluster can be emulated."""
    why = why_unavailable()
    if why and os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(f"testbeds must work in CI, but this machine {why}")
    if why:
        pytest.skip(f"an emulated cluster {why}")


def scenario_of(cluster: dict[str, Any], **job: object) -> Scenario:
    """The article's network, cut anywhere, on some cluster."""
    content = {
        "name": "testbed",
        "model": {"builtin": "mnist_mlp"},
        "job": {"global_batch_size": 64, "optimizer": "sgd", "learning_rate": 0.1, "steps": 12} | job,
        "cluster": cluster,
    }
    return parse_scenario(content, "testbed")


def node(name: str, **keys: object) -> dict[str, Any]:
    """A node of this machine's cores."""
    return {"name": name, "device": "this-machine"} | keys


def star(*nodes: dict[str, Any], bandwidth: str, latency: str) -> dict[str, Any]:
    """Nodes at one switch."""
    return {"nodes": list(nodes), "network": {"bandwidth": bandwidth, "latency": latency, "backend": "gloo"}}


UNEQUAL = {
    "nodes": [node("near", cpu_share=0.1), node("other"), node("slow")],
    "switches": ["core"],
    "network": {"topology": "links", "backend": "gloo"},
    "links": [
        {"between": ["near", "core"], "bandwidth": "100 Mbit/s", "latency": "5 ms"},
        {"between": ["core", "other"], "bandwidth": "100 Mbit/s", "latency": "5 ms"},
        {"between": ["core", "slow"], "bandwidth": "20 Mbit/s", "latency": "15 ms"},
    ],
}
"""Two nodes with links of 100 Mbit/s and 5 ms, one behind 20 Mbit/s and 15 ms."""


@pytest.fixture(scope="session")
def unequal() -> Iterator[Testbed]:
    """A testbed of three nodes with unequal links."""
    with open_testbed(scenario_of(UNEQUAL).cluster) as bed:
        yield bed


@pytest.fixture
def exists() -> Callable[[str], bool]:
    """Whether anything of a node is left."""

    def left(name: str) -> bool:
        return Path("/run/netns", name).exists() or any(Path("/sys/fs/cgroup").glob(f"**/{name}d*"))

    return left
