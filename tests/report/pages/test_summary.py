"""The text of golden files."""

from dataclasses import replace

from chinchilla_sim.report.pages.summary import summary_text
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.verdict import answer
from tests.report.cells import MakeStudy


def test_summary_is_the_same_for_the_same_question(pipeline: Study, make_study: MakeStudy) -> None:
    """Two searches of one scenario give the same bytes."""
    again = make_study(search__minimum_ranks=2, search__microbatch_counts=[4])
    assert summary_text(pipeline) == summary_text(again)


def test_summary_holds_nothing_measured(pipeline: Study, measured: Study) -> None:
    """A run on this machine changes no byte of the golden file."""
    assert summary_text(replace(measured, explanation=("measured 1.2 ms",))) == summary_text(pipeline)


def test_summary_answers_the_question(pipeline: Study) -> None:
    """Question, chosen plan, graph totals and the source of the cluster's figures are in it."""
    text = summary_text(pipeline)
    totals = ("4 tasks", "52.0 Mflop forward", "52.7 Mflop backward", "1.63 MB of parameters")
    for part in (pipeline.scenario.question, answer(pipeline), *totals, *pipeline.cluster.provenance):
        assert part in text
    assert all(line == line.rstrip() for line in text.splitlines()) and text.endswith("\n")
