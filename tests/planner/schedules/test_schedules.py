"""Schedules as pictures typed as literals, and the laws that every schedule keeps."""

from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chinchilla_sim.planner.action import Action, Op
from chinchilla_sim.planner.plan import SCHEDULE_NAMES
from chinchilla_sim.planner.plan_file import _PlanSpec
from chinchilla_sim.planner.schedules.automatic import PassSeconds, find_rows, most_held, row_seconds
from chinchilla_sim.planner.schedules.registry import SCHEDULES, microbatches_in_flight
from chinchilla_sim.scenario.search import Schedule

DRAWN = [name for name, schedule in SCHEDULES.items() if schedule.row]
names = st.sampled_from(DRAWN)


def rows_of(name: str, ranks: int, stages_per_rank: int, count: int) -> list[list[Action]]:
    """All rows of a schedule."""
    row = SCHEDULES[name].row
    assert row
    return [list(row(position, ranks, stages_per_rank, count)) for position in range(ranks)]


def text(row: list[Action]) -> str:
    """A row as PyTorch prints it, without the stage."""
    return " ".join(f"{action.op}{action.microbatch}" for action in row)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[str, int, int, int]:
    """A schedule, ranks, stages per rank and microbatches that go together."""
    name = draw(names)
    ranks, count = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    stages_per_rank = {"line": 1, "v": 2, "loop": draw(st.integers(1, 3))}[SCHEDULES[name].layout]
    assume(SCHEDULES[name].refuses(ranks, stages_per_rank, count) is None)
    return name, ranks, stages_per_rank, count


def test_1f1b_is_the_picture_in_its_docstring() -> None:
    """Three ranks, four microbatches: warm-up of 3, 2 and 1 forwards, then one backward for each forward."""
    assert [text(row) for row in rows_of("1f1b", 3, 1, 4)] == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_gpipe_and_inference_by_hand() -> None:
    """GPipe fills and drains alike on every rank; inference has no way back."""
    assert {text(row) for row in rows_of("gpipe", 3, 1, 3)} == {"F0 F1 F2 B0 B1 B2"}
    assert {text(row) for row in rows_of("forward", 2, 1, 3)} == {"F0 F1 F2"}


def test_zb_h2_is_the_papers_figure() -> None:
    """Figure 3 of Qi et al. 2023 for 4 ranks: 7, 5, 3 and 1 forwards first, and the last rank's weight gradients come late."""
    rows = rows_of("zb-h2", 4, 1, 8)
    assert [text(row).split().index("I0") for row in rows] == [7, 5, 3, 1]
    assert text(rows[3]) == "F0 I0 F1 I1 F2 I2 F3 I3 F4 I4 F5 I5 F6 I6 W0 F7 I7 W1 W2 W3 W4 W5 W6 W7"


@given(sizes())
def test_every_microbatch_passes_every_stage_once(size: tuple[str, int, int, int]) -> None:
    """Each stage runs F, then B or I and W of each microbatch, all on the rank where the layout puts it."""
    name, ranks, stages_per_rank, count = size
    schedule = SCHEDULES[name]
    ends = {"forward": [["F"]]}.get(name, [["F", "I", "W"], ["F", "B"]] if schedule.splits_backward else [["F", "B"]])
    for position, row in enumerate(rows_of(*size)):
        local = [stage for stage in range(ranks * stages_per_rank) if schedule.rank_of_stage(stage, ranks) == position]
        passes: dict[tuple[int, int | None], list[str]] = {}
        for action in row:
            passes.setdefault((action.stage, action.microbatch), []).append(str(action.op))
        assert passes.keys() == {(stage, microbatch) for stage in local for microbatch in range(count)}
        assert all(found in ends for found in passes.values())


@given(sizes())
def test_no_schedule_deadlocks(size: tuple[str, int, int, int]) -> None:
    """Played in order, every row comes to its end."""
    _, ranks, stages_per_rank, _ = size
    rows, at, done = rows_of(*size), [0] * ranks, set()
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                stage, op, microbatch = row[at[rank]]
                last = stage == ranks * stages_per_rank - 1
                needed = {
                    "F": stage == 0 or (stage - 1, "F", microbatch) in done,
                    "W": (stage, "back", microbatch) in done,
                }.get(op, (stage, "F", microbatch) in done and (last or (stage + 1, "back", microbatch) in done))
                if not needed:
                    break
                done.add((stage, "back" if op in (Op.B, Op.I) else str(op), microbatch))
                at[rank] += 1
                moved = True
    assert at == [len(row) for row in rows]


@given(sizes())
def test_microbatches_in_flight_is_the_peak_of_the_row(size: tuple[str, int, int, int]) -> None:
    """What the planner reserves memory for is what the row holds at most."""
    name, ranks, stages_per_rank, count = size
    if name == "forward":
        return
    for stage in range(ranks * stages_per_rank):
        row = rows_of(*size)[SCHEDULES[name].rank_of_stage(stage, ranks)]
        own = [action for action in row if action.stage == stage]
        assert microbatches_in_flight(name, stage, ranks, ranks * stages_per_rank, count) == most_held(own)


def test_microbatches_in_flight_by_hand() -> None:
    """Narayanan et al. 2021: 1F1B holds 4, 3, 2, 1 of 8 microbatches on four stages, and never more than there are; GPipe all."""
    held = [[microbatches_in_flight(name, stage, 4, 4, count) for stage in range(4)] for name, count in (("1f1b", 8), ("1f1b", 2))]
    assert held == [[4, 3, 2, 1], [2, 2, 2, 1]]
    assert [microbatches_in_flight("gpipe", stage, 4, 4, 8) for stage in range(4)] == [8] * 4


def test_every_schedule_can_be_asked_for() -> None:
    """Scenario, plan file and registry know the same names."""
    assert set(get_args(Schedule)) == set(SCHEDULES) - {"forward"}
    assert set(get_args(_PlanSpec.model_fields["schedule"].annotation)) == set(SCHEDULE_NAMES)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("1f1b", (4, 2, 8), "one stage per rank"),
        ("zb-v", (4, 1, 8), "two stages per rank"),
        ("interleaved-1f1b", (4, 2, 9), "multiple of 2"),
        ("dualpipe-v", (4, 2, 7), "needs 8 microbatches"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, size: tuple[int, int, int], words: str) -> None:
    """The refusal says what would fit."""
    assert words in (SCHEDULES[name].refuses(*size) or "")


@given(
    st.integers(1, 4), st.integers(1, 8), st.sampled_from([1, 2]), st.floats(0.2, 1),
    st.lists(st.floats(0.2, 3), min_size=3, max_size=3), st.floats(0, 0.3),
)  # fmt: skip
def test_automatic_rows_keep_memory_and_beat_zb_h1(
    ranks: int, count: int, factor: int, kept: float, seconds: list[float], transfer_s: float
) -> None:
    """ZB-1p and ZB-2p hold no more than they may, run every pass, and are never slower than ZB-H1 where that fits."""
    prices = [PassSeconds(*seconds)] * ranks
    rows = find_rows(prices, transfer_s, count, factor * ranks, kept)
    assert all(most_held(row, kept) <= factor * ranks + 1e-9 for row in rows)
    assert [sorted(map(str, row)) for row in rows] == [sorted(map(str, row)) for row in rows_of("zb-h1", ranks, 1, count)]
    assert row_seconds(rows, prices, transfer_s) <= row_seconds(rows_of("zb-h1", ranks, 1, count), prices, transfer_s)
