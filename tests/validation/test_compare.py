"""Simulated against measured: the numbers of a comparison, by hand."""

import json
from dataclasses import replace

import pytest

from chinchilla_sim.timeline import MemorySample, Span, Timeline, Wait
from chinchilla_sim.validation.compare import CategoryRow, Measurement, compare
from chinchilla_sim.validation.peaks import MeasuredPeak


def timeline_of(forward_s: float, transfer_s: float, backward_s: float) -> Timeline:
    """One rank that computes, receives in the open, and computes."""
    end = forward_s + transfer_s
    return Timeline(
        1,
        (
            Span(0, "compute", "forward", "0F0", 0.0, forward_s),
            Span(0, "receive", "transfer", "0RECV_B0", forward_s, end, 8.0),
            Span(0, "compute", "backward", "0B0", end, end + backward_s),
        ),
    )


@pytest.fixture
def measured() -> Measurement:
    """Five steps of a real run; the recorded one took 5 s."""
    return Measurement(
        (4.0, 6.0, 5.0, 5.0, 9.0), timeline_of(1.0, 2.0, 2.0), (2.3, 1.9), {"validation_accuracy": 0.9}, (30.0,), "weights.pt"
    )


def test_comparison_by_hand(measured: Measurement) -> None:
    """4 s simulated against a median of 5 s is -20 %; each category stands beside its measured seconds, idle time too."""
    comparison = compare(timeline_of(1.0, 1.0, 2.0), measured)
    assert (comparison.simulated_step_s, comparison.measured_step_s, comparison.step_count) == (4.0, 5.0, 5)
    assert comparison.relative_error == pytest.approx(-0.2)
    assert (comparison.measured_p5_s, comparison.measured_p95_s) == (pytest.approx(4.2), pytest.approx(8.4))
    assert comparison.categories == (
        CategoryRow(0, "backward", 2.0, 2.0),
        CategoryRow(0, "forward", 1.0, 1.0),
        CategoryRow(0, "idle", 1.0, 2.0),
        CategoryRow(0, "transfer", 1.0, 2.0),
    )


def test_run_against_itself_has_no_error(measured: Measurement) -> None:
    """The recorded timeline, simulated, is off by nothing in any category."""
    comparison = compare(measured.timeline, measured)
    assert comparison.relative_error == 0
    assert all(row.simulated_s == row.measured_s for row in comparison.categories)


def test_category_that_one_side_lacks_is_zero_there(measured: Measurement) -> None:
    """An optimizer that was measured and not simulated shows as 0 s against its seconds."""
    spans = (*measured.timeline.spans, Span(0, "compute", "optimizer", "0OPTIM", 5.0, 5.5))
    run = Measurement((5.5,), Timeline(1, spans))
    rows = {row.category: row for row in compare(measured.timeline, run).categories}
    assert (rows["optimizer"].simulated_s, rows["optimizer"].measured_s) == (0.0, 0.5)


def test_one_step_has_no_spread() -> None:
    """A single measured step is its own 5th and 95th percentile."""
    assert Measurement((3.0,), timeline_of(1.0, 1.0, 1.0)).spread == (3.0, 3.0)


def test_measurement_survives_json(measured: Measurement) -> None:
    """Through JSON text every number comes back."""
    assert Measurement.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured


def test_comparison_as_json(measured: Measurement) -> None:
    """`validate run --json` prints step times, spread, error and categories."""
    shown = json.loads(json.dumps(compare(timeline_of(1.0, 1.0, 2.0), measured).to_dict()))
    assert shown["relative_error"] == pytest.approx(-0.2)
    assert shown["categories"][3] == {"rank": 0, "category": "transfer", "simulated_s": 1.0, "measured_s": 2.0}
    assert set(shown) == {
        "simulated_step_s", "measured_step_s", "measured_p5_s", "measured_p95_s", "step_count", "relative_error", "categories",
    }  # fmt: skip


def test_measurement_keeps_waits_and_peaks_through_json(measured: Measurement) -> None:
    """What ranks waited for and held comes back too, with the zero of time at the first span."""
    timeline = replace(measured.timeline, waits=(Wait(0, 1.0, 3.0, "0RECV_B0", 1),))
    run = replace(measured, timeline=timeline, peaks=(MeasuredPeak(0, 9.0, 4.0, 100.0, 50.0),))
    assert Measurement.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_simulated_peak_stands_beside_the_counted_one(measured: Measurement) -> None:
    """12 bytes simulated against 10 of tensors is 20 % too much; a rank whose tensors were not counted has no row."""
    run = replace(measured, peaks=(MeasuredPeak(0, 10.0, 4.0, 100.0, 50.0), MeasuredPeak(1, 0.0, 0.0, 100.0, 50.0)))
    simulated = replace(timeline_of(1.0, 1.0, 2.0), memory=(MemorySample(0, 0.0, 7.0), MemorySample(0, 1.0, 12.0)))
    comparison = compare(simulated, run)
    (row,) = comparison.peaks
    assert row.relative_error == pytest.approx(0.2)
    assert comparison.to_dict()["memory"][0]["simulated_bytes"] == 12.0
