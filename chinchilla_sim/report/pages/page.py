"""One self-contained HTML page about one study: no script, no network, light and dark, screen and paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_sim.report.pages.sections import key_figures, sections_of
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.verdict import answer

TEMPLATE = "page.html.jinja"


def render_page(study: Study) -> str:
    """The whole report as HTML; every text from outside is escaped."""
    context = {
        "name": study.scenario.name,
        "question": question_of(study),
        "answer": answer(study),
        "glance": key_figures(study),
        "sections": sections_of(study),
        "kind_of": lambda block: type(block).__name__,
        "svg_of": lambda drawing: inside_html(drawing.svg()),
    }
    return fill_template(TEMPLATE, context)


def question_of(study: Study) -> str:
    """What the scenario asks."""
    return study.scenario.question or f"How should {study.scenario.name} be split?"


def fill_template(name: str, context: Mapping[str, Any]) -> str:
    """A template of this package with its gaps filled; text is escaped, Markup is not."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("chinchilla_sim.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name).render(context)


def inside_html(svg: str) -> Any:
    """A figure as a part of a page: the namespace is implied there, and its texts were escaped when it was written."""
    from markupsafe import Markup

    return Markup(svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))
