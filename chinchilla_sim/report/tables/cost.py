"""Tables of what a plan costs: seconds, USD, energy and CO2 of a step and of the whole job."""

from __future__ import annotations

from fractions import Fraction
from math import isfinite

from chinchilla_sim.cost.rent import Rent
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import NOT_STATED, Table, percent
from chinchilla_sim.units import QuantityKind, format_joule, format_requests_per_s, format_seconds, format_usd

STEPS_WITHOUT_EPOCH = 1000
_MASSES = {"ug": Fraction(1, 10**9), "mg": Fraction(1, 10**6), "g": Fraction(1, 1000), "kg": Fraction(1), "t": Fraction(1000)}
format_kg = QuantityKind("mass", "kg", "2 kg", _MASSES, tuple(_MASSES)).format


def cost_table(study: Study) -> Table:
    """Simulated seconds, USD, modelled energy and CO2 of a step, an epoch, the whole job and the way to the target, else of 1000 steps."""
    with_co2, with_spot = study.cluster.grid_kg_per_joule is not None, bool(study.cluster.spot_offers)
    rows = []
    for name, count in _amounts(study):
        spent = study.step_expense.times(count)
        row = [name, format_seconds(count * study.search.best.step_s)]
        row.append(format_usd(spent.usd) if spent.usd else NOT_STATED)
        row += [format_usd(count * study.search.best.step_s * study.rent.full_usd_per_s)] if with_spot else []
        row.append(format_joule(spent.joule) if spent.joule else NOT_STATED)
        if with_co2:
            row.append(format_kg(spent.kg_co2) if spent.kg_co2 else NOT_STATED)
        rows.append(tuple(row))
    prices = ("expected price", "without spot prices") if with_spot else ("price",)
    headers = ("for", "time", *prices, "energy (modelled)", *(["CO2 (modelled)"] if with_co2 else []))
    return Table("Cost of the chosen plan, simulated", headers, tuple(rows), note=_cost_note(study))


def _amounts(study: Study) -> list[tuple[str, float]]:
    """What costs are told of, in steps: as much as the scenario, or a run, says."""
    job, per_epoch, forecast = study.scenario.job, study.steps_per_epoch, study.search.best.forecast
    found: list[tuple[str, float]] = []
    if per_epoch:
        found.append((f"one epoch of {per_epoch} steps", per_epoch))
    if job.total_steps is not None:
        found.append((f"whole job: {job.total_steps} steps, {job.total_steps * study.plan.global_batch_size} samples", job.total_steps))
    elif per_epoch and job.epochs > 1:
        found.append((f"whole job: {job.epochs} epochs, {job.epochs * per_epoch} steps", job.epochs * per_epoch))
    if forecast and forecast.steps is not None and isfinite(forecast.steps):
        found.append((f"to the target accuracy: {forecast.steps:.0f} steps (measured)", forecast.steps))
    return [("one step", 1), *(found or [(f"{STEPS_WITHOUT_EPOCH} steps", STEPS_WITHOUT_EPOCH)])]


def _cost_note(study: Study) -> str:
    devices = [study.cluster.device(slot, len(study.plan.slots)) for slot in study.plan.slots]
    note = "energy: full power for the whole step on every rank in use, an upper bound"
    served, usd_per_s = study.search.best.serving, sum(device.usd_per_s for device in devices)
    if served and usd_per_s:
        each = format_usd(1000 * usd_per_s / served.arrivals_per_s)
        note += f"; at {format_requests_per_s(served.arrivals_per_s)} the devices, paid while they wait, cost {each} per 1000 requests"
    for what, given in (("price", [d.usd_per_s for d in devices]), ("power", [d.power_watt for d in devices])):
        missing = given.count(0.0)
        if 0 < missing < len(given):
            note += f"; {missing} of {len(given)} ranks have no stated {what} and count as 0"
    return note + (f"; {rent_words(study.rent)}" if study.cluster.spot_offers else "")


def rent_words(rent: Rent) -> str:
    """How the nodes in use are rented, and what interruptions cost."""
    if not rent.on_spot:
        return "no node is rented at its spot price"
    often = f"one interruption in {format_seconds(rent.between_interruptions_s)} on average"
    saved = f"a checkpoint after {format_seconds(rent.interval_s)} of work"
    lost = f"{percent(1 - 1 / rent.wall_s_per_work_s)} of the time is lost and paid for, which the time column leaves out"
    return f"expected price: {', '.join(rent.on_spot)} at the spot price, {often}, {saved}; {lost}"
