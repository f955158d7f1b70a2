"""Chrome trace events."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from chinchilla_sim.report.drawing.trace import chrome_trace
from chinchilla_sim.report.study import Study
from chinchilla_sim.timeline import MemorySample, Span, Timeline

SCHEMA = Draft202012Validator(json.loads((Path(__file__).parent / "trace_event.schema.json").read_text()))


def _check_format(trace: dict[str, Any]) -> None:
    """The schema, names for every process and track that has events, and no two spans of a track over each other."""
    told = json.loads(json.dumps(trace, allow_nan=False))
    SCHEMA.validate(told)
    events = told["traceEvents"]
    processes = {event["pid"] for event in events if event["name"] == "process_name"}
    tracks = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    end: dict[tuple[int, int], float] = {}
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"]):
        track = event["pid"], event["tid"]
        assert track in tracks
        # A thousandth of a nanosecond: sums of rounded numbers.
        assert event["ts"] >= end.get(track, 0.0) - 1e-6
        end[track] = event["ts"] + event["dur"]
    assert {event["pid"] for event in events} == processes
    assert len(processes) == sum(event["name"] == "process_name" for event in events)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ph": "X", "dur": -1.0}, {"ph": "X", "ts": -0.5}, {"ph": "B"}, {"pid": "0"}, {"name": ""}, {"cat": ""}, {"extra": 1},
        {"ts": "0"}, {"args": None},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_wrong(wrong: dict[str, Any]) -> None:
    """Negative or textual times, unknown phases, missing names and foreign keys are no trace events."""
    event = {"name": "0F0", "cat": "forward", "ph": "X", "pid": 0, "tid": 0, "ts": 0.0, "dur": 1.0, "args": {}}
    assert SCHEMA.is_valid({"traceEvents": [event]})
    assert not SCHEMA.is_valid({"traceEvents": [event | wrong]})


def _spans(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def _names(trace: dict[str, Any], kind: str) -> list[str]:
    return [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == kind]


def test_trace_of_a_study_obeys_the_format(measured: Study) -> None:
    """Simulated and measured timelines of a search are a well-formed trace with one event per span."""
    assert measured.measurement
    timelines = {"simulated": measured.search.best.timeline, "measured": measured.measurement.timeline}
    trace = chrome_trace(timelines)
    _check_format(trace)
    assert len(_spans(trace)) == sum(len(timeline.spans) for timeline in timelines.values())
    assert _names(trace, "process_name") == ["simulated rank 0", "simulated rank 1", "measured rank 0", "measured rank 1"]


def test_times_are_microseconds_since_the_first_span() -> None:
    """A clock that starts anywhere becomes one that starts at 0."""
    computed = Span(0, "compute", "forward", "0F0", 1000.0, 1000.002)
    timeline = Timeline(1, (computed, Span(0, "send", "transfer", "0SEND_F0", 1000.002, 1000.005, 7.0)))
    first, second = _spans(chrome_trace({"measured": timeline}))
    assert (first["ts"], first["dur"], second["ts"], second["dur"]) == pytest.approx((0, 2000, 2000, 3000))
    assert (first["name"], first["cat"], second["args"]) == ("0F0", "forward", {"category": "transfer", "bytes": 7.0})


def test_overlapping_spans_get_lanes_of_their_own() -> None:
    """Two sends at once are on tracks `send` and `send 2`; a third that fits behind the first is beside it."""
    at = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]
    timeline = Timeline(1, tuple(Span(0, "send", "transfer", f"0SEND_F{i}", *times) for i, times in enumerate(at)))
    trace = chrome_trace({"simulated": timeline})
    assert _names(trace, "thread_name") == ["send", "send 2"]
    assert {event["name"]: event["tid"] for event in _spans(trace)} == {"0SEND_F0": 0, "0SEND_F1": 1, "0SEND_F2": 0}


def test_no_two_spans_of_a_track_overlap(long_pipeline: Study) -> None:
    """Rounding to nanoseconds keeps neighbours apart."""
    trace = chrome_trace({"simulated": long_pipeline.search.best.timeline})
    _check_format(trace)


def test_span_that_ends_before_it_starts_has_no_length() -> None:
    """Clocks of a real run may disagree by a little; a duration is never negative."""
    trace = chrome_trace({"measured": Timeline(1, (Span(0, "compute", "forward", "0F0", 1.0, 0.9999),))})
    assert [event["dur"] for event in _spans(trace)] == [0.0]


def test_memory_is_a_counter() -> None:
    """Every sample of held bytes is a counter event of its rank."""
    timeline = Timeline(1, (Span(0, "compute", "forward", "0F0", 5.0, 6.0),), (MemorySample(0, 4.9, 10.0), MemorySample(0, 5.5, 20.0)))
    counters = [event for event in chrome_trace({"simulated": timeline})["traceEvents"] if event["ph"] == "C"]
    assert [(event["ts"], event["args"]) for event in counters] == [(0.0, {"held_bytes": 10.0}), (500000.0, {"held_bytes": 20.0})]


def test_empty_timeline_is_a_trace() -> None:
    """A rank that did nothing is still named."""
    trace = chrome_trace({"simulated": Timeline(1, ())})
    _check_format(trace)
    assert _names(trace, "process_name") == ["simulated rank 0"]


def test_causes_and_the_critical_path_obey_the_format(thorough: Study, racks: Study) -> None:
    """Idle time and the critical path have tracks and processes of their own, in small and in large traces."""
    for study in (thorough, racks):
        trace = chrome_trace({"simulated": study.timeline})
        _check_format(trace)
        assert "idle because" in _names(trace, "thread_name") and "simulated critical path" in _names(trace, "process_name")


def test_a_rank_that_stands_for_others_says_so() -> None:
    """Of three ranks, of which one was played, there is one process."""
    timeline = Timeline(3, (Span(0, "compute", "forward", "0F0", 0.0, 1.0),), stand_ins=(0, 0, 0))
    trace = chrome_trace({"simulated": timeline})
    _check_format(trace)
    assert _names(trace, "process_name") == ["simulated rank 0 (and 2 ranks like it)"]
