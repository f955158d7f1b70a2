"""One self-contained HTML page about one run: simulated and measured step above each other, and why they differ."""

from __future__ import annotations

from chinchilla_sim.report.pages.page import fill_template, inside_html
from chinchilla_sim.report.table import signed_percent
from chinchilla_sim.report.tables.measured import attribution_table, categories_table, comparison_table, peaks_table
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.compare import Comparison

TEMPLATE = "run.html.jinja"


def render_run_page(title: str, simulated: Timeline, measured: Timeline, comparison: Comparison) -> str:
    """The page as HTML."""
    from chinchilla_sim.report.drawing.gantt import draw_gantt

    context = {
        "title": title,
        "answer": _answer(comparison),
        "comparison_table": comparison_table(comparison),
        "gantt": inside_html(draw_gantt(simulated, measured).svg()),
        "attribution_table": attribution_table(comparison),
        "categories_table": categories_table(comparison),
        "peaks_table": peaks_table(comparison),
    }
    return fill_template(TEMPLATE, context)


def _answer(comparison: Comparison) -> str:
    """The error in a sentence, with the cause that explains most of it."""
    simulated, measured = format_seconds(comparison.simulated_step_s), format_seconds(comparison.measured_step_s)
    text = f"A step was simulated to take {simulated} and took {measured}: {signed_percent(comparison.relative_error)}."
    if comparison.attribution:
        most = max(comparison.attribution.shares, key=lambda share: abs(share.error_s))
        text += f" Most of the difference is {most.cause} ({signed_percent(most.error_s / comparison.measured_step_s)})."
    return text
