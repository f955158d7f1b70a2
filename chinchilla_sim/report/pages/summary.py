"""Deterministic text of a study, for golden files."""

from __future__ import annotations

from dataclasses import replace

from chinchilla_sim.planner.explanation.explain import accuracy_words, gap_words, limits_words
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import one_line, to_text
from chinchilla_sim.report.tables.cost import cost_table
from chinchilla_sim.report.tables.plans import candidates_table, plan_table, ranks_table
from chinchilla_sim.report.tables.serving import serving_tables
from chinchilla_sim.report.verdict import answer
from chinchilla_sim.units import format_bytes, format_flop


def summary_text(study: Study) -> str:
    """Deterministic text of a study for golden files: nothing measured, no date of today, no path of this machine."""
    study = replace(study, measurement=None, comparison=None, explanation=())
    graph, search = study.graph, study.search
    sizes = f"{format_flop(graph.forward_flop)} forward, {format_flop(graph.backward_flop)} backward"
    lines = [f"scenario: {study.scenario.name}"]
    lines += [f"question: {one_line(study.scenario.question)}"] if study.scenario.question else []
    lines += [
        f"answer: {answer(study)}",
        f"graph: {graph.name}, {len(graph.compute_tasks)} tasks, {sizes} per batch of {graph.batch_size}, "
        f"{format_bytes(graph.total_parameter_bytes)} of parameters ({graph.source or 'source not stated'})",
        f"search: {search.considered} plans considered, {search.simulated} simulated, {search.infeasible} do not fit into memory",
        f"bound: {gap_words(search)}",
    ]
    lines += [f"limits: {limits_words(search)}"] if search.limits else []
    lines += [f"accuracy: {accuracy_words(search.accuracy, search.best.forecast, search.best.step_s)}"] if search.accuracy else []
    tables = [plan_table(study), candidates_table(search, study.scenario.search.objective), ranks_table(search.best, study.cluster)]
    tables[2:2] = serving_tables(search)
    blocks = ["\n".join(lines), *(to_text(table) for table in (*tables, cost_table(study)))]
    if graph.notes:
        blocks.append("\n".join(["About the graph", "", *(f"- {one_line(note)}" for note in graph.notes)]))
    blocks.append("\n".join(["Where the cluster's figures are from", "", *(f"- {one_line(line)}" for line in study.cluster.provenance)]))
    return "\n\n".join(blocks) + "\n"
