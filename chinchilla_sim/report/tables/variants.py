"""How variants of a model, simulated and measured, are shown."""

from __future__ import annotations

from chinchilla_sim.report.table import Table
from chinchilla_sim.units import format_bytes, format_flop, format_seconds
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


def _cells(row: VariantRow, metrics: list[str]) -> tuple[str, ...]:
    return (
        row.name, format_flop(row.forward_flop), format_bytes(row.measured_bytes), format_bytes(row.file_bytes),
        format_seconds(row.simulated_s), format_seconds(row.measured_s), f"{100 * row.relative_error:+.1f} %",
        f"{row.simulated_ratio:.2f}", f"{row.measured_ratio:.2f}", f"{100 * row.ratio_error:+.1f} %",
        *(f"{row.metrics[name]:.4f}" for name in metrics),
    )  # fmt: skip
