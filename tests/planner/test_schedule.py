"""Schedules as pictures typed as literals, and the laws that every schedule keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cost.memory import microbatches_in_flight
from chinchilla_sim.planner.plan import SCHEDULES
from chinchilla_sim.planner.schedule import SCHEDULE_OF

sizes = st.integers(1, 8).flatmap(lambda stages: st.tuples(st.integers(0, stages - 1), st.just(stages), st.integers(1, 12)))
trained = st.sampled_from(["gpipe", "1f1b"])


def row(schedule: str, stage: int, stages: int, count: int) -> str:
    """A rank's passes as text."""
    return " ".join(f"{name}{microbatch}" for name, microbatch in SCHEDULE_OF[schedule](stage, stages, count))


def test_1f1b_is_the_picture_in_its_docstring() -> None:
    """Three stages, four microbatches: warm-up of 3, 2 and 1 forwards, then one backward for each forward."""
    assert [row("1f1b", stage, 3, 4) for stage in range(3)] == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_gpipe_and_inference_by_hand() -> None:
    """GPipe fills and drains alike on every stage; inference has no way back."""
    assert {row("gpipe", stage, 3, 3) for stage in range(3)} == {"F0 F1 F2 B0 B1 B2"}
    assert row("forward", 1, 2, 3) == "F0 F1 F2"


@given(trained, sizes)
def test_every_microbatch_goes_forward_then_back_in_order(schedule: str, size: tuple[int, int, int]) -> None:
    """Each microbatch has one F and one later B, and both kinds run in ascending order."""
    passes = list(SCHEDULE_OF[schedule](*size))
    forwards, backwards = ([m for name, m in passes if name == kind] for kind in "FB")
    assert forwards == backwards == list(range(size[2]))
    assert all(passes.index(("F", m)) < passes.index(("B", m)) for m in forwards)


@given(trained, sizes)
def test_memory_formula_is_the_peak_of_the_schedule(schedule: str, size: tuple[int, int, int]) -> None:
    """microbatches_in_flight equals the most forwards that wait for their backward at once."""
    held = peak = 0
    for name, _ in SCHEDULE_OF[schedule](*size):
        held += 1 if name == "F" else -1
        peak = max(peak, held)
    assert microbatches_in_flight(schedule, *size) == peak


def test_every_schedule_of_a_plan_has_an_order() -> None:
    """What a plan may name is what can be lowered."""
    assert set(SCHEDULES) == set(SCHEDULE_OF)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_one_stage_is_gradient_accumulation(schedule: str) -> None:
    """A single stage of 1F1B goes forward and back at once; GPipe keeps all microbatches until the end."""
    assert row(schedule, 0, 1, 3) == {"gpipe": "F0 F1 F2 B0 B1 B2", "1f1b": "F0 B0 F1 B1 F2 B2"}[schedule]
