"""USD, joule and CO2 of some seconds."""

import pytest

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.money import expense

RENTED = Device("rented", 1.0, 1.0, power_watt=300.0, usd_per_s=2 / 3600)


def test_expense_by_hand() -> None:
    """Four devices at 2 USD/h and 300 W for half an hour: 4 USD, 2.16 MJ, 0.24 kg at 400 g/kWh."""
    spent = expense(1800.0, [RENTED] * 4, 0.4 / 3.6e6)
    assert (spent.usd, spent.joule, spent.kg_co2) == (pytest.approx(4.0), pytest.approx(2.16e6), pytest.approx(0.24))


def test_times_multiplies_every_amount() -> None:
    """A thousand steps cost a thousand times one; an unknown grid stays unknown."""
    once = expense(1.0, [RENTED])
    assert (once.times(1000).usd, once.times(1000).joule, once.times(1000).kg_co2) == (pytest.approx(2000 / 3600), 300_000, None)
