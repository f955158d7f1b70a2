"""Merging the records of ranks by hand."""

from statistics import median
from time import monotonic
from typing import Any

import pytest

from chinchilla_sim.runtime.record.recorder import (
    Recorder,
    answer_window,
    kept_timelines,
    merge_step,
    representative_timeline,
    step_seconds,
)
from chinchilla_sim.timeline import Timeline

SENDER = {"compute": [["0F0", "forward", 0.0, 2.0]], "sends": [["F", 0, 0, 0, "0SEND_F0", 2.0, 100]], "receives": [], "collectives": []}
RECEIVER = {
    "compute": [["1F0", "forward", 3.0, 4.0]],
    "sends": [],
    "receives": [["F", 0, 0, 0, "1RECV_F0", 0.5, 3.0]],
    "collectives": [],
}


def test_message_spans_both_ranks_from_departure_to_arrival() -> None:
    """Sent at 2, posted at 0.5, waited for until 3: on the wire from 2 to 3 on both ranks."""
    timeline = merge_step([SENDER, RECEIVER])
    (send,), (receive,) = timeline.spans_of(0, "send"), timeline.spans_of(1, "receive")
    assert (send.start_s, send.end_s, send.moved_bytes) == (2.0, 3.0, 100)
    assert (receive.start_s, receive.end_s, receive.label) == (2.0, 3.0, "1RECV_F0")
    assert timeline.step_s == 4.0
    assert timeline.exposed_communication_s(1) == 1.0


def test_collective_starts_when_the_last_member_has_joined() -> None:
    """Rank 0 joined at 1, rank 1 at 3: both exchange from 3."""
    ranks = [
        {
            "compute": [["0F0", "forward", 0.0, joined]],
            "sends": [],
            "receives": [],
            "collectives": [["gradients", 0, 0, 0, "0REDUCE_GRAD", joined, 5.0, 8]],
        }
        for joined in (1.0, 3.0)
    ]
    assert [(span.start_s, span.end_s) for span in merge_step(ranks).spans if span.stream == "collective"] == [(3.0, 5.0)] * 2


def test_drifting_ranks_do_not_count_time_twice() -> None:
    """Rank 0 starts step 2 at 4 while rank 1 ends step 1 at 5: step 2 takes 9 - 5; a pause between steps is not counted."""
    records = [{"intervals": [(0, 4), (4, 8), (20, 24)]}, {"intervals": [(1, 5), (5, 9), (20, 25)]}]
    assert step_seconds(records) == [5, 4, 5]


def test_waits_tell_how_long_a_receiver_looked() -> None:
    """A wait from 2 to 3 for the message of rank 0 is told with its label; records without it have no waits."""
    row = [*RECEIVER["receives"][0], 2.0]
    (wait,) = merge_step([SENDER, RECEIVER | {"receives": [row]}]).waits
    assert (wait.rank, wait.start_s, wait.end_s, wait.cause, wait.on_rank) == (1, 2.0, 3.0, "1RECV_F0", 0)
    assert merge_step([SENDER, RECEIVER]).waits == ()


def test_recorder_notes_when_a_wait_began() -> None:
    """What the runtime says about the start of a wait comes back in the merged timeline."""
    ranks = []
    for _ in range(2):
        recorder = Recorder()
        recorder.begin_step()
        start_s = monotonic()
        recorder.compute("0F0", "forward", start_s)
        recorder.join(("gradients", 0, 0, 0), "0REDUCE_GRAD", 8.0)
        recorder.joined(("gradients", 0, 0, 0), start_s)
        recorder.end_step()
        ranks.append(recorder.to_dict()["steps"][0] | {"start_s": start_s})
    waits = merge_step(ranks).waits
    assert [(wait.rank, wait.start_s, wait.cause) for wait in waits] == [(r, ranks[r]["start_s"], "0REDUCE_GRAD") for r in range(2)]


def test_bytes_sent_inside_a_pass_are_those_of_all_lanes() -> None:
    """What a pass waits for is a span of its own behind it, with the bytes of the processes that one stands for; also beside records
    of before that know none."""
    recorder = Recorder(lanes=2)
    recorder.begin_step()
    recorder.compute("0F0", "forward", monotonic() - 2.0, 0.5, 100.0)
    recorder.end_step()
    timeline = merge_step(recorder.to_dict()["steps"])
    (span,) = timeline.spans_of(0, "collective")
    assert (span.label, span.moved_bytes, timeline.sent_bytes(0)) == ("0F0", 200.0, 200.0) and span.duration_s == pytest.approx(0.5)
    old = {"compute": [["0F0", "forward", 0.0, 2.0], ["0F0", "collective", 2.0, 3.0]], "sends": [], "receives": [], "collectives": []}
    assert merge_step([old]).sent_bytes(0) == 0.0


def test_kept_steps_are_those_behind_the_warm_up() -> None:
    """Of seven recorded steps two are left; of three all stay, and of a long run all that were kept."""

    def record(steps: int, kept: int) -> dict[str, Any]:
        made = [SENDER | {"compute": [["0F0", "forward", float(n), n + 0.5]], "sends": []} for n in range(steps)]
        return {"intervals": [(n, n + 0.5) for n in range(steps)], "steps": made[-kept:]}

    assert [timeline.start_s for timeline in kept_timelines([record(7, 7)])] == [5.0, 6.0]
    assert len(kept_timelines([record(3, 3)])) == 3
    assert len(kept_timelines([record(100, 64)])) == 64


def test_replicas_that_never_wait_for_each_other_begin_together() -> None:
    """Two replicas of half a second, one a minute behind: their step takes half a second, not a minute."""
    records = []
    for late_s in (0.0, 60.0):
        made = [SENDER | {"compute": [["0F0", "forward", n + late_s, n + late_s + 0.5]], "sends": []} for n in range(8)]
        records.append({"intervals": [(n + late_s, n + late_s + 0.5) for n in range(8)], "steps": made})
    together = representative_timeline(records)
    assert (together.makespan_s, together.ahead_s, together.period_s) == (60.5, 59.5, 1.0)
    assert representative_timeline(records, [(0,), (1,)]).makespan_s == 0.5


def test_batches_of_replicas_that_take_turns_on_a_core_count_by_their_mean() -> None:
    """Nine batches of 1 s, and one with 9 s of somebody else's turn in it: a batch takes 1.9 s, not the median's 1; the slower replica
    counts, and what passes between two batches does not.
    """
    records = []
    for turn_s in (0.0, 9.0):
        intervals, at_s = [], 0.0
        for number in range(5 + 100):
            intervals.append((at_s, at_s + 1.0 + turn_s * (number % 10 == 0)))
            at_s = intervals[-1][1] + 3.0
        records.append({"intervals": intervals})
    assert answer_window(records) == 10
    assert step_seconds(records, 10, [(0,), (1,)]) == pytest.approx([1.9] * 10)
    assert median(step_seconds(records[1:])) == 1.0


def test_a_step_of_which_a_rank_ran_ahead_lasts_as_long_as_the_figures_of_all_steps_say() -> None:
    """Rank 0 begins half a second before rank 1 has ended the step before: that half second is counted once."""
    records = []
    for late_s in (0.0, 0.5):
        made = [SENDER | {"compute": [["0F0", "forward", n + late_s, n + late_s + 1.0]], "sends": []} for n in range(8)]
        records.append({"intervals": [(n + late_s, n + late_s + 1.0) for n in range(8)], "steps": made})
    timeline = representative_timeline(records)
    assert set(step_seconds(records)) == {1.0} == {timeline.step_s}
    assert (timeline.ahead_s, timeline.makespan_s) == (0.5, 1.5)
    assert Timeline.from_dict(timeline.to_dict()).step_s == 1.0
    assert (
        kept_timelines([record | {"intervals": record["intervals"][:1], "steps": record["steps"][:1]} for record in records])[0].ahead_s
        == 0.0
    )
