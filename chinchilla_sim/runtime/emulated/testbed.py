"""An emulated cluster on this machine: every node of a scenario in a network namespace of its own, behind links as the scenario states.

`open_testbed` is a context manager; what it makes goes away with it, or with this process, however that ends. Needs Linux and root.
Rates and latencies hold for whole routes; several devices of a node talk over its loopback, as fast as that is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from chinchilla_sim.cluster.build import build_cluster, emulated
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import Mistake, RunError, ScenarioError
from chinchilla_sim.runtime.emulated.fabric import Wire, Wiring
from chinchilla_sim.runtime.emulated.namespaces import GUARDIAN, kernel_drops, leftovers, processes_in, remove_node, why_unavailable
from chinchilla_sim.scenario.cluster import ClusterSpec

END_S = 30.0


@dataclass(frozen=True)
class Host:
    """One emulated node; `cgroups` limit its devices, one each (none where they have whole cores)."""

    name: str
    namespace: str
    address: str
    cgroups: Sequence[str]

    def command(self, command: Sequence[str]) -> list[str]:
        """The command, to be run inside the node's network."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    def processes(self) -> list[int]:
        """What runs in it."""
        return processes_in(self.namespace)


@dataclass(frozen=True)
class Traffic:
    """What has gone over every wire ("a -> b") since the testbed was set up, with all headers, and packets that were lost."""

    wire_bytes: Mapping[str, int]
    wire_packets: Mapping[str, int]
    drops: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


class Testbed:
    """A running testbed: its hosts by name of their node."""

    __test__ = False  # for pytest, which would collect it

    def __init__(self, guardian: subprocess.Popen[str], hosts: Mapping[str, Host]) -> None:
        self.hosts = hosts
        self._guardian = guardian

    @property
    def guardian(self) -> int:
        """The process that moves the packets and cleans up."""
        return self._guardian.pid

    def traffic(self) -> Traffic:
        """Counts so far."""
        _tell(self._guardian, "traffic")
        counts = _hear(self._guardian)
        at_interfaces = sum(kernel_drops(host.namespace) for host in self.hosts.values())
        return Traffic(counts["wire_bytes"], counts["wire_packets"], counts["drops"] + at_interfaces)

    def close(self) -> None:
        """Kill what runs in the nodes and remove them."""
        _part(self._guardian)


@contextmanager
def open_testbed(spec: ClusterSpec) -> Iterator[Testbed]:
    """The scenario's cluster, emulated; ScenarioError where it cannot be, RunError where this machine cannot."""
    check_emulated(spec)
    request = {"owner": os.getpid(), "wiring": wiring_of(build_cluster(spec, "fp32")).to_dict(), "shares": _shares(spec)}
    guardian = subprocess.Popen(
        [sys.executable, "-m", GUARDIAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )  # fmt: skip
    try:
        _tell(guardian, json.dumps(request))
        hosts = [Host(**node) for node in _hear(guardian)["nodes"]]
        yield Testbed(guardian, {host.name: host for host in hosts})
    finally:
        _part(guardian)


def check_emulated(spec: ClusterSpec) -> None:
    """ScenarioError where not all of a cluster can be emulated, RunError where this machine cannot."""
    mistakes = []
    if not emulated(spec):
        cure = 'write device = "this-machine" for every node, or cluster.kind = "this-machine"'
        mistakes.append(Mistake("cluster.nodes", "there are other machines than this one among them", cure))
    if spec.intra_node:
        cure = "leave it out: devices of a node talk over the loopback of this machine"
        mistakes.append(Mistake("cluster.intra_node", "cannot be emulated", cure))
    if mistakes:
        raise ScenarioError(mistakes)
    why = why_unavailable()
    if why:
        raise RunError(f"the nodes are emulated on this machine, but it {why}")


def wiring_of(cluster: Cluster) -> Wiring:
    """Nodes and cables of a cluster, without what is inside the nodes."""
    nodes = tuple(dict.fromkeys(cluster.node_of(slot) for slot in range(cluster.rank_count)))
    slots = set(cluster.slots)
    edges = [edge for edge in cluster.graph.edges if not slots & set(edge)]
    wires = []
    for source_name, target_name in edges:
        link = cluster.link((source_name, target_name))
        medium = link.medium or f"{source_name} -> {target_name}"
        wires.append(Wire(source_name, target_name, link.latency_s, link.bandwidth_bytes_per_s, medium))
    number = {edge: index for index, edge in enumerate(edges)}
    first = [cluster.first_slot(node) or 0 for node in nodes]
    routes = {
        (source, target): tuple(number[edge] for edge in cluster.route(first[source], first[target]) if edge in number)
        for source in range(len(nodes))
        for target in range(len(nodes))
        if source != target
    }
    return Wiring(nodes, tuple(wires), routes)


def _shares(spec: ClusterSpec) -> dict[str, list[float]]:
    """Share of a core of every device, by node; none where they get as much as they take."""
    return {name: [node.cpu_share] * node.devices if node.cpu_share < 1 else [] for node in spec.nodes for name in node.names()}


def remove_leftovers() -> list[str]:
    """Remove nodes that a killed testbed left behind; returns their names."""
    why = why_unavailable()
    if why:
        raise RunError(f"testbeds cannot be removed: this {why}")
    names = list(leftovers())
    for name in names:
        remove_node(name)
    return names


def _tell(guardian: subprocess.Popen[str], line: str) -> None:
    try:
        _pipe(guardian.stdin).write(line + "\n")
        _pipe(guardian.stdin).flush()
    except BrokenPipeError as error:
        raise RunError("the testbed is gone: its guardian process was killed; remove the rest with `chinchilla testbed down`") from error


def _hear(guardian: subprocess.Popen[str]) -> dict[str, Any]:
    line = _pipe(guardian.stdout).readline()
    if not line:
        raise RunError("the testbed is gone: its guardian process was killed; remove the rest with `chinchilla testbed down`")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise RunError(answer["error"])
    return answer


def _part(guardian: subprocess.Popen[str]) -> None:
    """Close its input and wait until it has cleaned up."""
    with suppress(BrokenPipeError):
        _pipe(guardian.stdin).close()
    try:
        guardian.wait(END_S)
    except subprocess.TimeoutExpired:
        guardian.kill()
        guardian.wait()
        remove_leftovers()
    _pipe(guardian.stdout).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
