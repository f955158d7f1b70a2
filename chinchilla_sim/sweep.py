"""Many scenarios at once: each planned in a process of its own, on this machine or on a Dask cluster.

A question travels whole (the checked scenario, not its file), and comes back as an Outcome: a plan, or why there is none. What goes
wrong with one says nothing about the others.

    file -> question_of -> Question ─► plan_here      processes of this machine  ─┐
            (bad file: Outcome)     └► plan_on_dask   workers of a Dask cluster  ─┴─► Outcome, as they finish

Files that a scenario names (graphs, weights, factories) must be at the same place for the workers of a cluster. `this-machine` is the
machine that asks: its calibration is here, so these scenarios are planned here.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from time import monotonic
from typing import Any

from chinchilla_sim.cluster.build import this_machine_ranks
from chinchilla_sim.errors import ChinchillaError, Mistake, NoFeasiblePlanError, RunError, ScenarioError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.report.pages.result import search_dict
from chinchilla_sim.report.tables.sweep import SweepRow
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import prepare
from chinchilla_sim.workflow import make_best_plan, plan_file, study_of

ANSWER_WITHIN = "10s"
"""How long a Dask scheduler may take to answer."""


@dataclass(frozen=True)
class Question:
    """A scenario to plan; `number` is its place on the command line, `file` what it was read from."""

    number: int
    file: str
    scenario: Scenario
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one scenario: its row, its plan where it has one, and notes about its graph and calibration."""

    number: int
    row: SweepRow
    plan: PlanFile | None = None
    notes: tuple[str, ...] = ()


def question_of(number: int, file: Path, overrides: Sequence[str], time_limit_s: float | None) -> Question | Outcome:
    """The question of a scenario file, or what is wrong with the file."""
    try:
        return Question(number, str(file), load_scenario(file, overrides), time_limit_s)
    except ScenarioError as error:
        return Outcome(number, _row_of_error(str(file), file.stem, error, 0.0))


def answer_question(question: Question) -> Outcome:
    """Plan one scenario; every error becomes part of the outcome."""
    started_s = monotonic()
    try:
        setting = prepare(question.scenario)
        setting, search = make_best_plan(setting, None, question.time_limit_s)
        file = plan_file(setting, search)
        search_s = monotonic() - started_s
        result = search_dict(study_of(setting, search)) | {"plan": file.to_dict()}
    except Exception as error:
        return without_plan(question, error, monotonic() - started_s)
    row = SweepRow(question.file, question.scenario.name, "planned", search_s=search_s, result=result)
    return Outcome(question.number, row, file, setting.notes)


def without_plan(question: Question, error: BaseException, search_s: float = 0.0) -> Outcome:
    """The outcome of a question that an error ended."""
    return Outcome(question.number, _row_of_error(question.file, question.scenario.name, error, search_s))


def interrupted(question: Question) -> Outcome:
    """The outcome of a question that nobody waited for."""
    return Outcome(question.number, SweepRow(question.file, question.scenario.name, "interrupted", "interrupted", exit_code=1))


def _row_of_error(file: str, name: str, error: BaseException, search_s: float) -> SweepRow:
    if isinstance(error, ScenarioError):
        # The row names the file already.
        problem = "\n".join(map(str, error.mistakes)) if error.source == file else str(error)
        return SweepRow(file, name, "bad input", problem, error.exit_code, search_s)
    if isinstance(error, NoFeasiblePlanError):
        return SweepRow(file, name, "no feasible plan", error.reason, error.exit_code, search_s)
    problem = str(error) if isinstance(error, ChinchillaError) else f"{type(error).__name__}: {error}"
    return SweepRow(file, name, "failed", problem, ChinchillaError.exit_code, search_s)


def plan_here(questions: Sequence[Question], jobs: int) -> Iterator[Outcome]:
    """Outcomes as they finish, from `jobs` processes of this machine.

    A process that is killed (by the system, for its memory) takes the others of its pool with it: those questions are asked again, each
    in a pool of its own, and only the one that ends it again has failed.
    """
    lost = []
    for question, outcome in _from_processes(questions, jobs):
        if outcome is None:
            lost.append(question)
        else:
            yield outcome
    for question in sorted(lost, key=lambda one: one.number):
        for _, outcome in _from_processes([question], 1):
            killed = RunError("the process that planned it was killed; it may need more memory than there is")
            yield outcome or without_plan(question, killed)


def _from_processes(questions: Sequence[Question], jobs: int) -> Iterator[tuple[Question, Outcome | None]]:
    before = set(active_children())
    workers = max(1, min(jobs, len(questions)))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_parent) as executor:
        try:
            yield from _collect(executor, questions)
        except (KeyboardInterrupt, GeneratorExit):
            executor.shutdown(wait=False, cancel_futures=True)
            for child in set(active_children()) - before:
                child.terminate()
            raise


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collect(executor: Executor, questions: Sequence[Question]) -> Iterator[tuple[Question, Outcome | None]]:
    """Outcomes as they finish; None where the process was lost."""
    asked: dict[Future[Outcome], Question] = {}
    lost = []
    for question in questions:
        try:
            asked[executor.submit(answer_question, question)] = question
        except BrokenProcessPool:
            lost.append(question)
    for future in as_completed(asked):
        question = asked[future]
        try:
            yield question, future.result()
        except BrokenProcessPool:
            yield question, None
        except Exception as error:
            yield question, without_plan(question, error)
    for question in lost:
        yield question, None


def plan_on_dask(questions: Sequence[Question], address: str) -> Iterator[Outcome]:
    """Outcomes as they finish, from the workers of an existing Dask cluster; ScenarioError where none answers at the address."""
    here = [question for question in questions if this_machine_ranks(question.scenario.cluster)]
    there = [question for question in questions if not this_machine_ranks(question.scenario.cluster)]
    with _dask_client(address) as client, client.get_executor(pure=False, retries=0) as executor:
        asked = {executor.submit(answer_question, question): question for question in there}
        yield from map(answer_question, here)
        for future in as_completed(asked):
            try:
                yield future.result()
            except Exception as error:
                yield without_plan(asked[future], error)


def _dask_client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        cure = "pip install 'chinchilla-sim[dask]', or use --jobs"
        raise ScenarioError([Mistake("--scheduler", "needs the package distributed, which is not installed", cure)]) from None
    connect: Any = Client
    try:
        return connect(address, timeout=ANSWER_WITHIN, set_as_default=False)
    except (OSError, ValueError) as error:
        cure = 'start one with `dask scheduler` and name its address, such as "tcp://10.0.0.1:8786"'
        raise ScenarioError([Mistake("--scheduler", f"no Dask scheduler answers at {address}", cure)]) from error
