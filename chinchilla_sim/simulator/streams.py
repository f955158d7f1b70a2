"""Computation that communication slows, and ranks that share cores.

A rank computes at speed 1 while it is silent. While it sends or receives at b bytes/s its speed is

    1 / (1 + overlap_slowdown)  -  communication_s_per_byte * b,     at least LEAST_SPEED

The first term is what kernels of a collective take from a GPU (19 % on average, 40 % at worst were measured); the
second is the copying and protocol work that a CPU does for each byte.

Ranks of one host share its c cores, as the kernel's fair scheduler gives them out. Their communication at b bytes/s in all, sent and
received, takes k = communication_s_per_byte * b of them, and links that are emulated on the host fabric_s_per_byte * b / 2 (every byte is
sent and received); a of them compute at once, each at the speed

    min(1, (c - k - fabric_s_per_byte * b / 2) / a) / (1 + overlap_slowdown),     at least LEAST_SPEED

Each message takes either end's cores for communication_s_per_message and fabric_s_per_message / 2 beside: those of a host come one behind
the other, a message waits for its turn, and what is computed there meanwhile loses as much. (An idle host's seconds for a message are part
of its latency, as that was measured.)

A rank with a share q of a core below 1 (a quota of the kernel's) sustains the speed its seconds are stated for, but in portions: 1/q of it
until the work of a period of PERIOD_S is done, computation and communication together, then none until the next period. Until then it
neither sends nor takes in what has arrived; bytes under way go on, as buffers of the kernel hold them. Nothing aligns the periods of
different ranks: the k-th of n ranks with a quota has them begin (k + 1/2)/n of a period off the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import simpy

from chinchilla_sim.cluster.hosts import Host
from chinchilla_sim.cluster.topology import Device
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
        "phase",
        "pools",
        "speed",
        "talking",
        "updated_s",
        "version",
    )

    def __init__(self, device: Device, pools: Mapping[_Pool, int], phase: float) -> None:
        """`pools` are the hosts of the rank's devices, and how many of them each has."""
        self.device, self.pools, self.phase = device, pools, phase
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
        share = min(pool.share for pool in self.pools) if self.pools else 1.0
        speed = max(LEAST_SPEED, speed * share if self.pools else speed - self.communication_cores)
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
            period = int(now_s / PERIOD_S + self.phase + NO_TIME_S)
            if period > self.period:
                self.period, self.budget_s = period, PERIOD_S

    def pause_s(self) -> float:
        """Seconds until the activity has ended, or the speed may change by itself."""
        until_s = max(0.0, self.left_s) / self.speed if self.speed else float("inf")
        if self.device.core_share == 1.0:
            return until_s
        boundary_s = self._boundary_s()
        spending = self.speed + self.communication_cores / self.device.core_share
        spent_s = self.budget_s / spending if self.budget_s > NO_TIME_S and spending else float("inf")
        return min(until_s, boundary_s, spent_s)

    def held_s(self) -> float:
        """Seconds until a rank that has used up its quota may run again; 0 while it has some left."""
        return self._boundary_s() if self.device.core_share < 1.0 and self.budget_s <= NO_TIME_S else 0.0

    def _boundary_s(self) -> float:
        """Seconds from the last look to the next period."""
        return max(0.0, (self.period + 1 - self.phase) * PERIOD_S - self.updated_s)


class _Pool:
    """The cores of a host, and the streams of the ranks on it."""

    def __init__(self, host: Host) -> None:
        self.host, self.streams = host, list[_Stream]()
        self.share = 1.0
        self.free_s = 0.0

    def queue(self, work_s: float, now_s: float) -> float:
        """Seconds until messages that came before are handled; this one takes `work_s` of a core then."""
        turn_s = max(now_s, self.free_s)
        self.free_s = turn_s + work_s / self.host.cores
        return turn_s - now_s

    def backlog_s(self, now_s: float) -> float:
        """Seconds for which messages keep the cores from what is computed, where none is idle."""
        return max(0.0, self.free_s - now_s) if self.is_full else 0.0

    @property
    def is_full(self) -> bool:
        """Whether as many compute as there are cores, or more."""
        return sum(stream.pools[self] for stream in self.streams if stream.activity >= 0) >= self.host.cores

    def share_out(self) -> bool:
        """Work out what each rank that computes gets; whether that has changed."""
        computing = sum(stream.pools[self] for stream in self.streams if stream.activity >= 0)
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
        self.pool_of = {slot: pool for host, pool in ((host, _Pool(host)) for host in hosts) for slot in host.slots}
        slots_of = graph.slots or [(rank,) for rank in range(len(devices))]
        quotas = [rank for rank, device in enumerate(devices) if device.core_share < 1.0]
        phase_of = {rank: (place + 0.5) / len(quotas) for place, rank in enumerate(quotas)}
        self.streams = [
            _Stream(device, Counter(self.pool_of[slot] for slot in slots if slot in self.pool_of), phase_of.get(rank, 0.0))
            for rank, (device, slots) in enumerate(zip(devices, slots_of, strict=True))
        ]
        for stream in self.streams:
            for pool in stream.pools:
                pool.streams.append(stream)
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
        # Messages that the host still handles come first.
        stream.left_s += stream.speed * max((pool.backlog_s(self.env.now) for pool in stream.pools), default=0.0)
        self._set_alarm(stream)

    def held_s(self, rank: int) -> float:
        """Seconds until a rank that has used up its quota can send, or take in, anything."""
        stream = self.streams[rank]
        stream.advance(self.env.now)
        return stream.held_s()

    def queue_s(self, rank: int, slot: int, messages: int) -> float:
        """Seconds until the host of a slot has handled what came before these messages of a rank, which it handles next."""
        stream, pool = self.streams[rank], self.pool_of.get(slot)
        own_s = messages * stream.device.communication_s_per_message
        stream.budget_s -= own_s / stream.device.core_share
        work_s = own_s + messages * pool.host.fabric_s_per_message / 2 if pool else 0.0
        if pool is None or not work_s:
            return 0.0
        turn_s = pool.queue(work_s, self.env.now)
        self._delay(pool, work_s)
        return turn_s

    def _delay(self, pool: _Pool, work_s: float) -> None:
        """What a host's ranks compute loses so many seconds of a core, where none is idle."""
        if pool.is_full:
            for stream in [stream for stream in pool.streams if stream.activity >= 0]:
                stream.advance(self.env.now)
                stream.left_s += work_s / pool.host.cores * stream.speed
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
            if stream.pools:
                self._share_out(stream)
            else:
                self._adapt(stream)

    def _share_out(self, stream: _Stream, but: _Stream | None = None) -> None:
        """A host's cores anew, when one of its ranks starts or stops to compute, or communicates at another rate."""
        for pool in stream.pools:
            if pool.share_out():
                for other in pool.streams:
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
