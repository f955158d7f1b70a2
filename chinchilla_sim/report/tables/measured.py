"""Tables of a run: the simulated step beside the measured one, and what the run achieved."""

from __future__ import annotations

from statistics import median

from chinchilla_sim.report.table import Table, percent, signed_percent
from chinchilla_sim.units import format_bytes, format_seconds, plain_number
from chinchilla_sim.validation.compare import Comparison, Measurement


def signed_seconds(seconds: float) -> str:
    """Seconds that may be more or less.

    >>> signed_seconds(0.5), signed_seconds(-0.5)
    ('+500 ms', '-500 ms')
    """
    return ("+" if seconds > 0 else "") + format_seconds(seconds)


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
        share = signed_percent(difference_s / comparison.measured_step_s)
        times = [format_seconds(row.simulated_s), format_seconds(row.measured_s), signed_seconds(difference_s)]
        rows.append((str(row.rank), row.category, *times, share))
    headers = ("rank", "category", "simulated", "measured", "difference", "of the measured step")
    return Table("Simulated and measured by rank and category", headers, tuple(rows), text_columns=(0, 1))


def attribution_table(comparison: Comparison) -> tuple[Table, ...]:
    """The error of the step by cause; none where it is not known."""
    told = comparison.attribution
    if told is None:
        return ()
    rows: list[tuple[str, float]] = [(share.cause, share.error_s) for share in told.shares]
    rows += [("residual", told.residual_s), ("all", told.error_s)]
    cells = tuple((name, signed_seconds(error_s), signed_percent(error_s / told.measured_step_s)) for name, error_s in rows)
    note = "simulated seconds are replaced by measured ones, one cause after the other; a share is what the step shrinks by"
    if told.unmatched:
        note += f"; {told.unmatched} simulated spans have no measured counterpart"
    return (Table("Error of the step by cause", ("cause", "error", "of the measured step"), cells, note=note),)


def peaks_table(comparison: Comparison) -> tuple[Table, ...]:
    """Simulated and measured peak memory of each rank; none where tensors were not counted."""
    if not comparison.peaks:
        return ()
    rows = []
    for row in comparison.peaks:
        one = row.measured
        sizes = (row.simulated_bytes, one.tensor_bytes, one.held_bytes, one.process_bytes, one.process_start_bytes)
        rows.append((str(one.rank), *map(format_bytes, sizes), signed_percent(row.relative_error)))
    headers = ("rank", "simulated", "tensors", "of them between steps", "process", "process at its start", "relative error")
    note = "tensors: all that PyTorch's allocator gave out at the peak of one step; process: largest resident set (VmHWM)"
    return (
        Table("Peak memory, simulated and measured", headers, tuple(rows), note=f"{note}; relative error of simulated against tensors"),
    )


def metrics_table(measurement: Measurement) -> Table:
    """What the run achieved: losses, the job's own metrics, and seconds of an epoch."""
    rows = []
    for name, value in sorted(measurement.metrics.items()):
        rows.append((name.replace("_", " "), percent(value) if name.endswith("accuracy") else plain_number(value, 4)))
    if measurement.losses:
        rows.append(("training loss, first step", plain_number(measurement.losses[0], 4)))
        rows.append(("training loss, last step", plain_number(measurement.losses[-1], 4)))
        rows.append(("steps", str(len(measurement.losses))))
    if measurement.epoch_s:
        rows.append(("epochs", str(len(measurement.epoch_s))))
        rows.append(("one epoch (median)", format_seconds(median(measurement.epoch_s))))
    return Table("What the run achieved", ("metric", "measured"), tuple(rows))
