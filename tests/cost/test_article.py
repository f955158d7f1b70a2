"""The article's cost model: its worked case with units, and what follows from its formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cost.article import ArticleCase, evaluate_article

WORKED = ArticleCase([1e13] * 4, [1e9] * 4, 1e10, 1e8, {(0, 1): 1e-3, (1, 2): 1e-3, (2, 3): 1e-3})


def test_worked_case() -> None:
    """4 nodes of 10 Tflop/s and 1 GB/s, T = 1e10: 2.5e9 units each are 0.25 ms of work or 2.5 s of transfer; nothing is shrunk."""
    answer = evaluate_article(WORKED)
    assert (answer.total_flop_per_s, answer.total_bandwidth_bytes_per_s) == (4e13, 4e9)
    assert (answer.smallest_latency_s, answer.largest_latency_s) == (1e-3, 1e-3)
    assert (answer.work_per_node, answer.work_s, answer.transfer_s) == (2.5e9, 0.25e-3, 2.5)
    assert (answer.parameters_after, answer.parameter_ratio) == (1e8, 1.0)


def test_printed_figures_come_from_bare_numbers() -> None:
    """The article's 2.5 and 25 are 2.5e9 over "10" Tflop/s and "1" GB/s less a factor of 1e8: no seconds and no ratios."""
    answer = evaluate_article(WORKED)
    assert (answer.work_per_node / 10 / 1e8, answer.work_per_node / 1 / 1e8) == (2.5, 25)
    assert (2.5 / answer.work_s, 25 / answer.transfer_s) == (pytest.approx(1e4), pytest.approx(10))


@given(st.lists(st.floats(1e6, 1e15), min_size=1, max_size=8), st.floats(1, 1e12), st.floats(1, 100))
def test_slowest_node_decides(speeds: list[float], work: float, compression: float) -> None:
    """An even spread ends with the slowest node, never before total work over total speed; eta and eta_P are inverse."""
    case = ArticleCase(speeds, speeds, work, 1e8, {}, compression)
    answer = evaluate_article(case)
    assert answer.work_s >= work / answer.total_flop_per_s * (1 - 1e-12)
    assert answer.work_s == answer.transfer_s == pytest.approx(work / len(speeds) / min(speeds))
    assert answer.parameter_ratio * compression == pytest.approx(1)
    assert answer.parameters_after == pytest.approx(1e8 * answer.parameter_ratio)


def test_latency_of_unequal_edges() -> None:
    """The article's L is the smallest latency, a synchronous step waits for the largest: both are told."""
    answer = evaluate_article(ArticleCase([1.0], [1.0], 1.0, 1.0, {(0, 1): 1e-3, (1, 0): 5e-3}))
    assert (answer.smallest_latency_s, answer.largest_latency_s) == (1e-3, 5e-3)
