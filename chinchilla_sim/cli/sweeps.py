"""What `chinchilla plan` does with several scenarios."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_sim.console import INTERRUPTED, log, print_json, print_tables, writable_folder
from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.sweep import Outcome, Question


def plan_all(
    files: Sequence[Path],
    overrides: Sequence[str],
    folder: Path | None,
    time_limit_s: float | None,
    jobs: int,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Plan several scenarios at once, tell each as it is done, and all of them in order at the end.

    Exit code 2 if any was bad input, else 1 if any has no plan; an interrupt (130) leaves and prints what is done.
    """
    from chinchilla_sim.report.tables.sweep import sweep_dict, sweep_tables
    from chinchilla_sim.sweep import Question, interrupted, question_of

    asked = [question_of(number, file, overrides, time_limit_s) for number, file in enumerate(files)]
    questions = [one for one in asked if isinstance(one, Question)]
    if folder:
        _refuse_same_names(questions)
        writable_folder(folder)
    done: dict[int, Outcome] = {}
    stopped = False
    try:
        bad = [one for one in asked if not isinstance(one, Question)]
        for outcome in _outcomes(bad, questions, jobs, scheduler):
            done[outcome.number] = outcome
            _tell(outcome, len(done), len(files), folder)
    except KeyboardInterrupt:
        stopped = True
    every = [done.get(one.number) or (interrupted(one) if isinstance(one, Question) else one) for one in asked]
    rows = [outcome.row for outcome in every]
    if as_json:
        print_json(sweep_dict(rows))
    else:
        print_tables(*sweep_tables(rows))
        if folder and done:
            log(f"plans written to {folder}")
    if stopped:
        log("interrupted")
        sys.exit(INTERRUPTED)
    sys.exit(max(row.exit_code for row in rows))


def _outcomes(bad: Iterable[Outcome], questions: Sequence[Question], jobs: int, scheduler: str | None) -> Iterator[Outcome]:
    from chinchilla_sim.sweep import plan_here, plan_on_dask

    yield from bad
    if questions:
        yield from plan_on_dask(questions, scheduler) if scheduler else plan_here(questions, jobs)


def _tell(outcome: Outcome, done: int, total: int, folder: Path | None) -> None:
    from chinchilla_sim.report.tables.sweep import progress_line

    if folder and outcome.plan:
        outcome.plan.save(folder / f"{outcome.row.name}.json")
    for note in outcome.notes:
        log(f"{outcome.row.name}: {note}")
    log(progress_line(outcome.row, done, total))


def _refuse_same_names(questions: Sequence[Question]) -> None:
    """Plans are written under the names of their scenarios."""
    counts = Counter(question.scenario.name for question in questions)
    mistakes = [
        Mistake("--output", f"{count} scenarios are called {name!r} and would write the same plan", "give each its own name")
        for name, count in sorted(counts.items())
        if count > 1
    ]
    if mistakes:
        raise ScenarioError(mistakes)
