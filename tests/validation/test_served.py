"""Figures of a run on requests, by hand."""

import pytest

from chinchilla_sim.planner.serving import Load, Station, Tandem
from chinchilla_sim.validation.served import Pass, ServedRun, compare_served


def run_by_hand() -> ServedRun:
    """Ten requests, one each second; the first five are answered one by one after 0.5 s, the others together at 10 s.

    Stage 0 takes 0.2 s for each batch, stage 1 0.3 s.
    """
    arrivals = tuple(float(second) for second in range(10))
    answered = (*(second + 0.5 for second in range(5)), *[10.0] * 5)
    sizes, firsts, starts = [1] * 5 + [5], [*range(6)], [*arrivals[:5], 9.5]
    passes = [Pass(0, 0, first, size, start, start + 0.2) for first, size, start in zip(firsts, sizes, starts, strict=True)]
    passes += [Pass(0, 1, first, size, start + 0.2, start + 0.5) for first, size, start in zip(firsts, sizes, starts, strict=True)]
    return ServedRun(arrivals, answered, tuple(passes))


TANDEM = Tandem((Station((0.1,) * 5), Station((0.0,) * 5), Station((0.3, 0.3, 0.3, 0.3, 0.9))))


def test_figures_of_a_run() -> None:
    """Nine counted latencies 0.5 (4), 5, 4, 3, 2, 1; 10 s in all, in which stage 1 is busy for 1.8 s; 10 requests in 6 batches."""
    serving = run_by_hand().serving(Load(1.0), [TANDEM])
    assert serving.p50_s == 1.0 and serving.p95_s == pytest.approx(4.6) and serving.mean_s == pytest.approx(17 / 9)
    assert serving.throughput_per_s == 1.0 and serving.batch_size == pytest.approx(10 / 6)
    assert serving.utilization == pytest.approx(0.18)
    assert serving.capacity_per_s == pytest.approx(5 / 0.9)


def test_stages_are_compared_for_the_sizes_that_came() -> None:
    """Stage 1 is simulated with 0.3 s for five batches of one and 0.9 s for one of five."""
    run = run_by_hand()
    comparison = compare_served(run.serving(Load(1.0), [TANDEM]), run, Load(1.0), [TANDEM])
    assert [(row.stage, row.simulated_s) for row in comparison.stages] == [(0, pytest.approx(0.1)), (1, pytest.approx(0.4))]
    assert [row.measured_s for row in comparison.stages] == [pytest.approx(0.2), pytest.approx(0.3)]
    assert set(comparison.to_dict()["relative_errors"].values()) == {0.0}
