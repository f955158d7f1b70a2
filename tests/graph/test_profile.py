"""Profiles: times between and beyond the measured sizes, who was measured how, JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.graph.profile import Profile, TaskTime, Variant, repeated_rows

SIZES = Profile((TaskTime("a", 8, 5.0, 9.0), TaskTime("a", 2, 2.0, 3.0), TaskTime("a", 4, 3.0, 5.0)))

names = st.text(max_size=3)
amounts = st.floats(0, 1e9)
times = st.builds(TaskTime, names, st.integers(1, 4), amounts, amounts, st.sampled_from(["", "cpu"]), st.integers(0, 2), amounts)
syncs = st.lists(st.tuples(names, amounts), max_size=2).map(tuple)
variants = st.builds(Variant, st.integers(1, 8), st.booleans(), amounts, amounts, amounts, amounts, syncs, syncs)
profiles = st.builds(
    Profile,
    st.lists(times, max_size=4, unique_by=lambda row: (row.task, row.microbatch_size, row.device, row.busy_ranks)).map(tuple),
    st.dictionaries(names, amounts, max_size=2),
    st.dictionaries(names, names, max_size=2),
    st.dictionaries(names, st.lists(variants, max_size=2).map(tuple), max_size=2),
    names,
)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(2, (2.0, 3.0)), (3, (2.5, 4.0)), (4, (3.0, 5.0)), (6, (4.0, 7.0)), (8, (5.0, 9.0)), (12, (7.0, 13.0)), (1, (1.5, 2.0))],
)
def test_times_are_linear_between_sizes_and_beyond_them(size: int, expected: tuple[float, float]) -> None:
    """At 2, 4 and 8 samples as measured; 3 and 6 lie halfway; 12 and 1 go on with the slope of the last two."""
    assert SIZES.seconds("a", size) == pytest.approx(expected)


def test_one_size_scales_in_proportion() -> None:
    """Of one measurement nothing is known but that twice the samples take twice as long."""
    assert Profile((TaskTime("a", 4, 1.0, 3.0),)).seconds("a", 6) == (1.5, 4.5)


def test_time_is_never_negative() -> None:
    """A slope that falls steeply below the smallest size ends at 0."""
    assert Profile((TaskTime("a", 10, 1.0, 0.0), TaskTime("a", 12, 9.0, 0.0))).seconds("a", 1) == (0.0, 0.0)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10)), min_size=2, max_size=6, unique_by=lambda row: row[0]), st.data())
def test_more_samples_never_take_less_time(points: list[tuple[int, float]], data: st.DataObject) -> None:
    """Where no measured time falls with the size, no time in between or beyond does."""
    sizes, seconds = sorted(size for size, _ in points), sorted(second for _, second in points)
    profile = Profile(tuple(TaskTime("a", size, second, 0.0) for size, second in zip(sizes, seconds, strict=True)))
    small, large = sorted((data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80))))
    (low, _), (high, _) = profile.seconds("a", small) or (0, 0), profile.seconds("a", large) or (0, 0)
    assert low <= high + 1e-9 * abs(high)


def test_times_are_found_by_device_and_busy_ranks() -> None:
    """A time for so many busy ranks comes before one that does not state them; another kind of device has no time."""
    profile = Profile((TaskTime("a", 1, 1.0, 0.0), TaskTime("a", 1, 2.0, 0.0, busy_ranks=4), TaskTime("a", 1, 9.0, 0.0, "cpu")))
    assert profile.seconds("a", 1, busy_ranks=4) == (2.0, 0.0)
    assert profile.seconds("a", 1, busy_ranks=2) == profile.seconds("a", 1) == (1.0, 0.0)
    assert profile.seconds("a", 1, "cpu") == profile.seconds("a", 1, "cpu", 3) == (9.0, 0.0)
    assert profile.seconds("a", 1, "accelerator") is profile.seconds("b", 1) is None
    assert profile.measured_tasks == {"a"}


@given(profiles)
def test_json_gives_the_same_profile_back(profile: Profile) -> None:
    """from_dict undoes to_dict through JSON text: equal profile, equal digest."""
    again = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again == profile
    assert again.digest == profile.digest


def test_defaults_are_not_written() -> None:
    """An empty profile is {}, and a row holds only what somebody stated."""
    assert Profile().to_dict() == {}
    row = {"task": "a", "microbatch_size": 2, "forward_s": 0.0, "backward_s": 1.0}
    assert Profile((TaskTime("a", 2, 0.0, 1.0),)).to_dict() == {"times": [row]}


def test_digest_is_of_the_figures() -> None:
    """Nothing measured is "none", wherever it comes from; one more busy rank is another profile."""
    assert Profile(source="elsewhere").digest == "none"
    one, other = (Profile((TaskTime("a", 1, 1.0, 1.0, busy_ranks=ranks),)) for ranks in (1, 2))
    assert one.digest != other.digest != "none"


def test_a_condition_is_measured_once() -> None:
    """Two times of one task, size, device and number of busy ranks have no slope between them: they are refused."""
    rows = [{"task": "a", "microbatch_size": 2, "forward_s": second, "backward_s": 0.0} for second in (1.0, 2.0)]
    with pytest.raises(ValueError, match=r"times\.1: a has two times"):
        Profile.from_dict({"times": rows})
    assert repeated_rows([TaskTime("a", 1, 1, 1), TaskTime("a", 1, 1, 1, "cpu"), TaskTime("a", 1, 2, 2)]) == [2]
