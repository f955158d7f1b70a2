"""What a step costs in USD, joule and CO2.

usd    = step_s * sum of the ranks' prices            (a rented machine is paid while it waits)
joule  = step_s * sum of the ranks' powers            (modelled: full power for the whole step, an upper bound)
kg CO2 = joule * grid intensity
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_sim.cluster.topology import Device


@dataclass(frozen=True, slots=True)
class Expense:
    """Cost of some seconds on some devices; `joule` is modelled, `kg_co2` None without a grid intensity."""

    usd: float
    joule: float
    kg_co2: float | None

    def times(self, count: float) -> Expense:
        """The same, `count` times."""
        return Expense(self.usd * count, self.joule * count, None if self.kg_co2 is None else self.kg_co2 * count)


def expense(duration_s: float, devices: Sequence[Device], grid_kg_per_joule: float | None = None) -> Expense:
    """Cost of keeping the devices for `duration_s`."""
    joule = duration_s * sum(device.power_watt for device in devices)
    return Expense(
        usd=duration_s * sum(device.usd_per_s for device in devices),
        joule=joule,
        kg_co2=None if grid_kg_per_joule is None else joule * grid_kg_per_joule,
    )
