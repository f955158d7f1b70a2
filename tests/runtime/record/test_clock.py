"""Clocks of ranks, and records brought onto one of them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.record.alignment import align, offset_at
from chinchilla_sim.runtime.record.recorder import merge_step, step_seconds
from tests.runtime.read_clocks import AHEAD_S

SENDER: dict[str, Any] = {
    "intervals": [(0.0, 6.0)],
    "steps": [
        {
            "compute": [["0F0", "forward", 0.0, 2.0], ["0OPTIM", "optimizer", 5.0, 6.0]],
            "sends": [["F", 0, 0, 0, "0SEND_F0", 2.0, 100]],
            "receives": [],
            "collectives": [["gradients", 0, 0, 0, "0REDUCE_GRAD", 2.0, 5.0, 8, 2.5]],
        }
    ],
}
RECEIVER: dict[str, Any] = {
    "intervals": [(3.0, 4.0)],
    "steps": [
        {
            "compute": [["1F0", "forward", 3.0, 4.0]],
            "sends": [],
            "receives": [["F", 0, 0, 0, "1RECV_F0", 0.5, 3.0, 0.75]],
            "collectives": [["gradients", 0, 0, 0, "0REDUCE_GRAD", 1.0, 5.0, 8, None]],
        }
    ],
}
TIMES = {"compute": (2, 3), "sends": (5,), "receives": (5, 6, 7), "collectives": (5, 6, 8)}


def seen_by_a_clock(record: dict[str, Any], ahead_s: float) -> dict[str, Any]:
    """The same record with every time as a clock that is ahead tells it."""
    seen = copy.deepcopy(record)
    seen["intervals"] = [(start + ahead_s, end + ahead_s) for start, end in record["intervals"]]
    for step in seen["steps"]:
        for kind, columns in TIMES.items():
            for row in step[kind]:
                for column in columns:
                    row[column] = None if row[column] is None else row[column] + ahead_s
    return seen


@given(ahead_s=st.floats(-1e6, 1e6))
def test_record_of_another_clock_merges_as_if_it_were_one(ahead_s: float) -> None:
    """Whatever a rank's clock says, aligned records give the timeline and step of ranks with one clock."""
    other = seen_by_a_clock(RECEIVER, ahead_s) | {"clock": [(0.0, ahead_s, 1e-5), (1000.0, ahead_s, 1e-5)]}
    ours = [SENDER, align(other)]
    expected, found = (merge_step([record["steps"][0] for record in records]) for records in ([SENDER, RECEIVER], ours))
    assert [(span.rank, span.label) for span in found.spans] == [(span.rank, span.label) for span in expected.spans]
    assert [span.start_s for span in found.spans] == pytest.approx([span.start_s for span in expected.spans], abs=1e-8)
    assert [span.end_s for span in found.spans] == pytest.approx([span.end_s for span in expected.spans], abs=1e-8)
    assert [wait.start_s for wait in found.waits] == pytest.approx([wait.start_s for wait in expected.waits], abs=1e-8)
    assert step_seconds(ours) == pytest.approx(step_seconds([SENDER, RECEIVER]), abs=1e-8)


def test_drift_is_even_between_two_readings() -> None:
    """A clock that was 1 s ahead at 0 and is 3 s ahead at 100 was 2 s ahead at 50; one reading holds for all times."""
    assert [offset_at([(0.0, 1.0), (100.0, 3.0)], time_s) for time_s in (0.0, 50.0, 100.0)] == [1.0, 2.0, 3.0]
    assert offset_at([(5.0, 1.0), (5.0, 1.0)], 80.0) == 1.0


def test_record_on_the_first_clock_is_left_alone() -> None:
    """Without an offset, or without readings, nothing is copied."""
    assert align(SENDER) is SENDER
    still = RECEIVER | {"clock": [(0.0, 0.0, 0.0), (9.0, 0.0, 0.0)]}
    assert align(still) is still


def test_ranks_read_how_far_their_clocks_are_ahead(tmp_path: Path) -> None:
    """Within the half round trip that each reading states; ranks of one machine do not ask at all."""
    launch_ranks("tests.runtime.read_clocks", [str(tmp_path)], len(AHEAD_S), tmp_path)
    for rank, ahead_s in enumerate(AHEAD_S):
        told = json.loads((tmp_path / f"clock{rank}.json").read_text())
        assert told["here"][1:] == [0.0, 0.0]
        _, offset_s, error_s = told["ahead"]
        assert abs(offset_s - ahead_s) <= error_s + 1e-9 and (error_s > 0) == (rank > 0)
