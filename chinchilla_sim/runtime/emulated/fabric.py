"""The wires of an emulated cluster: what becomes of every packet between the nodes' network interfaces.

A packet follows the route of its nodes hop by hop. Every wire (one direction of a cable) takes one packet at a time at
its bandwidth, in order of arrival, and hands it on after its latency; wires of the same medium take turns:

    start = max(medium idle again, first byte here)     end = max(start + bytes / bandwidth, last byte here)

so that a packet goes on as soon as its first byte is here (packets are up to 64 KB large, because the kernel
leaves their segmentation to the last interface). A node with one cable waits with its next packet until that is idle,
as a network interface does; nothing is lost unless more than QUEUE_BYTES wait for one wire, and what is lost is counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

HEADER_BYTES = 10
"""virtio's header before every packet: whether and how it is to be segmented."""

FRAME_BYTES = 18
"""Ethernet's header and check sum around every packet on a real wire."""

PACKET_HEADER_BYTES = 52
"""IPv4 and TCP with time stamps, repeated in every segment."""

QUEUE_BYTES = 64 << 20
AHEAD_S = 0.0002
"""So much before a wire is idle its node may hand over the next packet."""

ADDRESS_START = bytes([10, 77])


@dataclass(frozen=True, slots=True)
class Wire:
    """One direction of a cable; wires of the same medium share its bandwidth."""

    source: str
    target: str
    latency_s: float
    bandwidth_bytes_per_s: float
    medium: str

    @property
    def name(self) -> str:
        """Text for tables and JSON."""
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True)
class Wiring:
    """Nodes, the wires between them, and the wires that lead from one node to another."""

    nodes: tuple[str, ...]
    wires: tuple[Wire, ...]
    routes: Mapping[tuple[int, int], tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        wires = [[wire.source, wire.target, wire.latency_s, wire.bandwidth_bytes_per_s, wire.medium] for wire in self.wires]
        return {"nodes": list(self.nodes), "wires": wires, "routes": [[*ends, list(route)] for ends, route in self.routes.items()]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Wiring:
        """Inverse of `to_dict`."""
        routes = {(source, target): tuple(route) for source, target, route in data["routes"]}
        return Wiring(tuple(data["nodes"]), tuple(Wire(*wire) for wire in data["wires"]), routes)

    def sole_wire(self, node: int) -> int | None:
        """The only wire that leaves a node, or None where there are several."""
        leaving = {route[0] for (source, _), route in self.routes.items() if source == node}
        return leaving.pop() if len(leaving) == 1 else None


def address_of(node: int) -> str:
    """IPv4 address of a node by its number.

    >>> address_of(0), address_of(255)
    ('10.77.0.1', '10.77.1.0')
    """
    return ".".join(map(str, (*ADDRESS_START, *divmod(node + 1, 256))))


def destination_of(packet: bytes) -> int | None:
    """Number of the node that a packet of a TUN device is for; None where it is none of ours."""
    start = HEADER_BYTES + 16
    if len(packet) < HEADER_BYTES + 20 or packet[HEADER_BYTES] >> 4 != 4 or packet[start : start + 2] != ADDRESS_START:
        return None
    return (packet[start + 2] << 8 | packet[start + 3]) - 1


def wire_bytes(packet: bytes) -> int:
    """Bytes that a packet takes on a real wire: its segments, each with headers.

    >>> wire_bytes(bytes(10 + 100)), wire_bytes(bytes([1, 1, 52, 0, 0xA8, 5, 0, 0, 0, 0]) + bytes(52 + 3 * 1448))
    (118, 4554)
    """
    length = len(packet) - HEADER_BYTES
    segment_bytes = packet[4] | packet[5] << 8
    segments = -(-(length - PACKET_HEADER_BYTES) // segment_bytes) if segment_bytes else 1
    return length + FRAME_BYTES + max(0, segments - 1) * (PACKET_HEADER_BYTES + FRAME_BYTES)


class _Moving(NamedTuple):
    """A packet whose last byte reaches the start of its next hop at `last_s` (after the last hop: its node)."""

    last_s: float
    number: int
    first_s: float
    route: tuple[int, ...]
    hop: int
    size: int
    target: int
    packet: bytes


class Fabric:
    """Packets on their way, and what has gone over every wire; times are the caller's."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.wire_bytes = [0] * len(wiring.wires)
        self.wire_packets = [0] * len(wiring.wires)
        self.drops = 0
        self._moving: list[_Moving] = []
        self._number = 0
        media = list(dict.fromkeys(wire.medium for wire in wiring.wires))
        self._medium = [media.index(wire.medium) for wire in wiring.wires]
        self._idle_s = [0.0] * len(media)
        self._byte_s = [1 / wire.bandwidth_bytes_per_s for wire in wiring.wires]
        self._sole = [wiring.sole_wire(node) for node in range(len(wiring.nodes))]

    def free_s(self, node: int) -> float:
        """When a node may hand over its next packet."""
        wire = self._sole[node]
        return 0.0 if wire is None else self._idle_s[self._medium[wire]] - AHEAD_S

    def admit(self, source: int, packet: bytes, at_s: float) -> None:
        """A packet has left its node."""
        target = destination_of(packet)
        route = None if target is None else self.wiring.routes.get((source, target))
        if not route or target is None:
            return
        self._number += 1
        self._enter(_Moving(at_s, self._number, at_s, route, 0, wire_bytes(packet), target, packet))

    def _enter(self, moving: _Moving) -> None:
        """Put a packet on its next wire."""
        wire = moving.route[moving.hop]
        medium = self._medium[wire]
        idle_s = self._idle_s[medium]
        if (idle_s - moving.last_s) > QUEUE_BYTES * self._byte_s[wire]:
            self.drops += 1
            return
        if moving.hop and self._medium[moving.route[moving.hop - 1]] == medium:
            start_s, end_s = moving.first_s, moving.last_s  # a bus: all its stations have heard the packet
        else:
            start_s = max(idle_s, moving.first_s)
            end_s = max(start_s + moving.size * self._byte_s[wire], moving.last_s)
            self._idle_s[medium] = end_s
        self.wire_bytes[wire] += moving.size
        self.wire_packets[wire] += 1
        latency_s = self.wiring.wires[wire].latency_s
        heapq.heappush(
            self._moving,
            moving._replace(last_s=end_s + latency_s, first_s=start_s + latency_s, hop=moving.hop + 1),
        )

    @property
    def next_s(self) -> float:
        """When `arrived` has something to do."""
        return self._moving[0].last_s if self._moving else float("inf")

    def arrived(self, now_s: float) -> list[tuple[int, bytes]]:
        """Packets that are at their nodes by now, with the node's number."""
        done = []
        while self._moving and self._moving[0].last_s <= now_s:
            moving = heapq.heappop(self._moving)
            if moving.hop < len(moving.route):
                self._enter(moving)
            else:
                done.append((moving.target, moving.packet))
        return done
