"""Computation that communication slows, and ranks that share cores.

A rank computes at speed 1 while it is silent. While it sends or receives at b bytes/s its speed is

    1 / (1 + overlap_slowdown)  -  communication_s_per_byte * b,     at least LEAST_SPEED

The first term is what kernels of a collective take from a GPU (19 % on average, 40 % at worst were measured); the
second is the copying and protocol work that a CPU does for each byte.

Ranks of one host share its c cores, as the kernel's fair scheduler gives them out. Their communication at b bytes/s in all, sent and
received, takes k = communication_s_per_byte * b of them, and links that are emulated on the host fabric_s_per_byte * b / 2 (every byte is
sent and received); a of them compute at once, each at the speed

    min(1, (c - k - fabric_s_per_byte * b / 2) / a) / (1 + overlap_slowdown),     at least LEAST_SPEED

A rank with a share q of a core below 1 (a quota of the kernel's) sustains the speed its seconds are stated for, but in portions: 1/q of it
until the work of a period of PERIOD_S is done, computation and communication together, then none until the next period. Periods begin
half a period off the step, as they would on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import simpy

from chinchilla_sim.cluster.topology import Device, Host
from chinchilla_sim.simulator.activities import ActivityGraph

LEAST_SPEED = 0.05
PERIOD_S = 0.01
"""Of the quotas that the runtime's testbed sets."""

NO_TIME_S = 1e-12


class _Stream:
    """The compute stream of one rank: what runs, how much of it is left, and how fast it goes."""

    __slots__ = (
        "activity",
        "budget_s",
        "byte_rates",
        "device",
        "left_s",
        "period",
        "pool",
        "speed",
        "talking",
        "updated_s",
        "version",
        "width",
    )

    def __init__(self, device: Device, pool: _Pool | None, width: int) -> None:
        self.device, self.pool, self.width = device, pool, width
        self.activity = -1
        self.left_s = self.updated_s = 0.0
        self.speed = 1.0
        self.talking = self.version = 0
        self.byte_rates: dict[tuple[int, int], float] = {}
        self.budget_s, self.period = PERIOD_S, 0

    @property
    def bytes_per_s(self) -> float:
        """What the rank sends and receives at present."""
        return sum(self.byte_rates.values())

    @property
    def communication_cores(self) -> float:
        """Cores that the rank's present communication keeps busy."""
        return self.device.communication_s_per_byte * self.bytes_per_s

    def wanted_speed(self) -> float:
        """What the present communication, and other ranks of the host, leave."""
        speed = 1.0 / (1.0 + self.device.overlap_slowdown) if self.talking else 1.0
        speed = max(LEAST_SPEED, speed * self.pool.share if self.pool else speed - self.communication_cores)
        if self.device.core_share == 1.0:
            return speed
        return speed / self.device.core_share if self.budget_s > NO_TIME_S else 0.0

    def advance(self, now_s: float) -> None:
        """Account for the time since the last look."""
        passed_s = now_s - self.updated_s
        self.updated_s = now_s
        worked_s = passed_s * self.speed if self.activity >= 0 else 0.0
        self.left_s -= worked_s
        if self.device.core_share < 1.0:
            self.budget_s -= worked_s + passed_s * self.communication_cores / self.device.core_share
            period = int(now_s / PERIOD_S + 0.5 + NO_TIME_S)
            if period > self.period:
                self.period, self.budget_s = period, PERIOD_S

    def pause_s(self) -> float:
        """Seconds until the activity has ended, or the speed may change by itself."""
        until_s = max(0.0, self.left_s) / self.speed if self.speed else float("inf")
        if self.device.core_share == 1.0:
            return until_s
        boundary_s = (self.period + 0.5) * PERIOD_S - self.updated_s
        spending = self.speed + self.communication_cores / self.device.core_share
        spent_s = self.budget_s / spending if self.budget_s > NO_TIME_S and spending else float("inf")
        return min(until_s, max(0.0, boundary_s), spent_s)


class _Pool:
    """The cores of a host, and the streams of the ranks on it."""

    def __init__(self, host: Host) -> None:
        self.host, self.streams = host, list[_Stream]()
        self.share = 1.0

    def share_out(self) -> bool:
        """Work out what each rank that computes gets; whether that has changed."""
        computing = sum(stream.width for stream in self.streams if stream.activity >= 0)
        fabric_s = self.host.fabric_s_per_byte / 2
        left = self.host.cores - sum(stream.communication_cores + fabric_s * stream.bytes_per_s for stream in self.streams)
        share = min(1.0, left / computing) if computing else 1.0
        changed, self.share = share != self.share, share
        return changed


class SlowedStreams:
    """Compute streams of all ranks; `finished(activity)` is called when one has run to its end."""

    def __init__(
        self,
        env: simpy.Environment,
        graph: ActivityGraph,
        devices: Sequence[Device],
        finished: Callable[[int], None],
        hosts: Sequence[Host] = (),
    ) -> None:
        self.env, self.graph, self.finished = env, graph, finished
        pool_of = {slot: pool for host, pool in ((host, _Pool(host)) for host in hosts) for slot in host.slots}
        slots_of = graph.slots or [(rank,) for rank in range(len(devices))]
        self.streams = [_Stream(device, pool_of.get(slots[0]), len(slots)) for device, slots in zip(devices, slots_of, strict=True)]
        for stream in self.streams:
            if stream.pool:
                stream.pool.streams.append(stream)
        self.rank_of_slot = {
            slot: rank for f in graph.flows.values() for slot, rank in ((f.source, f.source_rank), (f.target, f.target_rank))
        }

    def compute(self, activity: int) -> None:
        """An activity begins on its rank's stream."""
        stream = self.streams[self.graph.ranks[activity]]
        stream.advance(self.env.now)
        stream.activity, stream.left_s = activity, self.graph.seconds[activity]
        self._share_out(stream, but=stream)
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
            stream.advance(self.env.now)
            if bytes_per_s:
                stream.byte_rates[source, target] = bytes_per_s
            else:
                stream.byte_rates.pop((source, target), None)
            if stream.pool:
                self._share_out(stream)
            else:
                self._adapt(stream)

    def _share_out(self, stream: _Stream, but: _Stream | None = None) -> None:
        """A host's cores anew, when one of its ranks starts or stops to compute, or communicates at another rate."""
        if stream.pool and stream.pool.share_out():
            for other in stream.pool.streams:
                if other is not but:
                    self._adapt(other)

    def _adapt(self, stream: _Stream) -> None:
        stream.advance(self.env.now)
        speed = stream.wanted_speed()
        if speed == stream.speed and stream.device.core_share == 1.0:
            return
        stream.speed = speed
        if stream.activity >= 0:
            self._set_alarm(stream)

    def _set_alarm(self, stream: _Stream) -> None:
        stream.version += 1
        alarm = simpy.Timeout(self.env, stream.pause_s(), (stream, stream.version))
        alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        stream: _Stream
        stream, version = alarm.value  # type: ignore[misc]
        if version != stream.version:
            return
        stream.advance(self.env.now)
        if stream.left_s > NO_TIME_S and stream.device.core_share < 1.0:
            stream.speed = stream.wanted_speed()
            self._set_alarm(stream)
        else:
            activity, stream.activity = stream.activity, -1
            self.finished(activity)
            if stream.activity < 0:
                self._share_out(stream)
