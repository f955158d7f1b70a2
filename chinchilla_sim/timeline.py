"""The common currency of simulator and runtime: what every rank did, when, and how many bytes it moved.

A span is one interval on one rank and one stream. The streams of a rank are `compute` (what its main
thread executes), `send`, `receive` and `collective`. Reports and comparisons know only timelines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Stream = Literal["compute", "send", "receive", "collective"]
Category = Literal["input", "forward", "backward", "codec", "optimizer", "transfer", "collective"]
STREAMS: tuple[Stream, ...] = ("compute", "send", "receive", "collective")
WaitKind = Literal["peer", "transfer", "collective", "end", "unknown"]


@dataclass(frozen=True, slots=True)
class Span:
    """One interval on one rank and stream; `label` is the action in PyTorch's notation, such as `0F1`."""

    rank: int
    stream: Stream
    category: Category
    label: str
    start_s: float
    end_s: float
    moved_bytes: float = 0.0

    @property
    def duration_s(self) -> float:
        """Length of the interval."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Bytes held by one rank from `time_s` until its next sample."""

    rank: int
    time_s: float
    held_bytes: float


@dataclass(frozen=True, slots=True)
class Wait:
    """An idle interval of a rank's compute stream, and why; `on_rank` is whom it waits for (-1: nobody in particular).

    Its kind: for a `peer` that is not there yet, for a message on its way (`transfer`), for a `collective` that runs, or for the `end`
    of the step, which others still work on.
    """

    rank: int
    start_s: float
    end_s: float
    cause: str
    on_rank: int = -1
    kind: WaitKind = "unknown"


@dataclass(frozen=True)
class Timeline:
    """All spans of one step over `rank_count` ranks; times share one clock whose zero is arbitrary.

    A rank stands for a group of devices where they work in lockstep. A simulated timeline that was asked for them has
    `waits` and a `critical_path` (positions of spans, in order); in a measured one a wait's cause is the label of what was
    waited for.

    Where replicas exchange in every `local_steps`-th step only, the spans are of a step that exchanges, and `local` is one of the
    others. Seconds, bytes and shares of a step are then means over local_steps - 1 of these and one that exchanges.

    Where one replica was played for all that are like it, `stand_ins` tells for every rank the one whose spans are its own too.

    In a measured step a rank may begin while another still ends the step before: for `ahead_s` from the first span on both run, and
    that time is the step's before.
    """

    rank_count: int
    spans: tuple[Span, ...]
    memory: tuple[MemorySample, ...] = field(default=())
    waits: tuple[Wait, ...] = field(default=())
    critical_path: tuple[int, ...] = field(default=())
    local_steps: int = 1
    local: Timeline | None = None
    stand_ins: tuple[int, ...] = ()
    ahead_s: float = 0.0

    def played_by(self, rank: int) -> int:
        """The rank whose spans, waits and memory are this rank's."""
        return self.stand_ins[rank] if self.stand_ins else rank

    @property
    def played_ranks(self) -> list[int]:
        """Ranks that have spans of their own, not those of a stand-in."""
        return [rank for rank in range(self.rank_count) if self.played_by(rank) == rank]

    @cached_property
    def _spans_by_rank(self) -> dict[int, list[Span]]:
        rows: dict[int, list[Span]] = {}
        for span in sorted(self.spans, key=lambda span: (span.start_s, span.end_s)):
            rows.setdefault(span.rank, []).append(span)
        return rows

    @cached_property
    def _memory_by_rank(self) -> dict[int, list[MemorySample]]:
        rows: dict[int, list[MemorySample]] = {}
        for sample in self.memory:
            rows.setdefault(sample.rank, []).append(sample)
        return rows

    @cached_property
    def start_s(self) -> float:
        """Start of the first span."""
        return min((span.start_s for span in self.spans), default=0.0)

    @cached_property
    def end_s(self) -> float:
        """End of the last span."""
        return max((span.end_s for span in self.spans), default=0.0)

    @property
    def makespan_s(self) -> float:
        """From the first span's start to the last span's end."""
        return self.end_s - self.start_s

    @property
    def period_s(self) -> float:
        """From the end of the step before, or the first span's start where nothing ran ahead of that, to the last span's end."""
        return self.makespan_s - self.ahead_s

    @property
    def step_s(self) -> float:
        """Seconds of a step: its period, or ((H-1) local periods + that of the exchanging step) / H with H local steps."""
        return self._mean(self.period_s, self.local.period_s if self.local else 0.0)

    def _mean(self, exchanging: float, local: float) -> float:
        """Mean over the steps from one exchange to the next."""
        return ((self.local_steps - 1) * local + exchanging) / self.local_steps if self.local else exchanging

    def spans_of(self, rank: int, *streams: Stream) -> list[Span]:
        """Spans of one rank on the named streams (all streams without a name), by start."""
        own = self._spans_by_rank.get(self.played_by(rank), [])
        return [span for span in own if not streams or span.stream in streams]

    def busy_s(self, rank: int) -> float:
        """Seconds in which the rank computes, encodes or optimizes."""
        own_s = sum(span.duration_s for span in self.spans_of(rank, "compute"))
        return self._mean(own_s, self.local.busy_s(rank) if self.local else 0.0)

    def utilization(self, rank: int) -> float:
        """Share of the step in which the rank's compute stream is busy."""
        return self.busy_s(rank) / self.step_s if self.step_s > 0 else 0.0

    @property
    def bubble_fraction(self) -> float:
        """Idle share of all ranks' time in the step."""
        if self.step_s <= 0:
            return 0.0
        return 1.0 - sum(self.busy_s(rank) for rank in range(self.rank_count)) / (self.rank_count * self.step_s)

    def exposed_communication_s(self, rank: int) -> float:
        """Seconds in which the rank receives or takes part in a collective while its compute stream is idle."""
        communication = merge_intervals((s.start_s, s.end_s) for s in self.spans_of(rank, "receive", "collective"))
        compute = merge_intervals((s.start_s, s.end_s) for s in self.spans_of(rank, "compute"))
        own_s = sum(end - start for start, end in communication) - overlap_s(communication, compute)
        return self._mean(own_s, self.local.exposed_communication_s(rank) if self.local else 0.0)

    def sent_bytes(self, rank: int) -> float:
        """Bytes that the rank put on the wire, point to point and in collectives."""
        own = sum(span.moved_bytes for span in self.spans_of(rank, "send", "collective"))
        return self._mean(own, self.local.sent_bytes(rank) if self.local else 0.0)

    def memory_of(self, rank: int) -> list[MemorySample]:
        """What one rank holds, sample by sample."""
        return self._memory_by_rank.get(self.played_by(rank), [])

    def peak_memory_bytes(self, rank: int) -> float:
        """Most bytes that the rank held at once (0 where memory was not recorded)."""
        return max((sample.held_bytes for sample in self.memory_of(rank)), default=0.0)

    def category_s(self, rank: int) -> dict[str, float]:
        """Seconds per category on one rank, all streams."""
        totals: dict[str, float] = {}
        for span in self.spans_of(rank):
            totals[span.category] = totals.get(span.category, 0.0) + span.duration_s
        if self.local:
            local = self.local.category_s(rank)
            return {name: self._mean(totals.get(name, 0.0), local.get(name, 0.0)) for name in dict.fromkeys([*totals, *local])}
        return totals

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form with the zero of time at the first span."""
        zero = self.start_s
        return {
            "rank_count": self.rank_count,
            "spans": [[s.rank, s.stream, s.category, s.label, s.start_s - zero, s.end_s - zero, s.moved_bytes] for s in self.spans],
            "memory": [[m.rank, m.time_s - zero, m.held_bytes] for m in self.memory],
            **({"local_steps": self.local_steps, "local": self.local.to_dict()} if self.local else {}),
            **({"stand_ins": list(self.stand_ins)} if self.stand_ins else {}),
            **({"ahead_s": self.ahead_s} if self.ahead_s else {}),
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Timeline:
        """Inverse of `to_dict`."""
        return Timeline(
            rank_count=data["rank_count"],
            spans=tuple(Span(*row) for row in data["spans"]),
            memory=tuple(MemorySample(*row) for row in data["memory"]),
            local_steps=data.get("local_steps", 1),
            local=Timeline.from_dict(data["local"]) if "local" in data else None,
            stand_ins=tuple(data.get("stand_ins", ())),
            ahead_s=data.get("ahead_s", 0.0),
        )


def merge_intervals(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Union of intervals as disjoint intervals in order.

    >>> merge_intervals([(0, 2), (1, 3), (5, 6)])
    [(0, 3), (5, 6)]
    """
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def overlap_s(left: Sequence[tuple[float, float]], right: Sequence[tuple[float, float]]) -> float:
    """Total length of the intersection of two lists of disjoint, ordered intervals.

    >>> overlap_s([(0, 3), (5, 6)], [(2, 5.5)])
    1.5
    """
    total, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        total += max(0.0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return total
