"""What `run` and `validate run` do with a job that states its requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_sim.console import busy, log, print_json, print_tables

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.setting import Setting


def answers_requests(file: PlanFile) -> bool:
    """Whether the job of a plan is to answer requests, and not to make steps."""
    from chinchilla_sim.planner.serving import demand_of

    return demand_of(file.scenario.job) is not None


def serve(setting: Setting, file: PlanFile, folder: Path, steps: int | None, as_json: bool, keep: bool = False) -> None:
    """Answer requests for real and print what they met, simulated and measured; `keep` leaves served.json in the folder."""
    from chinchilla_sim.console import save_json
    from chinchilla_sim.report.tables.serving import served_tables
    from chinchilla_sim.service import serve_for_real
    from chinchilla_sim.units import plain_number

    with busy("answering requests"):
        comparison, metrics = serve_for_real(setting, file, folder, steps)
    told: dict[str, Any] = {"serving": comparison.to_dict(), **metrics}
    if keep:
        save_json(folder / "served.json", told)
    if as_json:
        print_json(({"plan": file.to_dict()} if keep else {}) | told)
        return
    print_tables(*served_tables(comparison))
    for name, value in metrics.items():
        print(f"{name.replace('_', ' ')}: {plain_number(value, 4)}")
    if keep:
        log(f"served.json and the first answers (answers*.pt) are in {folder}")
