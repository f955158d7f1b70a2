"""Tables of problems that other planners solved: ours against known, and the CPU seconds of both."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_sim.report.table import NONE, Table
from chinchilla_sim.units import plain_number
from chinchilla_sim.validation.known_answers import KnownAnswer

EQUAL = 1e-6
SHOWN = 100


def known_answers_tables(answers: Sequence[KnownAnswer]) -> tuple[Table, Table]:
    """Every problem, and a line per format."""
    return _problems_table(answers), _formats_table(answers)


def _problems_table(answers: Sequence[KnownAnswer]) -> Table:
    rows = []
    for answer in answers[:SHOWN]:
        problem = answer.problem
        row = [problem.id, answer.status, _number(answer.ours), _number(problem.known), _verdict(answer)]
        rows.append((*row, f"{answer.cpu_s:.2f} s", NONE if problem.known_cpu_s is None else f"{problem.known_cpu_s:.2f} s"))
    headers = ("problem", "status", "ours", "known", "ours against known", "CPU", "peer's CPU")
    note = f"the first {SHOWN} of {len(answers)} problems; --json lists all" if len(answers) > SHOWN else ""
    return Table("Known answers, each in the peer's own cost model", headers, tuple(rows), text_columns=(0, 1, 4), note=note)


def _formats_table(answers: Sequence[KnownAnswer]) -> Table:
    rows = []
    for format in dict.fromkeys(answer.problem.format for answer in answers):
        group = [answer for answer in answers if answer.problem.format == format]
        better = sum(answer.ratio is not None and answer.ratio < 1 - EQUAL for answer in group)
        new = sum(answer.problem.known is None and answer.ours is not None for answer in group)
        reached = sum(answer.reached for answer in group)
        spent_s, known_s = (sum(seconds) for seconds in zip(*((a.cpu_s, a.problem.known_cpu_s or 0.0) for a in group), strict=True))
        row = [format, str(len(group)), str(reached), str(better), str(new), str(len(group) - reached)]
        rows.append((*row, f"{spent_s:.1f} s", f"{known_s:.1f} s"))
    headers = ("format", "problems", "reached", "better", "peer had none", "worse", "CPU", "peers' CPU")
    return Table("In all", headers, tuple(rows))


def _verdict(answer: KnownAnswer) -> str:
    if answer.ratio is None:
        return (
            "none possible, none known"
            if answer.status == "infeasible" and answer.reached
            else "no plan known"
            if answer.ours
            else "missed"
        )
    if answer.ratio < 1 - EQUAL:
        return f"{(1 - answer.ratio) * 100:.2f} % better"
    return "equal" if answer.reached else f"{plain_number((answer.ratio - 1) * 100, 2)} % worse"


def _number(value: float | None) -> str:
    return NONE if value is None else plain_number(value, 6)
