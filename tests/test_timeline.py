"""Spans, timelines and the arithmetic of intervals."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.timeline import STREAMS, MemorySample, Span, Timeline, merge_intervals, overlap_s

GRID = 24
intervals = st.lists(st.tuples(st.integers(0, GRID), st.integers(0, GRID)).map(lambda ends: (min(ends), max(ends))), max_size=8)


def cells(parts: list[tuple[float, float]]) -> set[int]:
    """Unit cells of the grid that integer intervals cover."""
    return {cell for start, end in parts for cell in range(int(start), int(end))}


@given(intervals)
def test_merged_intervals_cover_the_same_ground_once(parts: list[tuple[float, float]]) -> None:
    """The union is in order, disjoint (not even touching) and covers exactly the cells that were covered."""
    merged = merge_intervals(parts)
    assert cells(merged) == cells(parts)
    assert all(left[1] < right[0] for left, right in pairwise(merged))
    assert merge_intervals(merged) == merged


@given(intervals, intervals)
def test_overlap_is_the_size_of_the_intersection(left: list[tuple[float, float]], right: list[tuple[float, float]]) -> None:
    """Overlap of two unions equals the count of cells in both, and does not depend on the order of the two."""
    one, other = merge_intervals(left), merge_intervals(right)
    assert overlap_s(one, other) == overlap_s(other, one) == len(cells(left) & cells(right))


def spans(rank_count: int) -> st.SearchStrategy[Span]:
    """Spans with times that floats add and subtract exactly."""
    return st.builds(
        lambda rank, stream, start, length, moved: Span(rank, stream, "transfer", "0F0", start / 8, (start + length) / 8, moved),
        st.integers(0, rank_count - 1),
        st.sampled_from(STREAMS),
        st.integers(-1000, 1000),
        st.integers(0, 1000),
        st.integers(0, 10**6).map(float),
    )


samples = st.builds(
    lambda rank, time, held: MemorySample(rank, time / 8, held), st.integers(0, 2), st.integers(-1000, 1000), st.floats(0, 1e12)
)


@given(st.lists(spans(3), max_size=10), st.lists(samples, max_size=5))
def test_json_keeps_every_span(rows: list[Span], memory: list[MemorySample]) -> None:
    """Through JSON a timeline keeps durations, bytes and memory; only the zero of time moves, to the first span."""
    timeline = Timeline(3, tuple(rows), tuple(memory))
    text = json.dumps(timeline.to_dict())
    again = Timeline.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.start_s == 0 and again.step_s == timeline.step_s
    for rank in range(3):
        assert again.busy_s(rank) == timeline.busy_s(rank)
        assert again.sent_bytes(rank) == timeline.sent_bytes(rank)
        assert again.exposed_communication_s(rank) == timeline.exposed_communication_s(rank)
        assert again.peak_memory_bytes(rank) == timeline.peak_memory_bytes(rank)


@given(st.lists(spans(2), min_size=1, max_size=10))
def test_exposed_communication_is_what_compute_does_not_hide(rows: list[Span]) -> None:
    """Exposed seconds are the receiving or reducing time outside the compute spans, never more than the idle time."""
    timeline = Timeline(2, tuple(rows))
    for rank in range(2):
        waiting = cells([(8 * s.start_s, 8 * s.end_s) for s in timeline.spans_of(rank, "receive", "collective")])
        working = cells([(8 * s.start_s, 8 * s.end_s) for s in timeline.spans_of(rank, "compute")])
        assert timeline.exposed_communication_s(rank) == len(waiting - working) / 8
        assert timeline.exposed_communication_s(rank) <= timeline.step_s - len(working) / 8


@pytest.fixture
def drawing() -> Timeline:
    """Two ranks, one microbatch, one all-reduce that starts under the last backward pass of rank 0.

    second      0  1  2  3  4  5  6  7  8  9  10
    0 compute   F  F              B  B        O
    0 send            S
    0 receive                  R
    0 collective                     C  C  C
    1 compute            F  B                 O
    1 receive         R
    1 send                     S
    1 collective                     C  C  C
    """
    return Timeline(
        rank_count=2,
        spans=(
            Span(0, "compute", "forward", "0F0", 0, 2),
            Span(0, "send", "transfer", "0SEND_F0", 2, 3, 100),
            Span(1, "receive", "transfer", "1RECV_F0", 2, 3, 100),
            Span(1, "compute", "forward", "1F0", 3, 4),
            Span(1, "compute", "backward", "1B0", 4, 5),
            Span(1, "send", "transfer", "1SEND_B0", 5, 6, 40),
            Span(0, "receive", "transfer", "0RECV_B0", 5, 6, 40),
            Span(0, "compute", "backward", "0B0", 6, 8),
            Span(0, "collective", "collective", "0REDUCE_GRAD", 7, 10, 7),
            Span(1, "collective", "collective", "1REDUCE_GRAD", 7, 10, 7),
            Span(0, "compute", "optimizer", "0OPTIM", 10, 11),
            Span(1, "compute", "optimizer", "1OPTIM", 10, 11),
        ),
        memory=(MemorySample(0, 0, 5), MemorySample(0, 2, 9), MemorySample(0, 8, 5)),
    )


def test_drawn_timeline_reads_as_drawn(drawing: Timeline) -> None:
    """The numbers that the drawing shows: 5 and 3 busy cells of 11, 3 and 4 seconds of communication in the open."""
    assert (drawing.start_s, drawing.end_s, drawing.step_s) == (0, 11, 11)
    assert [drawing.busy_s(rank) for rank in (0, 1)] == [5, 3]
    assert [drawing.utilization(rank) for rank in (0, 1)] == [5 / 11, 3 / 11]
    assert drawing.bubble_fraction == pytest.approx(1 - 8 / 22)
    assert [drawing.exposed_communication_s(rank) for rank in (0, 1)] == [1 + 2, 1 + 3]
    assert [drawing.sent_bytes(rank) for rank in (0, 1)] == [107, 47]
    assert [drawing.peak_memory_bytes(rank) for rank in (0, 1)] == [9, 0]
    assert drawing.category_s(1) == {"transfer": 2, "forward": 1, "backward": 1, "collective": 3, "optimizer": 1}
    assert [span.label for span in drawing.spans_of(1, "compute")] == ["1F0", "1B0", "1OPTIM"]


def test_empty_timeline_has_no_step() -> None:
    """Without spans the step is 0 s long, and no share of it divides by zero."""
    empty = Timeline(2, ())
    assert (empty.step_s, empty.bubble_fraction, empty.utilization(0), empty.exposed_communication_s(0)) == (0, 0, 0, 0)
    assert Timeline.from_dict(empty.to_dict()) == empty


def test_a_rank_that_was_not_played_has_what_its_stand_in_has() -> None:
    """Two stages by two replicas, of which the first was played: figures of all ranks are those of four that were."""
    spans = (Span(0, "compute", "forward", "0F0", 0.0, 1.0), Span(0, "send", "transfer", "0SEND_F0", 1.0, 2.0, 5.0))
    last = Span(2, "compute", "forward", "1F0", 2.0, 4.0)
    timeline = Timeline(4, (*spans, last), (MemorySample(0, 0.0, 7.0), MemorySample(2, 0.0, 9.0)), stand_ins=(0, 0, 2, 2))
    assert [timeline.busy_s(rank) for rank in range(4)] == [1.0, 1.0, 2.0, 2.0]
    assert [timeline.sent_bytes(rank) for rank in range(4)] == [5.0, 5.0, 0.0, 0.0]
    assert [timeline.peak_memory_bytes(rank) for rank in range(4)] == [7.0, 7.0, 9.0, 9.0]
    assert timeline.bubble_fraction == 1 - 6 / 16 and timeline.played_ranks == [0, 2]
    assert Timeline.from_dict(json.loads(json.dumps(timeline.to_dict()))) == timeline
