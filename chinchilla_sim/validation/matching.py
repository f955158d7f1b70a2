"""Which measured span belongs to which activity: by rank, stream and label, in the order of their starts.

Where both sides have as many spans of one label they are matched one to one. Where a pass that was measured whole is
simulated in parts, or the other way round, the parts share the whole in proportion to their simulated seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_sim.simulator.activities import NO_ACTIVITY, ActivityGraph, Record, Times
from chinchilla_sim.timeline import Span, Stream, Timeline

LOOK_S = 5e-5
"""A receiver that waits for less has looked and found the message there: a call that waits for nothing takes as long."""

Key = tuple[int, Stream, str]


@dataclass(frozen=True, slots=True)
class Observed:
    """Activities `first` to `last` of a graph with the interval that was measured for them.

    Of a transfer `rank` is its receiver (or first member) and `awaited` tells whether somebody waited for its end: otherwise it
    ended at `end_s` or before.
    """

    first: int
    last: int
    rank: int
    category: str
    compute: bool
    start_s: float
    end_s: float
    moved_bytes: float = 0.0
    awaited: bool = True

    @property
    def duration_s(self) -> float:
        """Length of the measured interval."""
        return self.end_s - self.start_s


class Observations:
    """What one measured step says about the activities of a graph, and what each of them waits for.

    `observed` are the activities that were measured, `unmatched` counts simulated spans that were not.
    """

    def __init__(self, graph: ActivityGraph, simulated: Times, measured: Timeline) -> None:
        self.graph, self.simulated, self.measured = graph, simulated, measured
        self.before: dict[int, dict[int, float]] = {}
        for before, behind, lag_s in graph.arcs():
            lags = self.before.setdefault(behind, {})
            lags[before] = max(lag_s, lags.get(before, 0.0))
        self.observed, self.unmatched = match_spans(graph, simulated, measured)
        self._owner = {number: one for one in self.observed for number in range(one.first, one.last + 1)}
        self._arrivals: dict[int, float] = {}
        computing = [span for span in measured.spans if span.stream == "compute"]
        # Before its first simulated action a rank may have done something that was not simulated, such as getting the batch.
        self.begun_s = {rank: min((s.start_s for s in computing if s.rank == rank), default=0.0) for rank in range(graph.rank_count)}
        begun = sorted((one for one in self.observed if one.compute), key=lambda one: (one.start_s, one.first), reverse=True)
        self._first = {one.rank: one for one in begun}
        # In the order of their starts, so that what came before on a connection is known.
        for one in sorted((one for one in self.observed if not one.compute), key=lambda one: (one.start_s, one.last)):
            self.arrival_s(one)

    def sources(self, one: Observed) -> list[int]:
        """What an observed activity waits for, the start of the step where it waits for nothing."""
        inside = range(one.first, one.last + 1)
        return sorted({before for number in inside for before in self.before.get(number, ()) if before not in inside}) or [NO_ACTIVITY]

    def end_s(self, number: int, guess: bool = False) -> float | None:
        """When an activity had ended; None where that was not seen, unless a `guess` will do."""
        if number == NO_ACTIVITY:
            return self.measured.start_s
        one = self._owner.get(number)
        if one is not None:
            seen = number == one.last and (one.awaited or guess)
            return (one.end_s if one.compute else self.arrival_s(one)) if seen else None
        # A join, or what is recorded nowhere, such as the program's own seconds for a message: those are taken as simulated.
        known = [end_s for before in self.before.get(number) or [NO_ACTIVITY] if (end_s := self.end_s(before, guess)) is not None]
        return max(known) + self.graph.seconds[number] if known else None

    def last_source(self, one: Observed) -> tuple[float, int] | None:
        """When the last thing that an activity waited for had ended, and which it was."""
        for guess in (not one.compute, True):
            known = [(end_s, source) for source in self.sources(one) if (end_s := self.end_s(source, guess)) is not None]
            if known:
                return max(known)
        return None

    def follows_own(self, one: Observed) -> bool:
        """Whether a computation started when the rank's action before was over, rather than when something arrived."""
        last = self.last_source(one)
        if not one.compute or last is None:
            return False
        return last[1] == NO_ACTIVITY or self.graph.ranks[last[1]] == one.rank

    def begins(self, one: Observed) -> bool:
        """Whether an activity is the first that its rank computes, and waits for no other rank."""
        return self._first.get(one.rank) == one and self.follows_own(one)

    def transfer_s(self, one: Observed) -> float:
        """Measured seconds of a transfer from both ends ready, and the connection free, to the arrival."""
        seconds = max(0.0, one.end_s - self._ready_s(one))
        return seconds if one.awaited else min(seconds, self.simulated_s(one))

    def arrival_s(self, one: Observed) -> float:
        """When a transfer had ended: as it was seen, or as it was simulated where it was found and not waited for."""
        if one.last not in self._arrivals:
            self._arrivals[one.last] = one.end_s if one.awaited else min(one.end_s, self._ready_s(one) + self.transfer_s(one))
        return self._arrivals[one.last]

    def _ready_s(self, one: Observed) -> float:
        last = self.last_source(one)
        return max(one.start_s, last[0]) if last else one.start_s

    def simulated_s(self, one: Observed) -> float:
        """Simulated seconds of the same, latencies included."""
        ready_s = max((self.simulated.finish_s[source] for source in self.sources(one) if source >= 0), default=0.0)
        return self.simulated.finish_s[one.last] - ready_s


def match_spans(graph: ActivityGraph, simulated: Times, measured: Timeline) -> tuple[list[Observed], int]:
    """What was measured of a graph's activities, and how many of its records nothing was measured for."""
    found: dict[tuple[int, int], list[tuple[Record, Span]]] = {}
    missing = 0
    theirs: dict[Key, list[Span]] = {}
    for span in sorted(measured.spans, key=lambda span: (span.start_s, span.end_s)):
        theirs.setdefault((span.rank, span.stream, span.label), []).append(span)
    for key, records in _by_key(graph, simulated).items():
        spans = theirs.get(key, [])
        if len(spans) != len(records):
            spans = _split(records, spans, simulated) if spans and key[1] == "compute" else []
        missing += len(records) - len(spans)
        for record, span in zip(records, spans, strict=False):
            found.setdefault((record.first, record.last), []).append((record, span))
    looks = _looks(measured)
    return [_observed(pairs, looks) for pairs in found.values()], missing


def _by_key(graph: ActivityGraph, simulated: Times) -> dict[Key, list[Record]]:
    records: dict[Key, list[Record]] = {}
    for record in sorted(graph.records, key=lambda record: (simulated.start_s[record.first], record.first)):
        records.setdefault((record.rank, record.stream, record.label), []).append(record)
    return records


def _split(records: Sequence[Record], spans: Sequence[Span], simulated: Times) -> list[Span]:
    """The interval that some spans cover together, cut in proportion to simulated seconds."""
    start_s, end_s = spans[0].start_s, max(span.end_s for span in spans)
    lengths = [simulated.finish_s[record.last] - simulated.start_s[record.first] for record in records]
    total = sum(lengths) or 1.0
    parts, at_s = [], start_s
    for record, length in zip(records, lengths, strict=True):
        until_s = at_s + (end_s - start_s) * length / total
        parts.append(Span(record.rank, record.stream, record.category, record.label, at_s, until_s))
        at_s = until_s
    return parts


def _looks(measured: Timeline) -> dict[tuple[int, str, float], float]:
    """How long a rank waited for what ended at a moment, by rank and label."""
    return {(wait.rank, wait.cause, wait.end_s): wait.end_s - wait.start_s for wait in measured.waits}


def _observed(pairs: Sequence[tuple[Record, Span]], looks: dict[tuple[int, str, float], float]) -> Observed:
    record, span = pairs[0]
    if record.stream == "compute":
        return Observed(record.first, record.last, record.rank, record.category, True, span.start_s, span.end_s)
    ends = [(record, span) for record, span in pairs if record.stream != "send"] or list(pairs)
    waited = [span.end_s for record, span in ends if looks.get((span.rank, span.label, span.end_s), LOOK_S) >= LOOK_S]
    receiver, span = ends[0]
    end_s = min(waited) if waited else min(span.end_s for _, span in ends)
    start_s = min(end_s, max(span.start_s for _, span in ends))
    size = receiver.moved_bytes
    return Observed(record.first, record.last, receiver.rank, record.category, False, start_s, end_s, size, bool(waited))
