"""How a race of two engines is shown."""

from __future__ import annotations

from chinchilla_sim.report.table import Table
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.engine_race import OURS, TORCH, EngineRace


def engines_table(race: EngineRace) -> Table:
    """Median step of both engines, and their ratio with its range over the rounds."""
    ratios = sorted(race.round_ratios)
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f} over {len(ratios)} rounds"
    rows = (
        ("chinchilla (receives posted early)", format_seconds(race.median_s(OURS)), "1.00", ""),
        ("torch.distributed.pipelining", format_seconds(race.median_s(TORCH)), f"{race.ratio:.2f}", spread),
    )
    return Table("Engines on the same plan, in turns", ("engine", "median step", "relative", "range"), rows, text_columns=(0, 3))
