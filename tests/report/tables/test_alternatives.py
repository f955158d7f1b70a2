"""Why alternatives lose, by hand."""

import json
from dataclasses import replace

from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.alternatives import parts_s, reasons, why_dict, why_table
from chinchilla_sim.timeline import Span, Timeline
from tests.report.cells import MakeStudy


def slower(study: Study, computes_s: float, moves_s: float) -> Candidate:
    """A plan of two ranks, of which one computes so long, then waits so long for data."""
    spans = (
        Span(0, "compute", "forward", "0F0", 0.0, computes_s),
        Span(0, "receive", "transfer", "0RECV_B0", computes_s, computes_s + moves_s),
    )
    return replace(study.search.best, timeline=Timeline(2, spans), objective=computes_s + moves_s)


def test_reasons_are_differences_of_the_busiest_rank(pipeline: Study) -> None:
    """What takes longer comes first, the most first; what takes shorter is told behind it."""
    study = replace(pipeline, search=replace(pipeline.search, best=slower(pipeline, 2.0, 1.0)))
    assert parts_s(study.search.best) == {"computes": 2.0, "waits for data on the wire": 1.0, "waits for other ranks": 0.0}
    assert reasons(study, slower(pipeline, 1.5, 3.0)) == ["waits for data on the wire 2.00 s longer", "computes 500 ms less"]
    assert reasons(study, slower(pipeline, 2.01, 1.01)) == ["hardly differs"]


def test_a_better_plan_says_what_forbids_it(pipeline: Study) -> None:
    """One rank alone is faster here; the scenario asks for two."""
    alone = pipeline.search.one_rank
    assert alone and alone.step_s < pipeline.search.best.step_s
    assert reasons(pipeline, alone)[0] == "better, but the scenario asks for at least 2 ranks"


def test_every_listed_plan_has_its_reasons(racks: Study, pipeline: Study) -> None:
    """Table and JSON tell the same of the same plans, and nothing of the chosen one."""
    for study in (racks, pipeline):
        table, told = why_table(study), json.loads(json.dumps(why_dict(study)))["why_not"]
        assert table and {row[0]: row[2] for row in table.rows} == {name: "; ".join(lines) for name, lines in told.items()}
        assert study.search.best.title not in told


def test_money_is_told_where_it_is_minimised(make_study: MakeStudy) -> None:
    """Two devices at 2 USD/h against one."""
    study = make_study(search__objective="cost")
    others = [one for one in study.search.runner_ups if len(one.plan.slots) == 2]
    assert len(study.plan.slots) == 1 and others
    assert "its 2 devices are listed at 4.00 USD per hour, not 2.00 USD" in reasons(study, others[0])


def test_a_plan_alone_has_no_table(pipeline: Study) -> None:
    """Nothing to compare with."""
    assert why_table(replace(pipeline, search=replace(pipeline.search, runner_ups=(), one_rank=None))) is None
