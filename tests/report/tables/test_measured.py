"""Tables of a run."""

from dataclasses import replace

from chinchilla_sim.report.pages.run_page import render_run_page
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.measured import attribution_table, categories_table, comparison_table, metrics_table, peaks_table
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.attribute import Attribution, Share
from chinchilla_sim.validation.peaks import MeasuredPeak, PeakRow
from tests.report.cells import row_of


def test_comparison_shows_spread_and_error(measured: Study) -> None:
    """A run of 1.25 times the simulated step is simulated 20 % too fast."""
    assert measured.comparison
    row = row_of(comparison_table(measured.comparison), "one step")
    assert row["relative error"] == "-20.0 %"
    low, high = measured.comparison.measured_p5_s, measured.comparison.measured_p95_s
    assert row["measured p5 to p95"] == f"{format_seconds(low)} to {format_seconds(high)}"


def test_categories_show_differences_with_sign(measured: Study) -> None:
    """Every category of every rank has a row; the difference is simulated less measured."""
    assert measured.comparison
    table = categories_table(measured.comparison)
    assert len(table.rows) == len(measured.comparison.categories)
    first = measured.comparison.categories[0]
    assert table.rows[0][4] == format_seconds(first.simulated_s - first.measured_s)
    slow = replace(first, measured_s=first.simulated_s / 2)
    assert categories_table(replace(measured.comparison, categories=(slow,))).rows[0][4].startswith("+")


def test_accuracy_becomes_percent(measured: Study) -> None:
    """Fractions become percent here and nowhere else; other metrics stay numbers."""
    assert measured.measurement
    table = metrics_table(measured.measurement)
    assert row_of(table, "validation accuracy")["measured"] == "97.1 %"
    assert row_of(table, "validation loss")["measured"] == "0.1234"


def test_causes_and_residual_stand_above_their_sum(measured: Study) -> None:
    """Every cause has a row with sign and share of the step, then the residual, then the whole error; nothing without attribution."""
    assert measured.comparison and attribution_table(measured.comparison) == ()
    told = Attribution(0.010, 0.020, (Share("computation", -0.012), Share("transfer", 0.003)), -0.001, unmatched=2)
    (table,) = attribution_table(replace(measured.comparison, attribution=told))
    assert table.rows == (
        ("computation", "-12.0 ms", "-60.0 %"),
        ("transfer", "+3.00 ms", "+15.0 %"),
        ("residual", "-1.00 ms", "-5.0 %"),
        ("all", "-10.0 ms", "-50.0 %"),
    )
    assert "2 simulated spans have no measured counterpart" in table.note


def test_memory_is_compared_with_counted_tensors(measured: Study) -> None:
    """90 MB simulated against 100 MB of tensors is -10 %; the process stands beside them."""
    assert measured.comparison and peaks_table(measured.comparison) == ()
    row = PeakRow(MeasuredPeak(1, 100e6, 40e6, 500e6, 250e6), 90e6)
    (table,) = peaks_table(replace(measured.comparison, peaks=(row,)))
    assert table.rows == (("1", "90.0 MB", "100 MB", "40.0 MB", "500 MB", "250 MB", "-10.0 %"),)


def test_page_of_a_run_names_the_largest_cause(measured: Study) -> None:
    """One self-contained page: both steps in one figure, tables, and the cause of most of the error in its first sentence."""
    assert measured.comparison and measured.measurement
    told = Attribution(0.010, 0.020, (Share("computation", -0.012), Share("waiting", 0.002)), 0.0)
    comparison = replace(measured.comparison, attribution=told)
    page = render_run_page("a <plan>", measured.search.best.timeline, measured.measurement.timeline, comparison)
    assert "a &lt;plan&gt;" in page and "<script" not in page
    assert "Most of the difference is computation" in page
    assert page.count("<svg") == 1 and "Error of the step by cause" in page
