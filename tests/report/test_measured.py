"""Tables of a run."""

from dataclasses import replace

from chinchilla_sim.report.measured import categories_table, comparison_table, metrics_table
from chinchilla_sim.report.study import Study
from chinchilla_sim.units import format_seconds
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
