"""The answer in one sentence."""

from chinchilla_sim.graph.zoo import chain
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.plans import candidates_table
from chinchilla_sim.report.verdict import answer, versus
from chinchilla_sim.units import format_seconds
from tests.report.cells import MakeStudy


def test_answer_is_honest_when_one_rank_alone_is_faster(pipeline: Study) -> None:
    """A search that excludes one rank still says that it would be faster, and by how much."""
    best, alone = pipeline.search.best, pipeline.search.one_rank
    assert alone and alone.step_s < best.step_s
    ratio = f"{best.step_s / alone.step_s:.2f}x faster ({format_seconds(alone.step_s)})"
    assert answer(pipeline).endswith(f"but one rank alone, which this search excludes, is {ratio}.")
    assert best.plan.describe() in answer(pipeline) and format_seconds(best.step_s) in answer(pipeline)


def test_answer_when_one_rank_is_chosen_names_the_best_alternative(make_study: MakeStudy) -> None:
    """One rank as the winner is compared with the best plan of more ranks, not with itself."""
    study = make_study()
    best, second = study.search.best, study.search.runner_ups[0]
    assert best.plan.rank_count == 1
    assert answer(study).count("one rank") == 1
    assert f"{second.plan.describe()}, is {versus(second.step_s, best.step_s, 'step_time')}" in answer(study)


def test_answer_says_when_one_rank_does_not_fit(make_study: MakeStudy) -> None:
    """Without a reference the sentence and the table say why there is none."""
    study = make_study(chain(4, 80_000_000, 1e12, 4e3, 64))
    assert study.search.one_rank is None
    assert "one rank alone does not fit into memory" in answer(study)
    assert "one rank alone does not fit into memory" in candidates_table(study.search).note


def test_answer_without_any_alternative(make_study: MakeStudy) -> None:
    """A search that reports no runner-up does not claim to have beaten one."""
    assert "no plan of another split is reported" in answer(make_study(search__runner_ups=0))
