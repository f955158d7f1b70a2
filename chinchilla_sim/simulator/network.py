"""Transfers that share links max-min fairly (Bertsekas & Gallager 1992, progressive filling).

A message first waits the sum of its route's latencies, then its bytes share every link of the route with all
messages present. Messages between the same two ranks travel in order on one connection, one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import simpy

from chinchilla_sim.cluster.topology import Cluster

Edge = tuple[str, str]
RELATIVE_TOLERANCE = 1e-12


@dataclass(eq=False, slots=True)
class Flow:
    """A message on its way; `on_arrival(first_byte_s)` is called when the last byte has arrived."""

    route: tuple[Edge, ...]
    remaining_bytes: float
    total_bytes: float
    on_arrival: Callable[[float], None]
    channel: tuple[int, int]
    rate: float = 0.0
    begin_s: float = 0.0


class FairNetwork:
    """All transfers of a simulation on a cluster's links."""

    def __init__(self, env: simpy.Environment, cluster: Cluster) -> None:
        self.env, self.cluster = env, cluster
        self._capacity = {edge: cluster.link(edge).bandwidth_bytes_per_s for edge in cluster.graph.edges}
        self._active: dict[Flow, None] = {}
        self._channels: dict[tuple[int, int], deque[Flow]] = {}
        self._updated_s = 0.0
        self._version = 0

    def send(self, source: int, target: int, message_bytes: float, on_arrival: Callable[[float], None]) -> None:
        """Start a message from one device slot to another now."""
        flow = Flow(self.cluster.route(source, target), message_bytes, message_bytes, on_arrival, (source, target))
        call_after(self.env, self.cluster.latency_s(source, target), lambda: self._enqueue(flow))

    def _enqueue(self, flow: Flow) -> None:
        queue = self._channels.setdefault(flow.channel, deque())
        queue.append(flow)
        if len(queue) == 1:
            self._begin(flow)

    def _begin(self, flow: Flow) -> None:
        flow.begin_s = self.env.now
        if flow.total_bytes <= 0 or all(self._capacity[edge] == float("inf") for edge in flow.route):
            self._finish(flow)
            return
        self._progress()
        self._active[flow] = None
        self._share()

    def _finish(self, flow: Flow) -> None:
        queue = self._channels[flow.channel]
        queue.popleft()
        flow.on_arrival(flow.begin_s)
        if queue:
            self._begin(queue[0])

    def _progress(self) -> None:
        """Account for the bytes that moved since the last change of rates."""
        elapsed = self.env.now - self._updated_s
        self._updated_s = self.env.now
        for flow in self._active:
            flow.remaining_bytes -= flow.rate * elapsed

    def _share(self) -> None:
        """New rates for all flows, and an alarm for the next that finishes."""
        fair_rates(self._active, self._capacity)
        self._version += 1
        if self._active:
            version = self._version
            soonest_s = min(max(0.0, flow.remaining_bytes) / flow.rate for flow in self._active)
            call_after(self.env, soonest_s, lambda: self._alarm(version))

    def _alarm(self, version: int) -> None:
        if version != self._version:
            return
        self._progress()
        done = [flow for flow in self._active if flow.remaining_bytes <= RELATIVE_TOLERANCE * flow.total_bytes]
        if not done:
            # The clock's last bit ate the remainder: the flow that set this alarm has finished.
            done = [min(self._active, key=lambda flow: flow.remaining_bytes / flow.rate)]
        for flow in done:
            del self._active[flow]
        self._share()
        for flow in done:
            self._finish(flow)


def fair_rates(flows: Iterable[Flow], capacity: dict[Edge, float]) -> None:
    """Set `rate` of every flow to its max-min fair share: fill all equally, freeze those on the tightest link, repeat."""
    users: dict[Edge, dict[Flow, None]] = {}
    unfrozen: dict[Flow, None] = {}
    for flow in flows:
        unfrozen[flow] = None
        for edge in flow.route:
            users.setdefault(edge, {})[flow] = None
    left = {edge: capacity[edge] for edge in users}
    while unfrozen:
        tightest = min(users, key=lambda edge: left[edge] / len(users[edge]))
        rate = max(0.0, left[tightest]) / len(users[tightest])
        for flow in list(users[tightest]):
            flow.rate = rate
            del unfrozen[flow]
            for edge in flow.route:
                left[edge] -= rate
                del users[edge][flow]
                if not users[edge]:
                    del users[edge]


def call_after(env: simpy.Environment, delay_s: float, function: Callable[[], None]) -> None:
    """Run `function` when `delay_s` have passed."""
    event = env.timeout(delay_s)
    event.callbacks.append(lambda _event: function())
