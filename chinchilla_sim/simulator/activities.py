"""Activities: a program taken apart into what takes time and what it waits for; both evaluators play the same graph.

An activity starts when all that it waits for has finished, each with its own lag (the latency of a route, a "ready"
on its way back), and takes its seconds. A flow takes instead what the network lets it: its seconds are those on
idle links. What occupies a rank's compute stream follows its predecessor on that stream, so no stream overlaps
itself by construction.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import DeadlockError
from chinchilla_sim.timeline import Category, MemorySample, Span, Stream, Timeline

NO_ACTIVITY = -1


class FlowSpec(NamedTuple):
    """Bytes between two device slots, of two ranks that feel them while they compute, in so many messages; `weight` is their priority on
    shared links.
    """

    source: int
    target: int
    wire_bytes: float
    source_rank: int
    target_rank: int
    weight: float = 1.0
    messages: int = 1


class Record(NamedTuple):
    """A span to be: from the start of one activity to the finish of another."""

    rank: int
    stream: Stream
    category: Category
    label: str
    first: int
    last: int
    moved_bytes: float = 0.0


class Holding(NamedTuple):
    """Bytes that a rank takes or frees when an activity starts or has finished."""

    activity: int
    at_end: bool
    change_bytes: float


class Links(NamedTuple):
    """Who waits for whom in compressed rows: row i holds the `others` of activity i from starts[i] to starts[i + 1]."""

    starts: list[int]
    others: list[int]
    lags_s: list[float]


@dataclass
class ActivityGraph:
    """Activities by number; filled with `add` and `link`, then only read.

    `seconds[i]`, `ranks[i]` (whose compute stream it occupies, or -1), `flows[i]` of those that are flows. `slots` are the devices of
    each rank, where it is known.
    """

    rank_count: int
    seconds: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    flows: dict[int, FlowSpec] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    held_bytes: list[float] = field(default_factory=list)
    holdings: list[list[Holding]] = field(default_factory=list)
    slots: list[tuple[int, ...]] = field(default_factory=list)
    _from: array[int] = field(default_factory=lambda: array("i"))
    _to: array[int] = field(default_factory=lambda: array("i"))
    _lag_s: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.seconds)

    def add(self, seconds: float, rank: int = NO_ACTIVITY, after: int = NO_ACTIVITY) -> int:
        """A new activity, behind another one if named."""
        number = len(self.seconds)
        self.seconds.append(seconds)
        self.ranks.append(rank)
        if after >= 0:
            self.link(after, number)
        return number

    def link(self, before: int, behind: int, lag_s: float = 0.0) -> None:
        """`behind` starts no earlier than `lag_s` after `before` has finished; NO_ACTIVITY stands for the start of the step."""
        self._from.append(before)
        self._to.append(behind)
        self._lag_s.append(lag_s)

    def add_flow(self, cluster: Cluster, flow: FlowSpec) -> int:
        """A flow, with the seconds that it takes on idle links."""
        bandwidth = cluster.bandwidth_bytes_per_s(flow.source, flow.target)
        number = self.add(flow.wire_bytes / bandwidth)
        if flow.wire_bytes > 0 and bandwidth < float("inf"):
            self.flows[number] = flow
        return number

    def join(self, activities: Iterable[int], always: bool = False) -> int:
        """An activity of no length behind several; a single one needs none (unless `always`)."""
        several = list(activities)
        if len(several) == 1 and not always:
            return several[0]
        number = self.add(0.0)
        for activity in several:
            self.link(activity, number)
        return number

    def arcs(self) -> list[tuple[int, int, float]]:
        """Every link: before, behind, lag."""
        return list(zip(self._from, self._to, self._lag_s, strict=True))

    def retimed(self, seconds: Sequence[float], arcs: Iterable[tuple[int, int, float]]) -> ActivityGraph:
        """The same activities with other seconds and links; flows take their seconds and no longer share the network."""
        graph = ActivityGraph(self.rank_count, list(seconds), self.ranks, {}, self.records, self.held_bytes, self.holdings)
        for before, behind, lag_s in arcs:
            graph.link(before, behind, lag_s)
        return graph

    def successors(self) -> Links:
        """Row i holds those that wait for activity i; the last row those that wait for the start of the step."""
        before = np.frombuffer(self._from, dtype=np.int32) if self._from else np.zeros(0, dtype=np.int32)
        return self._rows(np.where(before < 0, len(self), before), self._to)

    def predecessors(self) -> Links:
        """Row i holds what activity i waits for; NO_ACTIVITY is the start of the step."""
        return self._rows(self._to, self._from)

    def _rows(self, keys: ArrayLike, others: ArrayLike) -> Links:
        key = np.asarray(keys, dtype=np.int32)
        order = np.argsort(key, kind="stable")
        starts = np.searchsorted(key[order], np.arange(len(self) + 2))
        return Links(
            starts.tolist(),
            np.asarray(others, dtype=np.int32)[order].tolist(),
            np.asarray(self._lag_s)[order].tolist(),
        )

    def waits(self) -> list[int]:
        """How many links each activity waits for."""
        return np.bincount(np.asarray(self._to, dtype=np.int64), minlength=len(self)).tolist() if self._to else [0] * len(self)

    def in_order(self) -> list[int]:
        """Activities so that each comes behind all that it waits for; DeadlockError names a cycle where there is none."""
        successors, waits = self.successors(), self.waits()
        starts, others, _ = successors
        ready = [number for number, count in enumerate(waits) if count == 0]
        for behind in others[starts[len(self)] :]:
            waits[behind] -= 1
            if waits[behind] == 0:
                ready.append(behind)
        for number in ready:  # grows while it is read
            for behind in others[starts[number] : starts[number + 1]]:
                waits[behind] -= 1
                if waits[behind] == 0:
                    ready.append(behind)
        if len(ready) < len(self):
            raise self.deadlock(set(ready))
        return ready

    def deadlock(self, finished: set[int]) -> DeadlockError:
        """An error that tells one cycle of activities that wait for each other."""
        starts, others, _ = self.predecessors()
        number = next(number for number in range(len(self)) if number not in finished)
        path: list[int] = []
        while number not in path:
            path.append(number)
            number = next(other for other in others[starts[number] : starts[number + 1]] if other >= 0 and other not in finished)
        names = {record.last: f"{record.label} of rank {record.rank}" for record in reversed(self.records)}
        ranks = {record.last: record.rank for record in reversed(self.records)}
        waiting = path[path.index(number) :]
        cycle = [names.get(step, "a join") for step in waiting]
        cycle = [name for name in cycle if name != "a join"] or ["a join"]
        cycle = [name for index, name in enumerate(cycle) if name != cycle[index - 1]] or cycle[:1]
        return DeadlockError(" waits for ".join([*cycle, cycle[0]]), tuple(sorted({ranks[step] for step in waiting if step in ranks})))


class Times(NamedTuple):
    """When each activity started and finished, in seconds."""

    start_s: Sequence[float]
    finish_s: Sequence[float]


def timeline_of(graph: ActivityGraph, times: Times) -> Timeline:
    """Spans and memory of one playing of the graph."""
    start_s, finish_s = times
    spans = [Span(r.rank, r.stream, r.category, r.label, start_s[r.first], finish_s[r.last], r.moved_bytes) for r in graph.records]
    return Timeline(graph.rank_count, tuple(spans), tuple(_memory(graph, times)))


def _memory(graph: ActivityGraph, times: Times) -> list[MemorySample]:
    samples = []
    for rank, held in enumerate(graph.held_bytes):
        samples.append(MemorySample(rank, 0.0, held))
        for activity, at_end, change in graph.holdings[rank]:
            held += change
            samples.append(MemorySample(rank, (times.finish_s if at_end else times.start_s)[activity], held))
    return samples


def makespan_s(times: Times) -> float:
    """From the first start to the last finish."""
    return max(times.finish_s, default=0.0) - min(times.start_s, default=0.0)
