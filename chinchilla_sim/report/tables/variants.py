"""How variants of a model, simulated and measured, are shown."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.report.table import Table
from chinchilla_sim.units import format_bytes, format_flop, format_seconds
from chinchilla_sim.validation.spread import Played, SpreadVariant
from chinchilla_sim.validation.variants import VariantCheck, VariantRow


def variants_table(check: VariantCheck) -> Table:
    """One row for each variant: size, seconds and speed-up on both sides, and the metrics of the job where it has any."""
    metrics = [name for name in check.rows[0].metrics if all(name in row.metrics for row in check.rows)]
    headers = ("variant", "flop", "in memory", "in a file", "simulated", "measured", "error", "speed-up simulated", "measured", "error")
    right, pairs = check.pairs_in_order
    note = (
        f"forward passes of {check.batch_size} samples on one rank; median error {check.median_error:.1%}, "
        f"of the speed-up {check.median_ratio_error:.1%}; {right} of {pairs} pairs in the measured order"
    )
    return Table(
        "Variants of the model", (*headers, *(name.replace("_", " ") for name in metrics)),
        tuple(_cells(row, metrics) for row in check.rows), note=note.replace("%", " %"),
    )  # fmt: skip


def spread_tables(rows: Sequence[SpreadVariant]) -> tuple[Table, ...]:
    """How each variant is trained over several ranks and what comes out, and how it then answers: a row for each number of ranks."""
    metrics = [name for name in rows[0].answering.metrics if all(name in row.answering.metrics for row in rows)] if rows else []
    headers = ("variant", "ranks", "plan", "simulated", "measured", "error", *(name.replace("_", " ") for name in metrics))
    trained = [(row, row.training) for row in rows if row.training]
    tables = (
        ("Variants trained over several ranks", "seconds of a step", [_spread(row, one, metrics) for row, one in trained]),
        ("Variants answering over several ranks", "seconds of a batch", [_spread(row, row.answering, metrics) for row in rows]),
    )
    return tuple(Table(title, headers, tuple(cells), note=note) for title, note, cells in tables if cells)


def _spread(row: SpreadVariant, one: Played, metrics: list[str]) -> tuple[str, ...]:
    error = f"{100 * one.relative_error:+.1f} %"
    told = (f"{one.metrics[name]:.4f}" if name in one.metrics else "" for name in metrics)
    return row.name, str(row.rank_count), one.plan, format_seconds(one.simulated_s), format_seconds(one.measured_s), error, *told


def _cells(row: VariantRow, metrics: list[str]) -> tuple[str, ...]:
    return (
        row.name, format_flop(row.forward_flop), format_bytes(row.measured_bytes), format_bytes(row.file_bytes),
        format_seconds(row.simulated_s), format_seconds(row.measured_s), f"{100 * row.relative_error:+.1f} %",
        f"{row.simulated_ratio:.2f}", f"{row.measured_ratio:.2f}", f"{100 * row.ratio_error:+.1f} %",
        *(f"{row.metrics[name]:.4f}" for name in metrics),
    )  # fmt: skip
