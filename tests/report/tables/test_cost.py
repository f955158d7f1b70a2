"""Tables of costs, by hand."""

import pytest

from chinchilla_sim.report.pages.result import search_dict
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import NOT_STATED
from chinchilla_sim.report.tables.cost import cost_table
from chinchilla_sim.units import format_joule, format_seconds, format_usd
from tests.report.cells import MakeStudy, column_of, row_of


def test_cost_of_a_step_and_of_a_thousand(pipeline: Study) -> None:
    """Two nodes at 2 USD/h and 100 W cost both for the whole step."""
    step_s = pipeline.search.best.step_s
    step, thousand = row_of(cost_table(pipeline), "one step"), row_of(cost_table(pipeline), "1000 steps")
    assert (step["price"], step["energy (modelled)"]) == (format_usd(4 / 3600 * step_s), format_joule(200 * step_s))
    assert (thousand["time"], thousand["price"]) == (format_seconds(1000 * step_s), format_usd(4000 / 3600 * step_s))
    assert "CO2 (modelled)" not in cost_table(pipeline).headers


def test_cost_of_an_epoch_where_its_steps_are_known(measured: Study) -> None:
    """A run tells how many steps an epoch has: 4 losses in 2 epochs are 2."""
    step_s = measured.search.best.step_s
    assert row_of(cost_table(measured), "one epoch of 2 steps")["time"] == format_seconds(2 * step_s)


def test_price_of_zero_is_not_stated(make_study: MakeStudy) -> None:
    """Nothing is free: without a price the cell says so, and without a power likewise."""
    table = cost_table(make_study(cluster__nodes__0__price=None, cluster__nodes__0__power=None))
    assert set(column_of(table, "price")) == set(column_of(table, "energy (modelled)")) == {NOT_STATED}


def test_price_of_some_ranks_is_noted(make_study: MakeStudy) -> None:
    """A sum over ranks of which one has no price is told to be incomplete."""
    free = {"name": "free", "peak": "1 Tflop/s", "memory": "1 GiB", "power": "100 W"}
    study = make_study(cluster__nodes=[free | {"name": "paid", "price": "2 USD/h"}, free], search__minimum_ranks=2)
    assert "1 of 2 ranks have no stated price" in cost_table(study).note


def test_spot_prices_count_what_interruptions_lose(make_study: MakeStudy) -> None:
    """Two nodes at 0.5 in place of 2 USD/h: a step costs the waste more than 1 USD/h, beside 4 USD/h; the note and JSON say why."""
    offer = {"cluster__nodes__0__spot_price": "0.5 USD/h", "cluster__nodes__0__time_between_interruptions": "6 h"}
    study = make_study(**offer, job__checkpoint="30 s", job__restart="5 min", search__minimum_ranks=2)
    step_s, table = study.search.best.step_s, cost_table(study)
    waste = study.rent.wall_s_per_work_s
    assert (study.rent.between_interruptions_s, waste > 1.05) == (3 * 3600, True)
    row = row_of(table, "one step")
    assert row["expected price"] == format_usd(1 / 3600 * step_s * waste)
    assert row["without spot prices"] == format_usd(4 / 3600 * step_s)
    assert "at the spot price, one interruption in 3.00 h on average, a checkpoint after" in table.note
    cost = search_dict(study)["cost"]
    assert cost["step_usd"] == pytest.approx(1 / 3600 * step_s * waste)
    assert (len(cost["on_spot"]), cost["wall_s_per_work_s"]) == (1, waste)
    never = make_study(**offer, job__checkpoint="30 s", job__restart="5 min", search__spot="never", search__minimum_ranks=2)
    assert row_of(cost_table(never), "one step")["expected price"] == format_usd(4 / 3600 * never.search.best.step_s)
    assert cost_table(never).note.endswith("no node is rented at its spot price")


def test_co2_is_shown_with_a_grid_intensity(make_study: MakeStudy) -> None:
    """360 g/kWh are 0.1 mg per joule."""
    study = make_study(cluster__grid_intensity="360 g/kWh")
    milligrams = 1e5 * study.step_expense.joule / 1e3
    assert float(column_of(cost_table(study), "CO2 (modelled)")[1].split()[0]) == pytest.approx(milligrams, rel=0.01)


def test_cost_of_an_epoch_and_of_the_whole_job_as_the_scenario_states_them(make_study: MakeStudy) -> None:
    """1000 samples in batches of 64 are 16 steps, three passes 48; a stated number of steps takes the place of the passes."""
    study = make_study(job__epoch_samples=1000, job__epochs=3)
    assert column_of(cost_table(study), "for") == ["one step", "one epoch of 16 steps", "whole job: 3 epochs, 48 steps"]
    study = make_study(job__epoch_samples=1000, job__steps=20)
    assert column_of(cost_table(study), "for")[1:] == ["one epoch of 16 steps", "whole job: 20 steps, 1280 samples"]
