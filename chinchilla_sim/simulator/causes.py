"""Why a rank is idle, and what decides the length of the step.

Every activity starts when the last of what it waits for has finished: that one binds it. Following bindings back from
the activity that finishes last gives the critical path. A gap on a compute stream is what the activity behind it
waited for: first for the peer to send (or to be ready), then for bytes on the way, or for a collective.
"""

from __future__ import annotations

from dataclasses import replace

from chinchilla_sim.simulator.activities import ActivityGraph, Record, Times
from chinchilla_sim.timeline import Stream, Timeline, Wait, WaitKind

SHORTEST = 1e-9
"""Gaps below this share of the step are rounding."""

_KINDS: dict[Stream, WaitKind] = {"compute": "peer", "send": "transfer", "receive": "transfer", "collective": "collective"}


def with_causes(graph: ActivityGraph, times: Times, timeline: Timeline) -> Timeline:
    """The timeline with its idle time explained and its critical path marked."""
    causes = _Causes(graph, times)
    return replace(timeline, waits=tuple(causes.waits()), critical_path=tuple(causes.critical_path()))


class _Causes:
    def __init__(self, graph: ActivityGraph, times: Times) -> None:
        self.graph, self.times = graph, times
        self.starts, self.others, self.lags_s = graph.predecessors()
        self.step_s = max(times.finish_s, default=0.0)
        self.record_of: dict[int, int] = {}
        for index, record in enumerate(graph.records):
            for activity in (record.first, record.last):
                # Of a message both ends have a span: the sender's names it.
                self.record_of.setdefault(activity, index)

    def _binding(self, activity: int) -> int:
        """What an activity waited for last, or -1 where it could start at once."""
        best, best_s = -1, 0.0
        for at in range(self.starts[activity], self.starts[activity + 1]):
            other = self.others[at]
            ready_s = (self.times.finish_s[other] if other >= 0 else 0.0) + self.lags_s[at]
            if ready_s > best_s or (ready_s == best_s and best < 0):
                best, best_s = other, ready_s
        return best

    def critical_path(self) -> list[int]:
        """Positions of the spans on the critical path, in order."""
        if not len(self.graph):
            return []
        activity = max(range(len(self.graph)), key=lambda number: self.times.finish_s[number])
        path: list[int] = []
        while activity >= 0:
            index = self.record_of.get(activity)
            if index is not None and (not path or path[-1] != index):
                path.append(index)
            activity = self._binding(activity)
        return path[::-1]

    def waits(self) -> list[Wait]:
        """Idle intervals of the compute streams, by rank and time."""
        computes: dict[int, list[Record]] = {}
        for record in self.graph.records:
            if record.stream == "compute":
                computes.setdefault(record.rank, []).append(record)
        found: list[Wait] = []
        for rank in sorted(computes):
            free_s = 0.0
            for record in computes[rank]:
                start_s = self.times.start_s[record.first]
                if start_s - free_s > SHORTEST * self.step_s:
                    found += self._explain(rank, free_s, start_s, record)
                free_s = self.times.finish_s[record.last]
            if self.step_s - free_s > SHORTEST * self.step_s:
                found.append(Wait(rank, free_s, self.step_s, "done, others are not", kind="end"))
        return found

    def _explain(self, rank: int, free_s: float, start_s: float, record: Record) -> list[Wait]:
        cause = self._recorded(self._binding(record.first))
        if cause is None:
            return [Wait(rank, free_s, start_s, f"{record.label} waits for nothing that is known")]
        what = self.graph.records[cause]
        moving_s = min(max(self.times.start_s[what.first], free_s), start_s)
        waits = []
        if moving_s > free_s:
            waits.append(Wait(rank, free_s, moving_s, self._late(what), what.rank if what.rank != rank else -1, "peer"))
        if start_s > moving_s:
            moving = "data is on the way" if what.stream in ("send", "receive") else f"{what.label} runs"
            kind = _KINDS[what.stream]
            waits.append(Wait(rank, moving_s, start_s, f"{record.label} waits for {what.label}: {moving}", what.rank, kind))
        return waits

    def _recorded(self, activity: int) -> int | None:
        """The first activity with a span on the way back from here."""
        while activity >= 0 and activity not in self.record_of:
            activity = self._binding(activity)
        return self.record_of.get(activity)

    def _late(self, what: Record) -> str:
        """Why a message or collective started late: what its own start waited for."""
        behind = self._recorded(self._binding(what.first))
        if behind is None or self.graph.records[behind] is what:
            return f"waits for {what.label} of rank {what.rank}"
        blamed = self.graph.records[behind]
        return f"waits for {what.label} of rank {what.rank}, which follows {blamed.label} of rank {blamed.rank}"
