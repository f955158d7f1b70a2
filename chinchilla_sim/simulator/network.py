"""Transfers on a simulated network: links shared max-min fairly, all changes of one instant taken together.

Two directed edges with the same `medium` share one capacity (half duplex, a bus). A FATPIPE link gives every flow its
whole bandwidth. Latencies are the caller's business: a flow's bytes move from `start` on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import simpy

from chinchilla_sim.cluster.topology import Cluster, Link
from chinchilla_sim.simulator.sharing import INFINITE, FairSharing, Group, Route

Edge = tuple[str, str]
BEHIND_ALL_OTHERS = 2
"""SimPy's priority of the sharing: after every event of the same instant."""


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link (both directions of a cable) has `factor` times its bandwidth from `start_s` to `end_s`; 0 drops it."""

    between: Edge
    start_s: float
    end_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Others move so many bytes/s (less where the links do not give them) from one slot to another all the time."""

    source: int
    target: int
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Disturbed:
    """What others do to the network."""

    changes: tuple[LinkChange, ...] = ()
    traffic: tuple[Traffic, ...] = ()


class FairNetwork:
    """All flows of a simulation; `finished(payload)` is called when the last byte of one has arrived.

    `rates_changed(source, target, bytes_per_s)` tells what all flows between two slots get from now on.
    """

    def __init__(
        self,
        env: simpy.Environment,
        cluster: Cluster,
        finished: Callable[[Any], None],
        rates_changed: Callable[[int, int, float], None] | None = None,
    ) -> None:
        self.env, self.cluster, self.finished, self.rates_changed = env, cluster, finished, rates_changed
        self.numbers: dict[Edge | str, int] = {}
        # Number of the capacity that an edge shares (None: none), and its link.
        self._edges: dict[Edge, tuple[int | None, Link]] = {}
        capacities: list[float] = []
        for source, target, link in cluster.graph.edges(data="link"):
            key = link.medium or (source, target)
            if key not in self.numbers:
                self.numbers[key] = len(capacities)
                capacities.append(link.bandwidth_bytes_per_s)
            self.numbers[source, target] = self.numbers[key]
            self._edges[source, target] = (self.numbers[key] if _is_shared(link) else None, link)
        self.sharing = FairSharing(capacities)
        self._groups: dict[tuple[int, int, float], Group] = {}
        self._share_is_due = False
        self._alarm_s = INFINITE

    def start(self, source: int, target: int, flow_bytes: float, payload: Any, weight: float = 1.0) -> None:
        """Bytes from one slot to another begin to move; `weight` is their priority against others on a link."""
        key = (source, target, weight)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = self.sharing.group(self._route(source, target), weight)
        self.sharing.start(group, flow_bytes, self.env.now, payload)
        self._share_soon()

    def disturb(self, disturbed: Disturbed) -> None:
        """Let others use the network, and links change when their time has come."""
        for traffic in disturbed.traffic:
            route = self._route(traffic.source, traffic.target)
            limited = replace(route, limit_bytes_per_s=min(route.limit_bytes_per_s, traffic.bandwidth_bytes_per_s), ends_at=(-1, -1))
            self.sharing.start(self.sharing.group(limited), INFINITE, self.env.now)
        for change in disturbed.changes:
            for edge in (change.between, change.between[::-1]):
                if edge in self.numbers:
                    bandwidth = self.cluster.link(edge).bandwidth_bytes_per_s
                    self._set_later(change.start_s, edge, change.factor * bandwidth)
                    self._set_later(change.end_s, edge, bandwidth)

    def _set_later(self, time_s: float, edge: Edge, bandwidth_bytes_per_s: float) -> None:
        event = simpy.Timeout(self.env, time_s)
        event.callbacks.append(lambda _: self.set_bandwidth(edge, bandwidth_bytes_per_s))

    def set_bandwidth(self, edge: Edge, bandwidth_bytes_per_s: float) -> None:
        """A link is slower or faster from now on."""
        self.sharing.set_capacity(self.numbers[edge], bandwidth_bytes_per_s)
        self._share_soon()

    def _route(self, source: int, target: int) -> Route:
        edges = [self._edges[edge] for edge in self.cluster.route(source, target)]
        shared = dict.fromkeys(number for number, _ in edges if number is not None)
        limit = (
            INFINITE
            if len(shared) == len(edges)
            else min((link.bandwidth_bytes_per_s for _, link in edges if link.fat_pipe), default=INFINITE)
        )
        return Route(tuple(shared), limit, (source, target))

    def _share_soon(self) -> None:
        if not self._share_is_due:
            self._share_is_due = True
            event = simpy.Event(self.env)
            event._ok, event._value = True, None
            event.callbacks = [self._share]
            self.env.schedule(event, priority=BEHIND_ALL_OTHERS)  # type: ignore[arg-type]

    def _share(self, _event: simpy.Event | None = None) -> None:
        self._share_is_due = False
        changed = self.sharing.share(self.env.now)
        if self.rates_changed:
            for group in changed:
                if group.ends_at[0] >= 0:
                    self.rates_changed(*group.ends_at, group.rate * group.count)
        self._set_alarm()

    def _set_alarm(self) -> None:
        due_s = self.sharing.next_s()
        if due_s < self._alarm_s:
            self._alarm_s = due_s
            alarm = simpy.Timeout(self.env, max(0.0, due_s - self.env.now), due_s)
            alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm.value == self._alarm_s:
            self._alarm_s = INFINITE
        done = self.sharing.finish(self.env.now)
        if done:
            self._share_soon()
            for payload in done:
                self.finished(payload)
        else:
            self._set_alarm()


def _is_shared(link: Link) -> bool:
    return not link.fat_pipe and link.bandwidth_bytes_per_s < INFINITE
