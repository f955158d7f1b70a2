"""Timelines as Chrome trace events, for ui.perfetto.dev, chrome://tracing and PyTorch's tools.

A process is a rank of one timeline, a thread one lane of one stream; every span is a complete event ("X") with `ts` and `dur` in
microseconds since the first span of its timeline, so that a simulated and a measured step lie side by side. Where the
simulator told causes, idle time stands on a track of its own with what it waits for, and the critical path is a process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from chinchilla_sim.timeline import STREAMS, Span, Timeline, Wait

Event = dict[str, Any]


def chrome_trace(timelines: Mapping[str, Timeline]) -> dict[str, Any]:
    """JSON-ready trace of named timelines, for example "simulated" and "measured"."""
    events: list[Event] = []
    process = 0
    for name, timeline in timelines.items():
        for rank in timeline.played_ranks:
            alike = sum(timeline.played_by(other) == rank for other in range(timeline.rank_count)) - 1
            more = f" (and {alike} ranks like it)" if alike else ""
            events += _process_events(process, f"{name} rank {rank}{more}", timeline, rank)
            process += 1
        if timeline.critical_path:
            events += _critical_events(process, f"{name} critical path", timeline)
            process += 1
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _process_events(process: int, name: str, timeline: Timeline, rank: int) -> list[Event]:
    """One rank: names of its tracks, its spans, and its memory as a counter."""
    events = [_metadata(process, 0, "process_name", {"name": name}), _metadata(process, 0, "process_sort_index", {"sort_index": process})]
    thread = 0
    for stream in STREAMS:
        for lane, spans in enumerate(split_lanes(timeline.spans_of(rank, stream))):
            track = stream if lane == 0 else f"{stream} {lane + 1}"
            events.append(_metadata(process, thread, "thread_name", {"name": track}))
            events.append(_metadata(process, thread, "thread_sort_index", {"sort_index": thread}))
            events += [_complete(process, thread, span, timeline.start_s) for span in spans]
            thread += 1
    waits = [wait for wait in timeline.waits if wait.rank == rank]
    if waits:
        events.append(_metadata(process, thread, "thread_name", {"name": "idle because"}))
        events.append(_metadata(process, thread, "thread_sort_index", {"sort_index": thread}))
        events += [_idle(process, thread, wait, timeline.start_s) for wait in waits]
    for sample in timeline.memory_of(rank):
        when = {"ts": max(0.0, _microseconds(sample.time_s - timeline.start_s))}
        events.append({"name": "memory", "ph": "C", "pid": process, "tid": 0, **when, "args": {"held_bytes": sample.held_bytes}})
    return events


def _critical_events(process: int, name: str, timeline: Timeline) -> list[Event]:
    """The spans that decide the length of the step, in one row (two where a message leaves before its sender is through)."""
    events = [_metadata(process, 0, "process_name", {"name": name}), _metadata(process, 0, "process_sort_index", {"sort_index": process})]
    spans = [
        replace(timeline.spans[at], label=f"{timeline.spans[at].label} of rank {timeline.spans[at].rank}") for at in timeline.critical_path
    ]
    for thread, lane in enumerate(split_lanes(spans)):
        events.append(_metadata(process, thread, "thread_name", {"name": "critical path"}))
        events += [_complete(process, thread, span, timeline.start_s) for span in lane]
    return events


def _idle(process: int, thread: int, wait: Wait, zero_s: float) -> Event:
    start, end = _microseconds(wait.start_s - zero_s), _microseconds(wait.end_s - zero_s)
    event = {"name": wait.cause, "cat": "idle", "ph": "X", "pid": process, "tid": thread, "ts": start}
    return event | {"dur": round(max(0.0, end - start), 3), "args": {"waits_for_rank": wait.on_rank}}


def _metadata(process: int, thread: int, name: str, args: Event) -> Event:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": args}


def _complete(process: int, thread: int, span: Span, zero_s: float) -> Event:
    start, end = _microseconds(span.start_s - zero_s), _microseconds(span.end_s - zero_s)
    return {
        "name": span.label,
        "cat": span.category,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": start,
        "dur": round(max(0.0, end - start), 3),
        "args": {"category": span.category, "bytes": span.moved_bytes},
    }


def _microseconds(seconds: float) -> float:
    """Whole nanoseconds: neighbours that touch keep touching after rounding."""
    return round(seconds * 1e6, 3)


def split_lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans in as few lanes as keep overlapping ones apart: each goes to the first lane that is free.

    >>> a, b, c = (Span(0, "send", "transfer", name, *at) for name, at in (("a", (0, 2)), ("b", (1, 3)), ("c", (2, 4))))
    >>> [[span.label for span in lane] for lane in split_lanes([a, b, c])]
    [['a', 'c'], ['b']]
    """
    lanes: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.start_s, span.end_s)):
        free = next((lane for lane in lanes if lane[-1].end_s <= span.start_s), None)
        if free is None:
            lanes.append([span])
        else:
            free.append(span)
    return lanes
