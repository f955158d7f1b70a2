"""Merging the records of ranks by hand."""

from chinchilla_sim.runtime.recorder import merge_step, step_seconds

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
