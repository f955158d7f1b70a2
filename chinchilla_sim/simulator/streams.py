"""Computation that communication slows.

A rank computes at speed 1 while it is silent. While it sends or receives at b bytes/s its speed is

    1 / (1 + overlap_slowdown)  -  communication_s_per_byte * b,     at least LEAST_SPEED

The first term is what kernels of a collective take from a GPU (19 % on average, 40 % at worst were measured); the
second is the copying and protocol work that a CPU does for each byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import simpy

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.simulator.activities import ActivityGraph

LEAST_SPEED = 0.05


class _Stream:
    """The compute stream of one rank: what runs, how much of it is left, and how fast it goes."""

    __slots__ = ("activity", "byte_rates", "device", "left_s", "speed", "talking", "updated_s", "version")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.activity = -1
        self.left_s = self.updated_s = 0.0
        self.speed = 1.0
        self.talking = self.version = 0
        self.byte_rates: dict[tuple[int, int], float] = {}

    def wanted_speed(self) -> float:
        """What the present communication leaves."""
        speed = 1.0 / (1.0 + self.device.overlap_slowdown) if self.talking else 1.0
        return max(LEAST_SPEED, speed - self.device.communication_s_per_byte * sum(self.byte_rates.values()))


class SlowedStreams:
    """Compute streams of all ranks; `finished(activity)` is called when one has run to its end."""

    def __init__(self, env: simpy.Environment, graph: ActivityGraph, devices: Sequence[Device], finished: Callable[[int], None]) -> None:
        self.env, self.graph, self.finished = env, graph, finished
        self.streams = [_Stream(device) for device in devices]
        self.rank_of_slot = {
            slot: rank for f in graph.flows.values() for slot, rank in ((f.source, f.source_rank), (f.target, f.target_rank))
        }

    def compute(self, activity: int) -> None:
        """An activity begins on its rank's stream."""
        stream = self.streams[self.graph.ranks[activity]]
        stream.activity, stream.left_s, stream.updated_s = activity, self.graph.seconds[activity], self.env.now
        stream.speed = stream.wanted_speed()
        self._set_alarm(stream)

    def communicate(self, *ranks: int) -> None:
        """A flow of these ranks begins."""
        for rank in ranks:
            self.streams[rank].talking += 1
            self._adapt(self.streams[rank])

    def fall_silent(self, *ranks: int) -> None:
        """A flow of these ranks has ended."""
        for rank in ranks:
            self.streams[rank].talking -= 1
            self._adapt(self.streams[rank])

    def rates_changed(self, source: int, target: int, bytes_per_s: float) -> None:
        """All flows between two slots now get this rate together."""
        for slot in (source, target):
            stream = self.streams[self.rank_of_slot[slot]]
            if bytes_per_s:
                stream.byte_rates[source, target] = bytes_per_s
            else:
                stream.byte_rates.pop((source, target), None)
            self._adapt(stream)

    def _adapt(self, stream: _Stream) -> None:
        speed = stream.wanted_speed()
        if speed == stream.speed:
            return
        if stream.activity >= 0:
            stream.left_s -= (self.env.now - stream.updated_s) * stream.speed
            stream.updated_s = self.env.now
        stream.speed = speed
        if stream.activity >= 0:
            self._set_alarm(stream)

    def _set_alarm(self, stream: _Stream) -> None:
        stream.version += 1
        alarm = simpy.Timeout(self.env, max(0.0, stream.left_s) / stream.speed, (stream, stream.version))
        alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        stream: _Stream
        stream, version = alarm.value  # type: ignore[misc]
        if version == stream.version:
            activity, stream.activity = stream.activity, -1
            self.finished(activity)
