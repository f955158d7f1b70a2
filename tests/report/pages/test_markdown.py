"""The report in other forms than the page."""

import csv
import io
import re
from dataclasses import replace

import pytest

from chinchilla_sim.report.pages.markdown import pictures_of, render_markdown
from chinchilla_sim.report.pages.sections import Picture, sections_of
from chinchilla_sim.report.pages.spreadsheet import render_csv
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.front import shown_front
from chinchilla_sim.report.verdict import answer


def test_markdown_has_the_sections_of_the_page(thorough: Study) -> None:
    """Question, answer and every heading; every table row has as many cells as its header."""
    text = render_markdown(thorough)
    assert text.startswith(f"# {thorough.scenario.question}\n\n**{answer(thorough)}**")
    assert re.findall(r"^## (.*)$", text, re.M) == [section.title for section in sections_of(thorough)]
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "rank 0  F" in text  # the sketch of the step


def test_markup_of_others_stays_text(thorough: Study) -> None:
    """Nothing in a name, a note or a reason becomes a link, a row or a tag."""
    attack = "<b>*x*</b> | [a](b) `c`"
    text = render_markdown(replace(thorough, notes=(attack,)))
    assert "\\<b\\>\\*x\\*\\</b\\> | \\[a\\](b) \\`c\\`" in text


def test_pictures_are_named_once_and_shown_where_asked_for(thorough: Study) -> None:
    """Every figure is a PNG of its own name; the text shows them only where they are written beside it."""
    pictures = dict(pictures_of(thorough))
    names = [f"{block.name}.png" for section in sections_of(thorough) for block in section.blocks if isinstance(block, Picture)]
    assert list(pictures) == names and all(data.startswith(b"\x89PNG") for data in pictures.values())
    shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", render_markdown(thorough, pictures=True))
    assert shown == names and "](" not in render_markdown(thorough)


def test_csv_has_a_row_for_each_plan_in_base_units(racks: Study) -> None:
    """The chosen plan first; alternatives and front once each; numbers are those of the search, CO2 follows from energy."""
    rows = list(csv.DictReader(io.StringIO(render_csv(racks))))
    best = racks.search.best
    assert (rows[0]["plan"], rows[0]["why"]) == (best.title, "chosen")
    assert float(rows[0]["step_s"]) == pytest.approx(best.step_s)
    assert float(rows[0]["step_kg_co2"]) == pytest.approx(float(rows[0]["step_joule"]) * 400e-3 / 3.6e6)
    assert {member.candidate.title for member in shown_front(racks)} <= {row["plan"] for row in rows}
    assert all(row["why"] for row in rows) and {row["on_front"] for row in rows} <= {"yes", "no"}


def test_other_forms_are_stable(thorough: Study) -> None:
    """The same input gives the same bytes."""
    assert render_markdown(thorough) == render_markdown(thorough) and render_csv(thorough) == render_csv(thorough)
