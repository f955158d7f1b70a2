"""Variants over several ranks: each is trained, answers with what came out, and both are simulated."""

from pathlib import Path

import pytest

from chinchilla_sim.report.tables.variants import spread_tables
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.validation.spread import Played, SpreadVariant
from chinchilla_sim.variants import spread_variants

DIGITS = Path(__file__).parents[2] / "scenarios" / "compressed_digits.toml"


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What is said on the way."""
    return []


def test_variants_are_trained_and_answer_over_two_ranks(told: list[str]) -> None:
    """Three launches: answers are as accurate as the training that they come from; bf16 is not trained, and answers with those weights."""
    settings = ["job.epochs=1", "model.options.widths=[784, 64, 10]", 'search.variants=[{ quantize = "bf16" }]']
    plain, halved = spread_variants(load_scenario(DIGITS, settings), [2], told.append)
    assert [row.name for row in (plain, halved)] == ["as it is", "bf16 weights"]
    assert plain.training and halved.training is None
    assert plain.training.metrics == pytest.approx(plain.answering.metrics, abs=1e-3)
    assert halved.answering.metrics == pytest.approx(plain.answering.metrics, abs=0.02)
    assert halved.answering.metrics != plain.answering.metrics
    assert all(row.answering.measured_s > 0 and row.answering.simulated_s > 0 and row.rank_count == 2 for row in (plain, halved))
    assert len(told) == 3


def test_tables_leave_out_what_was_not_trained() -> None:
    """A variant that only answers has a row in the second table alone."""
    one = Played("2 replicas", 1e-3, 2e-3, {"accuracy": 0.5})
    trained, answering = spread_tables([SpreadVariant("a", 2, one, one), SpreadVariant("b", 2, None, one)])
    assert [row[0] for row in trained.rows] == ["a"] and [row[0] for row in answering.rows] == ["a", "b"]
    assert trained.rows[0][-2:] == ("-50.0 %", "0.5000") and one.to_dict()["relative_error"] == -0.5
    assert spread_tables([]) == ()
