"""Tables and text of reports."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from chinchilla_sim.graph.zoo import chain
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import (
    NOT_STATED,
    Table,
    answer,
    candidates_table,
    categories_table,
    comparison_table,
    cost_table,
    metrics_table,
    plan_table,
    ranks_table,
    search_dict,
    summary_text,
    to_rich,
    to_text,
    versus,
)
from chinchilla_sim.units import format_bytes, format_joule, format_seconds, format_usd
from chinchilla_sim.validation.compare import Comparison, Measurement

MakeStudy = Callable[..., Study]


def _column(table: Table, header: str) -> list[str]:
    return [row[table.headers.index(header)] for row in table.rows]


def _row(table: Table, first: str) -> dict[str, str]:
    return dict(zip(table.headers, next(row for row in table.rows if row[0] == first), strict=True))


def test_candidates_agree_with_their_timelines(pipeline: Study) -> None:
    """The chosen plan stands first, then the other splits; every cell is the timeline's number."""
    search, table = pipeline.search, candidates_table(pipeline.search)
    listed = [search.best, *search.runner_ups, search.one_rank]
    timelines = [candidate.timeline for candidate in listed if candidate]
    assert len(timelines) == 3
    assert _column(table, "step time") == [format_seconds(timeline.step_s) for timeline in timelines]
    assert _column(table, "ranks") == [str(timeline.rank_count) for timeline in timelines]
    assert _column(table, "bubble") == [f"{100 * timeline.bubble_fraction:.1f} %" for timeline in timelines]
    ranks = [range(timeline.rank_count) for timeline in timelines]
    sent = [sum(timeline.sent_bytes(rank) for rank in ranks[i]) for i, timeline in enumerate(timelines)]
    peak = [max(timeline.peak_memory_bytes(rank) for rank in ranks[i]) for i, timeline in enumerate(timelines)]
    assert _column(table, "sent per step") == [format_bytes(amount) for amount in sent]
    assert _column(table, "peak memory") == [format_bytes(amount) for amount in peak]


def test_exposed_communication_is_of_the_worst_rank(pipeline: Study) -> None:
    """The column shows the largest exposed communication of any rank."""
    timeline = pipeline.search.best.timeline
    exposed = [timeline.exposed_communication_s(rank) for rank in range(2)]
    assert exposed[0] != exposed[1]
    assert _column(candidates_table(pipeline.search), "exposed communication")[0] == format_seconds(max(exposed))


def test_one_rank_alone_is_a_reference_row_unless_it_is_listed(pipeline: Study, make_study: MakeStudy) -> None:
    """It is added where the search excludes it, and not listed twice where it takes part."""
    assert _column(candidates_table(pipeline.search), "plan")[-1] == "one rank alone (for reference)"
    free = candidates_table(make_study().search)
    assert sum("one rank" in plan for plan in _column(free, "plan")) == 1


def test_objective_other_than_time_has_its_own_column(make_study: MakeStudy) -> None:
    """A search for the cheapest plan shows what a step of each plan costs."""
    study = make_study(search__objective="cost")
    expected = [format_usd(candidate.objective) for candidate in (study.search.best, *study.search.runner_ups)]
    assert _column(candidates_table(study.search, "cost"), "USD per step") == expected


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


def test_plan_lists_every_stage_with_its_slots(pipeline: Study) -> None:
    """Stages, tasks, ranks and slots are those of the plan; a list too long for a cell tells its length."""
    table = plan_table(pipeline)
    assert _column(table, "tasks") == [", ".join(names) for names in pipeline.plan.stages]
    assert _column(table, "device slots") == [pipeline.cluster.slots[pipeline.plan.slots[row[0]]] for row in pipeline.plan.placement]


def test_ranks_agree_with_the_timeline(pipeline: Study) -> None:
    """Every rank shows its own utilization, sent bytes, peak memory and capacity."""
    timeline, table = pipeline.search.best.timeline, ranks_table(pipeline.search.best, pipeline.cluster)
    for rank in range(2):
        row = _row(table, str(rank))
        assert row["utilization"] == f"{100 * timeline.utilization(rank):.1f} %"
        assert row["sent per step"] == format_bytes(timeline.sent_bytes(rank))
        assert row["peak memory"] == format_bytes(timeline.peak_memory_bytes(rank))
        assert row["capacity"] == format_bytes(2**30)


def test_cost_of_a_step_and_of_a_thousand(pipeline: Study) -> None:
    """Two nodes at 2 USD/h and 100 W cost both for the whole step."""
    step_s = pipeline.search.best.step_s
    step, thousand = _row(cost_table(pipeline), "one step"), _row(cost_table(pipeline), "1000 steps")
    assert (step["price"], step["energy (modelled)"]) == (format_usd(4 / 3600 * step_s), format_joule(200 * step_s))
    assert (thousand["time"], thousand["price"]) == (format_seconds(1000 * step_s), format_usd(4000 / 3600 * step_s))
    assert "CO2 (modelled)" not in cost_table(pipeline).headers


def test_cost_of_an_epoch_where_its_steps_are_known(measured: Study) -> None:
    """A run tells how many steps an epoch has: 4 losses in 2 epochs are 2."""
    step_s = measured.search.best.step_s
    assert _row(cost_table(measured), "one epoch of 2 steps")["time"] == format_seconds(2 * step_s)


def test_price_of_zero_is_not_stated(make_study: MakeStudy) -> None:
    """Nothing is free: without a price the cell says so, and without a power likewise."""
    table = cost_table(make_study(cluster__nodes__0__price=None, cluster__nodes__0__power=None))
    assert set(_column(table, "price")) == set(_column(table, "energy (modelled)")) == {NOT_STATED}


def test_price_of_some_ranks_is_noted(make_study: MakeStudy) -> None:
    """A sum over ranks of which one has no price is told to be incomplete."""
    free = {"name": "free", "peak": "1 Tflop/s", "memory": "1 GiB", "power": "100 W"}
    study = make_study(cluster__nodes=[free | {"name": "paid", "price": "2 USD/h"}, free], search__minimum_ranks=2)
    assert "1 of 2 ranks have no stated price" in cost_table(study).note


def test_spot_prices_count_what_interruptions_lose(make_study: MakeStudy) -> None:
    """Two nodes at 0.5 in place of 2 USD/h: a step costs the waste more than 1 USD/h, beside 4 USD/h; the note and JSON say why."""
    offer = {"cluster__nodes__0__spot_price": "0.5 USD/h", "cluster__nodes__0__time_between_interruptions": "6 h"}
    study = make_study(**offer, job__checkpoint="30 s", job__restart="5 min", search__minimum_ranks=2)
    step_s, table = study.search.best.step_s, cost_table(study)
    waste = study.rent.wall_s_per_work_s
    assert (study.rent.between_interruptions_s, waste > 1.05) == (3 * 3600, True)
    row = _row(table, "one step")
    assert row["expected price"] == format_usd(1 / 3600 * step_s * waste)
    assert row["without spot prices"] == format_usd(4 / 3600 * step_s)
    assert "at the spot price, one interruption in 3.00 h on average, a checkpoint after" in table.note
    cost = search_dict(study)["cost"]
    assert cost["step_usd"] == pytest.approx(1 / 3600 * step_s * waste)
    assert (len(cost["on_spot"]), cost["wall_s_per_work_s"]) == (1, waste)
    never = make_study(**offer, job__checkpoint="30 s", job__restart="5 min", search__spot="never", search__minimum_ranks=2)
    assert _row(cost_table(never), "one step")["expected price"] == format_usd(4 / 3600 * never.search.best.step_s)
    assert cost_table(never).note.endswith("no node is rented at its spot price")


def test_co2_is_shown_with_a_grid_intensity(make_study: MakeStudy) -> None:
    """360 g/kWh are 0.1 mg per joule."""
    study = make_study(cluster__grid_intensity="360 g/kWh")
    milligrams = 1e5 * study.step_expense.joule / 1e3
    assert float(_column(cost_table(study), "CO2 (modelled)")[1].split()[0]) == pytest.approx(milligrams, rel=0.01)


def test_comparison_shows_spread_and_error(measured: Study) -> None:
    """A run of 1.25 times the simulated step is simulated 20 % too fast."""
    assert measured.comparison
    row = _row(comparison_table(measured.comparison), "one step")
    assert row["relative error"] == "-20.0 %"
    low, high = measured.comparison.measured_p5_s, measured.comparison.measured_p95_s
    assert row["measured p5 to p95"] == f"{format_seconds(low)} to {format_seconds(high)}"


def test_categories_show_differences_with_sign(measured: Study) -> None:
    """Every category of every rank has a row; the difference is simulated less measured."""
    assert measured.comparison
    table = categories_table(measured.comparison)
    assert len(table.rows) == len(measured.comparison.categories)
    first = measured.comparison.categories[0]
    assert table.rows[0][4] == format_seconds(first.simulated_s - first.measured_s)
    slow = replace(first, measured_s=first.simulated_s / 2)
    assert categories_table(replace(measured.comparison, categories=(slow,))).rows[0][4].startswith("+")


def test_accuracy_becomes_percent(measured: Study) -> None:
    """Fractions become percent here and nowhere else; other metrics stay numbers."""
    assert measured.measurement
    table = metrics_table(measured.measurement)
    assert _row(table, "validation accuracy")["measured"] == "97.1 %"
    assert _row(table, "validation loss")["measured"] == "0.1234"


def test_text_is_aligned_without_trailing_blanks() -> None:
    """Text columns start, number columns end, at the same place in every row."""
    table = Table("Title", ("name", "bytes"), (("a", "1 B"), ("longer", "20 MB")), note="a note")
    expected = ["Title", "", "name    bytes", "------  -----", "a         1 B", "longer  20 MB", "(a note)"]
    assert to_text(table).splitlines() == expected


def test_rich_shows_markup_as_text() -> None:
    """A name in brackets is a name, not a style."""
    from rich.console import Console

    console = Console(width=60, no_color=True)
    with console.capture() as captured:
        console.print(to_rich(Table("T", ("name",), (("[red]node[/red]",),))))
    assert "[red]node[/red]" in captured.get()


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


def test_search_dict_is_json_with_the_search_s_numbers(pipeline: Study) -> None:
    """The dictionary survives JSON and holds the numbers of the search, in base units."""
    found = json.loads(json.dumps(search_dict(pipeline), allow_nan=False))
    search = pipeline.search
    assert (found["simulated_step_s"], found["considered"], found["simulated"]) == (search.best.step_s, search.considered, search.simulated)
    assert [row["step_s"] for row in found["candidates"]] == [search.best.step_s, *(candidate.step_s for candidate in search.runner_ups)]
    assert found["one_rank"]["rank_count"] == 1
    assert [row["peak_memory_bytes"] for row in found["ranks"]] == [search.best.timeline.peak_memory_bytes(rank) for rank in range(2)]
    assert "comparison" not in found and "metrics" not in found


def test_search_dict_holds_what_was_measured(measured: Study) -> None:
    """Comparison and metrics are there after a run; a metric that is no number becomes null."""
    assert measured.measurement and isinstance(measured.comparison, Comparison)
    assert search_dict(measured)["comparison"] == measured.comparison.to_dict()
    failed: Measurement = replace(measured.measurement, metrics={"validation_loss": float("nan")})
    assert search_dict(replace(measured, measurement=failed))["metrics"] == {"validation_loss": None}


def test_importing_tables_is_light() -> None:
    """Neither matplotlib nor jinja2, rich or torch is imported before it is needed."""
    code = "import sys, chinchilla_sim.report.table, chinchilla_sim.report.trace, chinchilla_sim.report.page; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "jinja2", "rich", "torch"} & set(modules)
