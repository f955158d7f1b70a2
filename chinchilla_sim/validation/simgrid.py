"""SimGrid's network cases played on our network: how far is every finish time from SimGrid's `fair` mode?

A case is one JSON file: `platform` (hosts with flop/s, directed links with bandwidth, latency and policy SHARED or FATPIPE,
routes), `tasks` (a DAG of `comm` and `exec` with dependencies and release times) and `results.fair.finish_s` per task. `fair` is
max-min sharing after the sum of the route's latencies (SimGrid 4.1, Casanova et al. 2014). Each communication gets a connection of
its own, because SimGrid does not serialise messages of one pair; a FATPIPE link gives each flow its full bandwidth, so every flow gets
a copy of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simpy

from chinchilla_sim.cluster.topology import Link
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.simulator.network import Edge, FairNetwork, call_after

TOLERANCE = 1e-6
"""A case whose worst finish time is further off than this share of it has failed."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The largest relative difference of a finish time in one case."""

    case: str
    worst_relative_error: float

    @property
    def passed(self) -> bool:
        """Whether every finish time is SimGrid's."""
        return self.worst_relative_error <= TOLERANCE


def check_cases(folder: Path) -> list[CaseResult]:
    """Every case of a folder, by name; ScenarioError lists all files that cannot be read or played."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ScenarioError([Mistake("", "holds no *.json files", "name the folder of the cases")], str(folder))
    results, mistakes = [], []
    for path in paths:
        try:
            case = json.loads(path.read_text())
            results.append(CaseResult(str(case.get("name", path.stem)), worst_error(case)))
        except (OSError, ValueError) as error:
            mistakes.append(Mistake(path.name, f"cannot be read: {error}", "give one JSON object per file"))
        except (KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
            what = f"is no case: {type(error).__name__} {error}"
            mistakes.append(Mistake(path.name, what, "see platform, tasks and results.fair of the other cases"))
    if mistakes:
        raise ScenarioError(mistakes, str(folder))
    return results


@dataclass
class _Platform:
    """What FairNetwork asks of a cluster, for the links and routes of a case; rank `n` is the n-th communication."""

    links: dict[Edge, Link] = field(default_factory=dict)
    routes: dict[int, tuple[Edge, ...]] = field(default_factory=dict)

    @property
    def graph(self) -> _Platform:
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


def _platform_of(case: dict[str, Any]) -> _Platform:
    """Links and the route of every communication; a copy of each FATPIPE link per flow."""
    described = {link["name"]: link for link in case["platform"]["links"]}
    routes = {(route["src"], route["dst"]): route["links"] for route in case["platform"]["routes"]}
    platform = _Platform()
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


def finish_times_s(case: dict[str, Any]) -> list[float]:
    """Finish time of every task: it starts when its dependencies have finished and its release time has come."""
    env = simpy.Environment()
    network = FairNetwork(env, _platform_of(case))  # type: ignore[arg-type]
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
    if len(finish_s) < len(tasks):
        raise ValueError(f"{len(tasks) - len(finish_s)} tasks never start: their dependencies wait for each other")
    return [finish_s[task["id"]] for task in case["tasks"]]


def worst_error(case: dict[str, Any]) -> float:
    """Largest relative difference of a finish time."""
    expected = [float(finish_s) for finish_s in case["results"]["fair"]["finish_s"]]
    pairs = zip(finish_times_s(case), expected, strict=True)
    return max((abs(ours - theirs) / theirs for ours, theirs in pairs if theirs > 0), default=0.0)
