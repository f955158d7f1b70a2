"""Oracle: planning problems with best answers found by other planners (../shared/data/planner/known_answers)."""

import os
from pathlib import Path

import pytest

from chinchilla_sim.validation.known_answers import KnownAnswer, check_known_answers

SHARED = Path(__file__).parents[3] / "shared"
FOLDER = Path(os.environ.get("CHINCHILLA_DATA", SHARED / "data")) / "planner" / "known_answers"
BUDGET_S = 60.0


@pytest.fixture(autouse=True)
def known_answers() -> None:
    """In CI beside a shared folder the files must be found; elsewhere their absence is only said."""
    if not FOLDER.is_dir() and os.environ.get("CI") and SHARED.exists():
        pytest.fail(f"{SHARED} exists, but there are no known answers in {FOLDER}")
    if not FOLDER.is_dir():
        pytest.skip(f"no known answers in {FOLDER}: set CHINCHILLA_DATA")


def _solved(name: str) -> list[KnownAnswer]:
    return check_known_answers(FOLDER / name, BUDGET_S)


def test_pipedream_is_never_worse_than_known() -> None:
    """All 86, among them the two that PipeDream's planner did not finish; better where its linear order missed a cut."""
    answers = _solved("pipedream.jsonl")
    assert len(answers) >= 86
    assert [answer.problem.id for answer in answers if not answer.reached or answer.status != "solved"] == []
    assert sum(answer.ratio is not None and answer.ratio < 1 - 1e-6 for answer in answers) >= 5


def test_piper_is_never_worse_than_known() -> None:
    """All 9; where no plan fits, ours is proven infeasible too."""
    answers = _solved("piper.jsonl")
    assert [answer.problem.id for answer in answers if not answer.reached] == []
    infeasible = [answer for answer in answers if answer.problem.known is None]
    assert infeasible
    assert {answer.status for answer in infeasible} == {"infeasible"}


def test_dnn_partitioning_is_never_worse_than_known(tmp_path: Path) -> None:
    """Every contiguous optimum, and two of the five free ones (all five take two minutes of CPU: `chinchilla validate planner`)."""
    lines = (FOLDER / "dnn-partitioning.jsonl").read_text().splitlines()
    quick = [line for line in lines if '"contiguous": true' in line or "bert24_training" in line or "gnmt_training" in line]
    (tmp_path / "known").mkdir()
    (tmp_path / "dnn-partitioning").symlink_to(FOLDER.parent / "dnn-partitioning")
    (tmp_path / "known" / "quick.jsonl").write_text("\n".join(quick))
    answers = check_known_answers(tmp_path / "known" / "quick.jsonl", budget_s=10.0)
    assert len(answers) >= 8
    assert [answer.problem.id for answer in answers if not answer.reached] == []
