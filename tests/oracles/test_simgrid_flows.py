"""Oracle: FairNetwork against SimGrid 4.1 (`fair`: pure max-min sharing after the sum of the route's latencies).

Cases are read from $CHINCHILLA_DATA (default ../shared/data); see its README.md, section simgrid. Every task of a case is
played by a small driver; each communication gets a connection of its own, because SimGrid does not serialise messages of
one pair. A FATPIPE link gives each flow its full bandwidth: the fake cluster gives every flow its own copy of the link.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import simpy

from chinchilla_sim.cluster.topology import Link
from chinchilla_sim.simulator.network import Edge, FairNetwork, call_after

SHARED = Path(__file__).parents[3] / "shared"
FOLDER = Path(os.environ.get("CHINCHILLA_DATA", SHARED / "data"))
CASES = sorted((FOLDER / "simgrid" / "cases").glob("*.json"))
TOLERANCE = 1e-6


@dataclass
class Platform:
    """What FairNetwork asks of a cluster, for the links and routes of a case; rank `n` is the n-th communication."""

    links: dict[Edge, Link] = field(default_factory=dict)
    routes: dict[int, tuple[Edge, ...]] = field(default_factory=dict)

    @property
    def graph(self) -> "Platform":
        """The links hang on a graph."""
        return self

    @property
    def edges(self) -> list[Edge]:
        """All links."""
        return list(self.links)

    def link(self, edge: Edge) -> Link:
        """A link by its name."""
        return self.links[edge]

    def route(self, source: int, _target: int) -> tuple[Edge, ...]:
        """The links of one communication."""
        return self.routes[source]

    def latency_s(self, source: int, _target: int) -> float:
        """Sum over the route."""
        return sum(self.links[edge].latency_s for edge in self.routes[source])


def platform_of(case: dict[str, Any]) -> Platform:
    """Links and the route of every communication; a copy of each FATPIPE link per flow."""
    described = {link["name"]: link for link in case["platform"]["links"]}
    routes = {(route["src"], route["dst"]): route["links"] for route in case["platform"]["routes"]}
    platform = Platform()
    for task in case["tasks"]:
        if task["kind"] != "comm":
            continue
        edges = []
        for name in routes[(task["src"], task["dst"])]:
            edge = (name, str(task["id"]) if described[name]["policy"] == "FATPIPE" else "")
            platform.links[edge] = Link(described[name]["latency_s"], described[name]["bandwidth_Bps"])
            edges.append(edge)
        platform.routes[task["id"]] = tuple(edges)
    return platform


def play(case: dict[str, Any]) -> list[float]:
    """Finish time of every task: it starts when its dependencies have finished and its release time has come."""
    env = simpy.Environment()
    network = FairNetwork(env, platform_of(case))  # type: ignore[arg-type]
    tasks = {task["id"]: task for task in case["tasks"]}
    speed = {host["name"]: host["speed_flops"] for host in case["platform"]["hosts"]}
    waiting = {key: len(set(task["deps"])) for key, task in tasks.items()}
    children: dict[int, list[int]] = {key: [] for key in tasks}
    finish_s: dict[int, float] = {}
    for key, task in tasks.items():
        for parent in set(task["deps"]):
            children[parent].append(key)

    def finish(key: int) -> None:
        finish_s[key] = env.now
        for child in children[key]:
            waiting[child] -= 1
            if not waiting[child]:
                release(child)

    def release(key: int) -> None:
        call_after(env, max(0.0, tasks[key]["release_s"] - env.now), lambda: start(key))

    def start(key: int) -> None:
        task = tasks[key]
        if task["kind"] == "exec":
            call_after(env, task["flops"] / speed[task["host"]], lambda: finish(key))
        else:
            network.send(key, key, task["bytes"], lambda _: finish(key))

    for key in tasks:
        if not waiting[key]:
            release(key)
    env.run()
    return [finish_s[task["id"]] for task in case["tasks"]]


def worst_error(case: dict[str, Any]) -> float:
    """Largest relative difference of a finish time."""
    expected = case["results"]["fair"]["finish_s"]
    return max(abs(ours - theirs) / theirs for ours, theirs in zip(play(case), expected, strict=True) if theirs > 0)


def test_cases_are_there() -> None:
    """In CI beside a shared folder the cases must be found; elsewhere their absence is only said."""
    if CASES:
        assert {"ring_allreduce_8", "fatpipe", "random_00"} <= {path.stem for path in CASES}
    elif os.environ.get("CI") and SHARED.exists():
        pytest.fail(f"{SHARED} exists, but there are no SimGrid cases in {FOLDER / 'simgrid' / 'cases'}")
    else:
        pytest.skip(f"no SimGrid cases in {FOLDER}: set CHINCHILLA_DATA")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_finish_time_is_simgrids(path: Path) -> None:
    """All transfers and computations of a case end when SimGrid says, to 1e-6 of the time."""
    assert worst_error(json.loads(path.read_text())) < TOLERANCE
