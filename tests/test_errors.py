"""Exceptions: exit codes, and what a user reads."""

import pickle

import pytest

from chinchilla_sim.errors import ChinchillaError, Mistake, NoFeasiblePlanError, RunError, ScenarioError


def test_scenario_error_lists_every_mistake_on_its_own_line() -> None:
    """One line per mistake: file, dotted path, what, cure."""
    error = ScenarioError(
        [
            Mistake("cluster.network.bandwidth", '"10" has no unit', 'write for example "10 Gbit/s"'),
            Mistake("job.epochs", "must be at least 1, not 0"),
        ],
        source="scenario.toml",
    )
    assert str(error) == (
        'scenario.toml: cluster.network.bandwidth: "10" has no unit; write for example "10 Gbit/s"\n'
        "scenario.toml: job.epochs: must be at least 1, not 0"
    )


def test_parts_that_are_not_known_leave_no_colons() -> None:
    """Without a file or a place only the mistake itself is left."""
    assert str(ScenarioError([Mistake("", "there is no such file", "check the path")])) == "there is no such file; check the path"


def test_no_feasible_plan_says_which_constraint_how_much_and_what_helps() -> None:
    """Infeasible is an answer with three parts."""
    error = NoFeasiblePlanError("device memory", "needs 21 GB of 16 GB", "allow recompute")
    assert str(error) == "no feasible plan: device memory: needs 21 GB of 16 GB; allow recompute"
    assert (error.constraint, error.shortfall, error.cure) == ("device memory", "needs 21 GB of 16 GB", "allow recompute")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ScenarioError([Mistake("name", "is empty")], "a.toml"), 2),
        (NoFeasiblePlanError("memory", "1 GB", "add a node"), 1),
        (RunError("rank 1 stopped at 2F0"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_exit_code_and_survives_pickling(error: ChinchillaError, exit_code: int) -> None:
    """Ranks send their errors to the launcher; bad input exits 2, everything else 1."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.exit_code) == (type(error), str(error), exit_code)


def test_hundreds_of_mistakes_are_cut_short() -> None:
    """A file of another kind is wrong on every line: the first forty are told, and how many are left."""
    lines = str(ScenarioError([Mistake(f"line {number}", "is no JSON") for number in range(250)], "README.md")).splitlines()
    assert len(lines) == 41 and lines[-1] == "README.md: and 210 more mistakes like these"
