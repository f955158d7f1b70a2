"""One self-contained HTML page about one study: no script, no network, light and dark, screen and paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chinchilla_sim.cluster.build import emulated
from chinchilla_sim.cluster.catalogue import catalogue_digest
from chinchilla_sim.report.cost import cost_table
from chinchilla_sim.report.front import front_table
from chinchilla_sim.report.measured import attribution_table, categories_table, comparison_table, metrics_table
from chinchilla_sim.report.plans import candidates_table, plan_table, ranks_table
from chinchilla_sim.report.serving import serving_tables
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import percent, signed_percent
from chinchilla_sim.report.verdict import answer
from chinchilla_sim.scenario.cluster import THIS_MACHINE
from chinchilla_sim.units import format_bytes, format_flop, format_seconds

TEMPLATE = "page.html.jinja"


def render_page(study: Study) -> str:
    """The whole report as HTML; every text from outside is escaped."""
    return fill_template(TEMPLATE, _context(study))


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


def _context(study: Study) -> dict[str, Any]:
    search, scenario = study.search, study.scenario
    return {
        "name": scenario.name,
        "question": scenario.question or f"How should {scenario.name} be split?",
        "answer": answer(study),
        "figures_at_a_glance": _key_figures(study),
        "plan_facts": _plan_facts(study),
        "plan_table": plan_table(study),
        "comparison_table": comparison_table(study.comparison) if study.comparison else None,
        "attribution_table": attribution_table(study.comparison) if study.comparison else (),
        "categories_table": categories_table(study.comparison) if study.comparison else None,
        "metrics_table": metrics_table(study.measurement) if study.measurement else None,
        "cost_table": cost_table(study),
        "ranks_table": ranks_table(search.best, study.cluster),
        "candidates_table": candidates_table(search, scenario.search.objective),
        "front_table": front_table(study) if len(search.front) > 1 else None,
        "serving_tables": serving_tables(search),
        "search": search,
        "explanation": study.explanation,
        "provenance": study.cluster.provenance,
        "graph_facts": _graph_facts(study),
        "hashes": {"graph": study.graph.digest, "cluster": study.cluster.digest, "catalogue": catalogue_digest()},
        "can_run": (scenario.cluster.kind == THIS_MACHINE or emulated(scenario.cluster)) and scenario.model.kind in ("builtin", "factory"),
        "scenario_json": json.dumps(scenario.to_dict(), indent=1, ensure_ascii=False),
        **_figures(study),
    }


def _figures(study: Study) -> dict[str, Any]:
    from chinchilla_sim.report.figures import alternatives_svg, gantt_svg, memory_svg
    from chinchilla_sim.report.front_figure import front_svg

    best = study.search.best
    capacities = [study.cluster.device(slot, len(best.plan.slots)).memory_bytes for slot in best.plan.slots]
    drawn = {
        "gantt": gantt_svg(best.timeline, study.measurement.timeline if study.measurement else None),
        "memory": memory_svg(best.timeline, capacities),
        "alternatives": alternatives_svg(study.search),
    }
    if len(study.search.front) > 1:
        drawn["front"] = front_svg(study)
    return {name: inside_html(svg) for name, svg in drawn.items()}


def _key_figures(study: Study) -> list[tuple[str, str]]:
    """The few numbers that most readers came for."""
    best = study.search.best
    found = [("step, simulated", format_seconds(best.step_s))]
    if study.comparison:
        found.append(("step, measured", format_seconds(study.comparison.measured_step_s)))
        found.append(("error of the simulation", signed_percent(study.comparison.relative_error)))
    if best.step_s:
        found.append(("samples per second, simulated", f"{float(f'{study.plan.global_batch_size / best.step_s:.3g}'):,g}"))
    found.append(("ranks in use", f"{len(study.plan.slots)} of {study.cluster.rank_count}"))
    found.append(("idle share of all ranks", percent(best.timeline.bubble_fraction)))
    if study.measurement:
        metrics = sorted(study.measurement.metrics.items())
        found += [(name.replace("_", " "), percent(value)) for name, value in metrics if name.endswith("accuracy")]
    return found


def _plan_facts(study: Study) -> list[tuple[str, str]]:
    plan = study.plan
    stages, replicas, microbatches = plan.stage_count, plan.data_parallel_degree, plan.microbatch_count
    widths = "/".join(str(len(row)) for row in plan.placement)
    split = f"{stages} stages of {widths} replicas" if plan.free_replicas else f"{count(stages, 'stage')} x {count(replicas, 'replica')}"
    sizes = f"{count(microbatches, 'microbatch', 'microbatches')} of {plan.microbatch_size}"
    each = f", {plan.global_batch_size // replicas} per replica" if replicas > 1 else ""
    found = [
        ("split", split),
        ("global batch", f"{plan.global_batch_size} samples{each}"),
        ("microbatches", sizes + (" per replica" if replicas > 1 else "")),
    ]
    if stages > 1:
        found += [("schedule", plan.schedule), ("codecs of activations", ", ".join(sorted(set(plan.activation_codecs))))]
    if plan.exchange_degree > 1 and plan.training:
        found.append(("codecs of gradients", ", ".join(sorted(set(plan.gradient_codecs)))))
    return found


def count(number: int, one: str, many: str = "") -> str:
    """A number with its word.

    >>> count(1, "stage"), count(2, "stage"), count(4, "microbatch", "microbatches")
    ('1 stage', '2 stages', '4 microbatches')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def _graph_facts(study: Study) -> list[str]:
    graph = study.graph
    work = f"{format_flop(graph.forward_flop)} forward and {format_flop(graph.backward_flop)} backward per batch of {graph.batch_size}"
    return [
        f"graph {graph.name}: {graph.source or 'source not stated'}",
        f"{len(graph.compute_tasks)} tasks, {work}, {format_bytes(graph.total_parameter_bytes)} of parameters",
    ]
