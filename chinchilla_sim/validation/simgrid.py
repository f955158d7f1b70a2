"""SimGrid's network cases played on our network: how far is every finish time from SimGrid's `fair` mode?

A case is one JSON file: `platform` (hosts with flop/s, directed links with bandwidth, latency and policy SHARED or FATPIPE,
routes), `tasks` (a DAG of `comm` and `exec` with dependencies and release times) and `results.fair.finish_s` per task. `fair` is
max-min sharing after the sum of the route's latencies (SimGrid 4.1, Casanova et al. 2014). Messages of one pair travel side by side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.errors import Mistake, RunError, ScenarioError
from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, FlowSpec
from chinchilla_sim.simulator.engine import play_events

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
        what = "holds no *.json files" if folder.is_dir() else "it is a file" if folder.exists() else "there is no such folder"
        raise ScenarioError([Mistake("", what, "name the folder of the cases")], str(folder))
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


def finish_times_s(case: dict[str, Any]) -> list[float]:
    """Finish time of every task: it starts when its dependencies have finished and its release time has come."""
    platform, tasks = _Platform(case["platform"]), case["tasks"]
    graph = ActivityGraph(0)
    numbers: dict[int, int] = {}
    for task in tasks:
        if task["kind"] == "exec":
            numbers[task["id"]] = graph.add(task["flops"] / platform.speed[task["host"]])
        else:
            pair = platform.host[task["src"]], platform.host[task["dst"]]
            numbers[task["id"]] = graph.add_flow(platform.cluster, FlowSpec(*pair, task["bytes"], *pair))
    for task in tasks:
        latency_s = 0.0
        if task["kind"] == "comm":
            latency_s = platform.cluster.latency_s(platform.host[task["src"]], platform.host[task["dst"]])
        # A flow waits its latency after it has started, and it starts no earlier than it is released.
        start = graph.join([numbers[dep] for dep in sorted(set(task["deps"]))], always=True)
        graph.link(NO_ACTIVITY, start, task["release_s"])
        graph.link(start, numbers[task["id"]], latency_s)
    try:
        times = play_events(graph, platform.cluster)
    except RunError as error:
        raise ValueError("tasks never start: their dependencies wait for each other") from error
    return [times.finish_s[numbers[task["id"]]] for task in tasks]


class _Platform:
    """A case's platform as a cluster of one device per host, with its own routes."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.speed = {host["name"]: host["speed_flops"] for host in data["hosts"]}
        self.host = {name: index for index, name in enumerate(self.speed)}
        graph: nx.DiGraph[str] = nx.DiGraph()
        edge_of = {}
        for link in data["links"]:
            edge_of[link["name"]] = edge = (link["name"], "end of " + link["name"])
            graph.add_edge(*edge, link=Link(link["latency_s"], link["bandwidth_Bps"], fat_pipe=link["policy"] == "FATPIPE"))
        routes = {
            (self.host[route["src"]], self.host[route["dst"]]): tuple(edge_of[name] for name in route["links"]) for route in data["routes"]
        }
        devices = tuple(Device(name, speed, 0.0) for name, speed in self.speed.items())
        self.cluster = Cluster(graph, tuple(self.speed), devices, Backend("plain"), fixed_routes=routes)


def worst_error(case: dict[str, Any]) -> float:
    """Largest relative difference of a finish time."""
    expected = [float(finish_s) for finish_s in case["results"]["fair"]["finish_s"]]
    pairs = zip(finish_times_s(case), expected, strict=True)
    return max((abs(ours - theirs) / theirs for ours, theirs in pairs if theirs > 0), default=0.0)
