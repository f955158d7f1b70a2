"""Tables of plans agree with their timelines."""

from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.plans import candidates_table, plan_table, ranks_table
from chinchilla_sim.units import format_bytes, format_seconds, format_usd
from tests.report.cells import MakeStudy, column_of, row_of


def test_candidates_agree_with_their_timelines(pipeline: Study) -> None:
    """The chosen plan stands first, then the other splits; every cell is the timeline's number."""
    search, table = pipeline.search, candidates_table(pipeline.search)
    listed = [search.best, *search.runner_ups, search.one_rank]
    timelines = [candidate.timeline for candidate in listed if candidate]
    assert len(timelines) == 3
    assert column_of(table, "step time") == [format_seconds(timeline.step_s) for timeline in timelines]
    assert column_of(table, "ranks") == [str(timeline.rank_count) for timeline in timelines]
    assert column_of(table, "bubble") == [f"{100 * timeline.bubble_fraction:.1f} %" for timeline in timelines]
    ranks = [range(timeline.rank_count) for timeline in timelines]
    sent = [sum(timeline.sent_bytes(rank) for rank in ranks[i]) for i, timeline in enumerate(timelines)]
    peak = [max(timeline.peak_memory_bytes(rank) for rank in ranks[i]) for i, timeline in enumerate(timelines)]
    assert column_of(table, "sent per step") == [format_bytes(amount) for amount in sent]
    assert column_of(table, "peak memory") == [format_bytes(amount) for amount in peak]


def test_exposed_communication_is_of_the_worst_rank(pipeline: Study) -> None:
    """The column shows the largest exposed communication of any rank."""
    timeline = pipeline.search.best.timeline
    exposed = [timeline.exposed_communication_s(rank) for rank in range(2)]
    assert exposed[0] != exposed[1]
    assert column_of(candidates_table(pipeline.search), "exposed communication")[0] == format_seconds(max(exposed))


def test_one_rank_alone_is_a_reference_row_unless_it_is_listed(pipeline: Study, make_study: MakeStudy) -> None:
    """It is added where the search excludes it, and not listed twice where it takes part."""
    assert column_of(candidates_table(pipeline.search), "plan")[-1] == "one rank alone (for reference)"
    free = candidates_table(make_study().search)
    assert sum("one rank" in plan for plan in column_of(free, "plan")) == 1


def test_objective_other_than_time_has_its_own_column(make_study: MakeStudy) -> None:
    """A search for the cheapest plan shows what a step of each plan costs."""
    study = make_study(search__objective="cost")
    expected = [format_usd(candidate.objective) for candidate in (study.search.best, *study.search.runner_ups)]
    assert column_of(candidates_table(study.search, "cost"), "USD per step") == expected


def test_plan_lists_every_stage_with_its_slots(pipeline: Study) -> None:
    """Stages, tasks, ranks and slots are those of the plan; a list too long for a cell tells its length."""
    table = plan_table(pipeline)
    assert column_of(table, "tasks") == [", ".join(names) for names in pipeline.plan.stages]
    assert column_of(table, "device slots") == [pipeline.cluster.slots[pipeline.plan.slots[row[0]]] for row in pipeline.plan.placement]


def test_ranks_agree_with_the_timeline(pipeline: Study) -> None:
    """Every rank shows its own utilization, sent bytes, peak memory and capacity."""
    timeline, table = pipeline.search.best.timeline, ranks_table(pipeline.search.best, pipeline.cluster)
    for rank in range(2):
        row = row_of(table, str(rank))
        assert row["utilization"] == f"{100 * timeline.utilization(rank):.1f} %"
        assert row["sent per step"] == format_bytes(timeline.sent_bytes(rank))
        assert row["peak memory"] == format_bytes(timeline.peak_memory_bytes(rank))
        assert row["capacity"] == format_bytes(2**30)
