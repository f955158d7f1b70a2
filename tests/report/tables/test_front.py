"""The front as people read it: rows, JSON and points tell the same plans and numbers."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from chinchilla_sim.report.drawing.front_figure import draw_fronts
from chinchilla_sim.report.pages.page import render_page
from chinchilla_sim.report.pages.result import search_dict
from chinchilla_sim.report.pages.summary import summary_text
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.cost import cost_table
from chinchilla_sim.report.tables.front import front_dict, front_table, shown_front
from chinchilla_sim.units import format_joule, format_seconds, format_usd
from tests.report.conftest import MakeStudy

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def four_nodes(make_study: MakeStudy) -> Study:
    """A chain that two, three and four nodes speed up, at a price."""
    return make_study(cluster__nodes__0__count=4, cluster__network__bandwidth="100 Gbit/s", job__global_batch_size=512)


def test_rows_are_the_front_with_the_chosen_plan(four_nodes: Study) -> None:
    """One row per member, fastest first, numbered; one is the chosen plan, whose price and energy are those of the cost table."""
    table, members = front_table(four_nodes), shown_front(four_nodes)
    assert [row[0] for row in table.rows] == [str(number) for number in range(1, len(members) + 1)]
    assert [row[3] for row in table.rows] == [format_seconds(member.step_s) for member in members]
    (chosen,) = [row for row in table.rows if row[4] == "chosen"]
    assert chosen[1] == four_nodes.plan.describe()
    assert chosen[5:7] == cost_table(four_nodes).rows[0][2:4]
    assert "price per step" in table.headers and "limits" not in table.headers


def test_json_has_the_same_numbers(four_nodes: Study) -> None:
    """Members in JSON are those of the table, in base units; without limits all are within."""
    told = json.loads(json.dumps(front_dict(four_nodes)))
    assert told["front_size"] == len(four_nodes.search.front) >= len(told["front"])
    for row, member in zip(front_table(four_nodes).rows, told["front"], strict=True):
        assert row[1:4] == (member["describe"], str(member["rank_count"]), format_seconds(member["step_s"]))
        assert row[5:7] == (format_usd(member["step_usd"]), format_joule(member["step_joule"]))
        assert 0 <= member["memory_headroom"] <= 1 and member["within_limits"]
    assert sum(member["chosen"] for member in told["front"]) == 1


def test_whole_job_is_told_where_its_steps_are_stated(make_study: MakeStudy) -> None:
    """A thousand steps cost a thousand times one: in the cost table, on the front and in JSON; samples are steps times the batch."""
    study = make_study(job__steps=1000, cluster__grid_intensity="360 g/kWh")
    one, whole = cost_table(study).rows
    assert whole[0] == "whole job: 1000 steps, 64000 samples"
    cost, step_s = search_dict(study)["cost"], study.search.best.step_s
    assert cost["job"]["time_s"] == 1000 * step_s and cost["job"]["samples"] == 64000
    for unit in ("usd", "joule", "kg_co2"):
        assert cost["job"][unit] == pytest.approx(1000 * cost[f"step_{unit}"]) == pytest.approx(64000 * cost[f"sample_{unit}"])
    assert {"time of 1000 steps", "price of 1000 steps", "energy of 1000 steps"} <= set(front_table(study).headers)
    assert search_dict(make_study())["cost"]["job"] is None and one[1] == format_seconds(step_s)


def test_limits_are_told_for_every_member(make_study: MakeStudy) -> None:
    """Members beyond a limit say which; the summary and JSON say what the chosen plan takes of each."""
    free = make_study(search__objective="cost", cluster__network__bandwidth="100 Gbit/s", job__global_batch_size=512)
    limit_s = 1.01 * min(member.step_s for member in free.search.front)
    study = make_study(
        search__objective="cost",
        search__maximum_step_time=f"{limit_s!r} s",
        cluster__network__bandwidth="100 Gbit/s",
        job__global_batch_size=512,
    )
    assert study.search.best.step_s <= limit_s < free.search.best.step_s
    cells = {row[4]: row[-1] for row in front_table(study).rows}
    assert cells.pop("chosen") == "within" and set(cells.values()) <= {"within", "beyond the maximum step time"}
    assert search_dict(study)["limits"] == [{"key": "maximum_step_time", "most": limit_s, "value": study.search.best.step_s}]
    assert f"\nlimits: maximum step time {format_seconds(limit_s)}: takes " in summary_text(study)
    assert "limits:" not in summary_text(free) and search_dict(free)["limits"] == []


def test_points_stand_where_their_values_are(four_nodes: Study) -> None:
    """Every member has a dot and its number; from left to right steps take longer, and the text alternative names each plan."""
    svg = draw_fronts(four_nodes)[0].svg()
    root = ElementTree.fromstring(svg)
    members = shown_front(four_nodes)
    dots = [float(re.findall(r"-?[\d.]+", e.attrib["d"])[0]) for e in root.iter(f"{SVG}path") if "C" in e.attrib["d"]]
    assert len(dots) == len(members) > 1 and dots == sorted(dots)
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert {str(number) for number in range(1, len(members) + 1)} <= set(texts)
    assert root[1].text and all(member.candidate.title in root[1].text for member in members)
    assert "(chosen)" in root[1].text and "price of a step" in texts


def test_axes_follow_what_is_stated(make_study: MakeStudy) -> None:
    """Without a price the second axis is energy, without a power the ranks in use; their columns are left out."""
    unpriced = make_study(cluster__nodes__0__price=None)
    assert "energy of a step" in draw_fronts(unpriced)[0].svg() and not any("price" in header for header in front_table(unpriced).headers)
    bare = make_study(cluster__nodes__0__price=None, cluster__nodes__0__power=None)
    assert "ranks in use" in draw_fronts(bare)[0].svg()
    assert front_table(bare).headers == ("no.", "plan", "ranks", "step time", "vs chosen", "memory left free")


def test_a_front_of_one_is_no_section(pipeline: Study) -> None:
    """A page shows trade-offs only where there are any."""
    alone = replace(pipeline, search=replace(pipeline.search, front=pipeline.search.front[:1]))
    assert "Trade-offs" not in render_page(alone)
