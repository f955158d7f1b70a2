"""Tables of scenarios that were simulated and measured on emulated nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chinchilla_sim.report.table import Table, percent
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.testbed_cases import Choice, LinkCase, spreads


def cases_tables(cases: Sequence[LinkCase]) -> tuple[Table, ...]:
    """Every case, and how far off groups of them are."""
    rows = [
        (
            *(case.name, case.plan, case.link, format_seconds(case.simulated_step_s), format_seconds(case.measured_step_s)),
            *(f"{100 * case.relative_error:+.1f} %", percent(case.spread), str(case.step_count)),
        )
        for case in cases
    ]
    headers = ("scenario", "plan", "link", "simulated", "measured", "error", "spread", "steps")
    each = Table("Simulated and measured steps on emulated nodes", headers, tuple(rows), text_columns=(0, 1, 2))
    groups = [(g.name, str(g.count), percent(g.median), percent(g.p90), percent(g.worst)) for g in spreads(cases)]
    note = "spread: (75th - 25th percentile) / median of the measured steps"
    return each, Table("Error by link", ("links", "cases", "median", "p90", "worst"), tuple(groups), text_columns=(0,), note=note)


def cases_dict(cases: Sequence[LinkCase]) -> dict[str, Any]:
    """JSON-ready form."""
    rows = [asdict(case) | {"link": case.link, "relative_error": case.relative_error} for case in cases]
    return {"cases": rows, "errors": [asdict(group) for group in spreads(cases)]}


WITHIN = 0.03


def choices_table(choices: Sequence[Choice]) -> Table:
    """The first choice of each scenario against the best that was measured."""
    rows = []
    for choice in choices:
        best = choice.measured_s.index(min(choice.measured_s))
        chosen, fastest = format_seconds(choice.measured_s[0]), format_seconds(choice.measured_s[best])
        rows.append((choice.name, choice.plans[0], chosen, choice.plans[best], fastest, percent(choice.regret), str(len(choice.plans))))
    near = sum(choice.regret <= WITHIN for choice in choices)
    headers = ("scenario", "first choice", "measured", "best measured", "measured", "slower", "plans")
    note = f"in {near} of {len(choices)} scenarios the first choice is within {percent(WITHIN)} of the best"
    return Table("The planner's first choice", headers, tuple(rows), text_columns=(0, 1, 3), note=note)


def choices_dict(choices: Sequence[Choice]) -> dict[str, Any]:
    """JSON-ready form."""
    return {"choices": [asdict(choice) | {"regret": choice.regret} for choice in choices]}
