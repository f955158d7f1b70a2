"""Tables of what was measured on this machine: its calibration, tasks of a model, and how fast this program is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from chinchilla_sim.cluster.calibration import Calibration
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.report.table import Table, percent
from chinchilla_sim.simulator.benchmark import Figure
from chinchilla_sim.units import format_bandwidth, format_bytes, format_flop_per_s, format_seconds


def figures_dict(figures: Sequence[Figure]) -> dict[str, Any]:
    """JSON-ready form of measured speeds."""
    fields = ("name", "value", "unit", "target", "reached")
    return {"figures": [{name: getattr(figure, name) for name in fields} for figure in figures]}


def speed_table(figures: Sequence[Figure], title: str = "Speed of the simulator on this machine") -> Table:
    """Measured speeds, with the targets of this project."""
    cells = []
    for figure in figures:
        value = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.2f}"
        target = "" if figure.target is None else f"{'<=' if figure.at_most else '>='} {figure.target:,.0f}"
        cells.append((figure.name, value, figure.unit, target, {None: "", True: "yes", False: "no"}[figure.reached]))
    return Table(title, ("what", "measured", "unit", "target", "reached"), tuple(cells), text_columns=(0, 2))


def calibration_table(calibration: Calibration) -> Table:
    """Constants by number of busy ranks."""
    rows = []
    for count, device in sorted(calibration.devices.items()):
        row = [str(count), format_flop_per_s(device.flop_per_s), f"{format_bytes(device.memory_bandwidth_bytes_per_s)}/s"]
        row += [format_seconds(device.forward_launch_s), format_seconds(device.backward_launch_s)]
        row += [
            format_seconds(device.forward_fixed_s + device.backward_fixed_s),
            format_seconds(device.step_fixed_s),
            percent(calibration.fit_error[count]),
        ]
        rows.append(tuple(row))
    headers = ("busy ranks", "products", "memory", "forward kernel", "backward kernel", "per microbatch", "per step", "median fit error")
    link = f"{format_seconds(calibration.transfer_latency_s)} and {format_bandwidth(calibration.transfer_bandwidth_bytes_per_s)}"
    note = f"between two local ranks: {link}; {calibration.key.cpu}, torch {calibration.key.torch}, {calibration.date}"
    return Table("This machine", headers, tuple(rows), note=note)


SHOWN_TASKS = 20


def profile_table(profile: Profile) -> Table:
    """The slowest measured tasks at the largest microbatch, and how steady all measurements were."""
    size = max(row.microbatch_size for row in profile.times)
    busy = max(row.busy_ranks for row in profile.times)
    rows = [row for row in profile.times if (row.microbatch_size, row.busy_ranks) == (size, busy)]
    slowest = sorted(rows, key=lambda row: (-(row.forward_s + row.backward_s), row.task))[:SHOWN_TASKS]
    cells = tuple((row.task, format_seconds(row.forward_s), format_seconds(row.backward_s), percent(row.spread)) for row in slowest)
    total = f"forward {format_seconds(sum(row.forward_s for row in rows))}, backward {format_seconds(sum(row.backward_s for row in rows))}"
    spread = percent(median(row.spread for row in profile.times))
    note = f"{len(rows)} tasks, microbatch {size}, {busy} busy ranks: {total}; median spread (p75 - p25) {spread}; {profile.source}"
    return Table("Slowest tasks", ("task", "forward", "backward", "spread"), cells, note=note)
