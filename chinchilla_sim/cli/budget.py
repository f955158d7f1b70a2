"""`chinchilla budget`: what to train on a cluster within a time or for a sum of money."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chinchilla_sim.cli.app import DECIDE, AsJson, Output, Overrides, app
from chinchilla_sim.cli.shared import load_scenario_file, named, seconds_of
from chinchilla_sim.console import log, print_json, print_tables, save_json, searching, writable_folder
from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.report.tables.budget import Budget, BudgetStudy

DAY_S = 86400.0


@app.command(group=DECIDE)
def budget(
    scenario: Path,
    *,
    days: float | None = None,
    time: str | None = None,
    usd: float | None = None,
    family: Literal["gpt", "llama"] | None = None,
    law: str = "besiroglu-2024",
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Say which model size, on how many tokens, a scenario's cluster should train in a time or for a sum of money.

    Every size is planned and simulated on the cluster; a compute-optimal scaling law then says which reaches the least loss. The answer has
    a range: the law's coefficients are uncertain, and so is the simulated step. Exit code 1 where no size fits, or the budget is too small.

    Parameters
    ----------
    scenario
        A scenario file (TOML) of a training job. Its cluster, search, batch and, if it is of the family, tokens and vocabulary are kept.
    days
        Time to train, in days. Give one of --days, --time and --usd.
    time
        The same with a unit, such as "36 h".
    usd
        Money to spend; every size then has its cheapest plan, however long it takes.
    family
        Architecture whose sizes are tried (default: the scenario's own, or gpt).
    law
        besiroglu-2024 (a refit of Hoffmann's data, with uncertainty), hoffmann-2022 (approach 3) or hoffmann-2022-rounded (as printed).
    output
        Write budget.svg, budget.json and the best size's plan.json into this folder.
    """
    from chinchilla_sim.budget import answer_budget
    from chinchilla_sim.cost.scaling import find_law

    chosen = find_law(law)
    amount = _budget(days, time, usd)
    if output:
        writable_folder(output)
    loaded = load_scenario_file(scenario, overrides)
    own = loaded.model.formula if loaded.model.formula in ("gpt", "llama") else "gpt"
    with named(scenario), searching("planning sizes") as progress:
        study = answer_budget(loaded, str(scenario), family or own, chosen, amount, progress, log)
    _show(study, output, as_json)


def _show(study: BudgetStudy, output: Path | None, as_json: bool) -> None:
    from chinchilla_sim.report.tables.budget import budget_answer, budget_dict, budget_remarks, budget_table, unfit_table

    if output:
        from chinchilla_sim.report.drawing.budget_figure import budget_svg

        (output / "budget.svg").write_text(budget_svg(study) + "\n")
        save_json(output / "budget.json", budget_dict(study))
        study.best.file.save(output / "plan.json")
        log(f"figure and plan of the best size written to {output}")
    if as_json:
        print_json(budget_dict(study))
    else:
        print(*budget_answer(study), "", sep="\n")
        print_tables(budget_table(study), *([unfit_table(study)] if study.unfit else []))
        print(*(f"- {remark}" for remark in budget_remarks(study)), sep="\n")


def _budget(days: float | None, time: str | None, usd: float | None) -> Budget:
    """The one budget that was given."""
    from chinchilla_sim.report.tables.budget import Budget

    given = [option for option, value in (("--days", days), ("--time", time), ("--usd", usd)) if value is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given together" if given else "no budget is given"
        raise ScenarioError([Mistake("", what, 'write one of --days 7, --time "36 h" and --usd 5000')])
    amount = days * DAY_S if days is not None else usd if usd is not None else seconds_of("--time", time or "")
    if not (isfinite(amount) and amount > 0):
        raise ScenarioError([Mistake(given[0], "must be more than 0", f"write for example {given[0]} {_example(given[0])}")])
    return Budget(amount, usd is not None)


def _example(option: str) -> str:
    return {"--days": "7", "--time": '"36 h"', "--usd": "5000"}[option]
