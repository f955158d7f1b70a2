"""Requests for real: a plan answers them on this machine's ranks, beside the simulation of the same arrivals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_sim.given import plan_tandems
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.serving import ClosedLoop, Load, demand_of
from chinchilla_sim.running import check_playable
from chinchilla_sim.setting import Setting
from chinchilla_sim.simulator.requests import serve_closed_loop, serve_load

if TYPE_CHECKING:
    from chinchilla_sim.validation.served import ServedComparison

SERVED_S = 10.0
FEWEST_REQUESTS, MOST_REQUESTS = 200, 20_000
"""Requests of a run whose job does not state its length."""


def serve_for_real(setting: Setting, file: PlanFile, folder: Path, steps: int | None = None) -> tuple[ServedComparison, dict[str, float]]:
    """Answer the requests of a job; returns also the metrics of the model that answered.

    Their number is that of `steps` global batches, of the job's own length, or else of what arrives in SERVED_S.
    """
    from chinchilla_sim.runtime.answering.requests import run_requests
    from chinchilla_sim.runtime.answering.serving import Orders
    from chinchilla_sim.validation.served import compare_served

    check_playable(file)
    demand, tandems = demand_of(file.scenario.job), plan_tandems(setting, file.plan)
    assert demand is not None
    rate = demand.arrivals_per_s if isinstance(demand, Load) else sum(tandem.capacity_per_s for tandem in tandems)
    length = steps or file.scenario.job.total_steps
    count = length * file.plan.global_batch_size if length else max(FEWEST_REQUESTS, min(MOST_REQUESTS, round(rate * SERVED_S)))
    run = run_requests(file, folder, Orders(count, tuple(tandem.window for tandem in tandems)))
    simulated = serve_closed_loop(tandems, demand, count) if isinstance(demand, ClosedLoop) else serve_load(tandems, demand, count)
    return compare_served(simulated, run, demand, tandems), run.metrics
