"""What reports say about requests under load."""

import json
from dataclasses import replace

from chinchilla_sim.planner.serving import Serving
from chinchilla_sim.report.pages.page import render_page
from chinchilla_sim.report.pages.result import search_dict
from chinchilla_sim.report.pages.summary import summary_text
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.cost import cost_table
from chinchilla_sim.report.tables.plans import candidates_table
from chinchilla_sim.report.tables.serving import requests_table, served_tables, serving_tables
from chinchilla_sim.report.verdict import answer
from chinchilla_sim.units import format_requests_per_s, format_seconds
from chinchilla_sim.validation.served import ServedComparison, StageRow


def test_every_plan_is_told_with_its_quantiles(served: Study) -> None:
    """One row per listed plan, with the figures of its simulation; the chosen one has the least 95th percentile."""
    (table,) = serving_tables(served.search)
    listed = [served.search.best, *served.search.runner_ups]
    assert [row[2] for row in table.rows][: len(listed)] == [format_seconds(one.serving.p95_s) for one in listed if one.serving]
    assert table.title == "Latency of 5000 requests/s" and "waits for no more" in table.note
    column = candidates_table(served.search, "latency")
    assert column.rows[0][column.headers.index("p95 latency")] == format_seconds(served.search.best.objective)


def test_answer_page_and_summary_tell_the_latency(served: Study) -> None:
    """The sentence has the percentile and the load; page and summary have the table; the cost is that of devices paid while they wait."""
    serving = served.search.best.serving
    assert serving and f"95 % of {format_requests_per_s(5000)} answered within {format_seconds(serving.p95_s)}" in answer(served)
    assert "Latency of 5000 requests/s" in summary_text(served) and "Latency of 5000 requests/s" in render_page(served)
    used = len(served.plan.slots) * 2 / 3600 * 1000 / 5000
    assert f"cost {used:.6f} USD per 1000 requests" in cost_table(served).note


def test_json_holds_every_figure_of_the_load(served: Study) -> None:
    """Of the chosen plan and of each candidate, in base units; a study without a load says nothing about one."""
    found = json.loads(json.dumps(search_dict(served), allow_nan=False))
    serving = served.search.best.serving
    assert serving and found["serving"] == found["candidates"][0]["serving"] == serving.to_dict()
    assert found["serving"]["p50_s"] <= found["serving"]["p95_s"] <= found["serving"]["p99_s"] and found["minimized"] == "latency"


def test_without_a_load_nothing_is_said_about_one(pipeline: Study) -> None:
    """Training, and inference that nobody waits for, look as before."""
    assert serving_tables(pipeline.search) == []
    assert "serving" not in search_dict(pipeline) and "serving" not in search_dict(pipeline)["candidates"][0]


def test_a_saturated_plan_is_shown_as_such(served: Study) -> None:
    """A given plan that cannot carry the load has its capacity, and no latency."""
    candidate = replace(served.search.best, serving=Serving(100.0, 50.0))
    (row,) = requests_table([("plan.json", candidate)]).rows
    assert row == ("plan.json", "saturated", "-", "-", "-", "-", "50.0 requests/s", "-", "-")


def test_measured_requests_stand_beside_the_simulated_ones() -> None:
    """Every figure with its relative error; the stages behind them; and what was filled up."""
    simulated = Serving(100.0, 400.0, 0.002, 0.004, 0.006, 0.003, 99.0, 0.25, 1.5)
    measured = replace(simulated, p50_s=0.004, utilization=0.5)
    latency, stages = served_tables(ServedComparison(simulated, measured, (StageRow(0, 0.001, 0.002),), 500, (1, 2, 4)))
    assert latency.title == "Simulated and measured latency of 100 requests/s"
    assert latency.rows[0] == ("p50", "2.00 ms", "4.00 ms", "-50.0 %") and latency.rows[1][3].strip("+") == "0.0 %"
    assert ("busy", "25.0 %", "50.0 %", "-50.0 %") in latency.rows
    assert "500 requests with the same arrivals" in latency.note and "filled up to the next of 1, 2, 4" in latency.note
    assert stages.rows == (("0", "1.00 ms", "2.00 ms", "-50.0 %"),)
    looped = replace(simulated, concurrency=8)
    assert served_tables(ServedComparison(looped, looped, (), 500))[0].title.endswith("8 requests that are always under way")
