"""Tables of a run: the simulated step beside the measured one, and what the run achieved."""

from __future__ import annotations

from statistics import median

from chinchilla_sim.report.table import Table, percent, signed_percent
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.compare import Comparison, Measurement


def comparison_table(comparison: Comparison) -> Table:
    """The simulated step beside the measured one."""
    spread = f"{format_seconds(comparison.measured_p5_s)} to {format_seconds(comparison.measured_p95_s)}"
    row = ("one step", format_seconds(comparison.simulated_step_s), format_seconds(comparison.measured_step_s), spread)
    headers = ("", "simulated", "measured (median)", "measured p5 to p95", "relative error")
    note = f"{comparison.step_count} measured steps; relative error = (simulated - measured) / measured"
    return Table("Simulated and measured step", headers, ((*row, signed_percent(comparison.relative_error)),), note=note)


def categories_table(comparison: Comparison) -> Table:
    """Where the difference comes from: seconds of each category on each rank."""
    rows = []
    for row in comparison.categories:
        difference_s = row.simulated_s - row.measured_s
        sign = "+" if difference_s > 0 else ""
        share = signed_percent(difference_s / comparison.measured_step_s)
        times = [format_seconds(row.simulated_s), format_seconds(row.measured_s), sign + format_seconds(difference_s)]
        rows.append((str(row.rank), row.category, *times, share))
    headers = ("rank", "category", "simulated", "measured", "difference", "of the measured step")
    return Table("Simulated and measured by rank and category", headers, tuple(rows), text_columns=(0, 1))


def metrics_table(measurement: Measurement) -> Table:
    """What the run achieved: losses, the job's own metrics, and seconds of an epoch."""
    rows = []
    for name, value in sorted(measurement.metrics.items()):
        rows.append((name.replace("_", " "), percent(value) if name.endswith("accuracy") else f"{value:.4g}"))
    if measurement.losses:
        rows.append(("training loss, first step", f"{measurement.losses[0]:.4g}"))
        rows.append(("training loss, last step", f"{measurement.losses[-1]:.4g}"))
        rows.append(("steps", str(len(measurement.losses))))
    if measurement.epoch_s:
        rows.append(("epochs", str(len(measurement.epoch_s))))
        rows.append(("one epoch (median)", format_seconds(median(measurement.epoch_s))))
    return Table("What the run achieved", ("metric", "measured"), tuple(rows))
