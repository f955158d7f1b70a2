"""What a report says, as data: sections of texts, facts, tables and pictures, which `page.py` and `markdown.py` write in their own way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chinchilla_sim.cluster.build import emulated
from chinchilla_sim.report.pages.provenance import assumptions, digests, inputs_table
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import Table, fold_rows, percent, signed_percent
from chinchilla_sim.report.tables.alternatives import why_table
from chinchilla_sim.report.tables.cost import cost_table
from chinchilla_sim.report.tables.front import front_table
from chinchilla_sim.report.tables.idle import idle_table
from chinchilla_sim.report.tables.measured import attribution_table, categories_table, comparison_table, metrics_table, peaks_table
from chinchilla_sim.report.tables.plans import candidates_table, plan_table, ranks_table
from chinchilla_sim.report.tables.reasons import explanation_sentence, explanation_tables
from chinchilla_sim.report.tables.serving import serving_tables
from chinchilla_sim.report.tables.simulated import memory_table
from chinchilla_sim.report.tables.traffic import links_table, traffic_table
from chinchilla_sim.scenario.cluster import THIS_MACHINE
from chinchilla_sim.units import format_seconds, plain_number

if TYPE_CHECKING:
    from chinchilla_sim.report.drawing.canvas import Drawing


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A text of its own."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with what to know about it; `name` is that of its file."""

    name: str
    drawing: Drawing
    caption: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences; `monospaced` ends are set apart from their beginnings."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text as it is, behind a summary that opens it (always open where there is none)."""

    text: str
    summary: str = ""


Block = Paragraph | Facts | Picture | Bullets | Code | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report under its heading."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Where a link on the page leads."""
        return "-".join(re.findall(r"[a-z]+", self.title.lower()))


def sections_of(study: Study) -> list[Section]:
    """The report behind question and answer; sections without content are left out."""
    parts: list[tuple[str, Callable[[Study], list[Block | None]]]] = [
        ("Why this plan", _why),
        ("The plan over the cluster", _plan),
        ("One step, simulated and measured" if study.measurement else "One step, simulated", _step),
        ("Was the simulation right?", _reality),
        ("Alternatives", _alternatives),
        ("What the step depends on", _sensitivity),
        ("Memory", _memory),
        ("Cost", _cost),
        ("Trade-offs", _front),
        ("Where the figures are from", _sources),
    ]
    found = [Section(title, tuple(block for block in part(study) if block)) for title, part in parts]
    return [section for section in found if section.blocks]


def key_figures(study: Study) -> Facts:
    """The few numbers that most readers came for."""
    best = study.search.best
    found = [("step, simulated", format_seconds(best.step_s))]
    if best.serving and not best.serving.saturated:
        found.insert(0, ("95 % answered within, simulated", format_seconds(best.serving.p95_s)))
    if study.comparison:
        found.append(("step, measured", format_seconds(study.comparison.measured_step_s)))
        found.append(("error of the simulation", signed_percent(study.comparison.relative_error)))
    if best.step_s:
        found.append(("samples per second, simulated", _grouped(study.plan.global_batch_size / best.step_s)))
    used, there = len(study.plan.slots), study.cluster.rank_count
    found.append(("devices in use", f"all {used:,}" if used == there else f"{used:,} of {there:,}"))
    found.append(("idle share of all ranks", percent(best.timeline.bubble_fraction)))
    if study.measurement:
        metrics = sorted(study.measurement.metrics.items())
        found += [(name.replace("_", " "), percent(value)) for name, value in metrics if name.endswith("accuracy")]
    return Facts(tuple(found))


def _grouped(value: float) -> str:
    """Three digits of a number, with separators where it is large.

    >>> _grouped(1234567.0), _grouped(0.5)
    ('1,230,000', '0.5')
    """
    rounded = plain_number(value)
    return f"{float(rounded):,.0f}" if value >= 1000 else rounded


def _plan(study: Study) -> list[Block | None]:
    from chinchilla_sim.report.drawing.cluster_figure import draw_cluster

    caption = (
        "Nodes and switches from the top of the network down; nodes that do the same share a row. A cell is a device, its number the stage "
        "that it runs. The stroke of a link is the wider the longer the step keeps it busy (orange: at least half of the step). Arcs: "
        "bytes per step that rows send each other."
    )
    picture = Picture("cluster", draw_cluster(study), caption)
    return [Facts(_plan_facts(study)), picture, traffic_table(study), links_table(study), plan_table(study)]


def _plan_facts(study: Study) -> tuple[tuple[str, str], ...]:
    plan = study.plan
    stages, replicas, microbatches = plan.stage_count, plan.data_parallel_degree, plan.microbatch_count
    widths = "/".join(str(len(row)) for row in plan.placement)
    split = f"{stages} stages of {widths} replicas" if plan.free_replicas else f"{count(stages, 'stage')} x {count(replicas, 'replica')}"
    if plan.group_width > 1:
        split += f", each rank a group of {plan.group_width} devices"
    counts = plan.replica_microbatch_counts
    sizes = f"{count(microbatches, 'microbatch', 'microbatches')} of {plan.microbatch_size}"
    each = f", {plan.global_batch_size // replicas} per replica" if replicas > 1 else ""
    if counts:
        sizes = f"{min(counts)} to {max(counts)} microbatches of {plan.microbatch_size}"
        each = f", {plan.microbatch_size * min(counts)} to {plan.microbatch_size * max(counts)} per replica"
    found = [
        ("split", split),
        ("global batch", f"{plan.global_batch_size} samples{each}"),
        ("microbatches", sizes + (" per replica" if replicas > 1 else "")),
    ]
    if stages > 1:
        found += [("schedule", plan.schedule), ("codecs of activations", ", ".join(sorted(set(plan.activation_codecs))))]
    if plan.exchange_degree > 1 and plan.training:
        found.append(("codecs of gradients", ", ".join(sorted(set(plan.gradient_codecs)))))
    return tuple(found)


def count(number: int, one: str, many: str = "") -> str:
    """A number with its word.

    >>> count(1, "stage"), count(2, "stage"), count(4, "microbatch", "microbatches")
    ('1 stage', '2 stages', '4 microbatches')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def _step(study: Study) -> list[Block | None]:
    from chinchilla_sim.report.drawing.gantt import draw_gantt

    caption = "Each rank's computation, messages and collectives over one step; a gap in the first row of a rank is idle time"
    caption += ", and the strip in it tells what the rank waits for." if study.timeline.waits else "."
    caption += " Where spans are too narrow to draw, columns show the share of each kind."
    measured = study.measurement.timeline if study.measurement else None
    return [Picture("step", draw_gantt(study.timeline, measured), caption), idle_table(study.timeline)]


def _reality(study: Study) -> list[Block | None]:
    found: list[Block | None] = []
    if study.comparison:
        told = study.comparison
        found += [comparison_table(told), *attribution_table(told), categories_table(told), *peaks_table(told)]
    return [*found, metrics_table(study.measurement) if study.measurement else None]


def _memory(study: Study) -> list[Block | None]:
    from chinchilla_sim.report.drawing.figures import draw_memory

    best = study.search.best
    capacities = [
        study.cluster.device(study.plan.slots_of(rank)[0], len(study.plan.slots)).memory_bytes for rank in range(study.plan.rank_count)
    ]
    picture = Picture(
        "memory",
        draw_memory(best.timeline, capacities),
        "Peak memory of each rank in the simulated step, against the capacity of its device.",
    )
    return [picture, fold_rows(memory_table(best)), fold_rows(ranks_table(best, study.cluster), (0, 1))]


def _cost(study: Study) -> list[Block | None]:
    table = cost_table(study)
    missing = "" if study.cluster.grid_kg_per_joule is not None else "; CO2: the scenario states no grid intensity"
    return [replace(table, note=table.note + missing)]


def _front(study: Study) -> list[Block | None]:
    from chinchilla_sim.report.drawing.front_figure import draw_fronts

    if len(study.search.front) < 2:
        return []
    chosen = any(member.candidate is study.search.best for member in study.search.front)
    blue = (
        ", the blue one is the chosen plan" if chosen else "; the chosen plan is not among them, because it was chosen for something else"
    )
    caption = f"Each point is a plan; its number is its row in the table below{blue}. Axes that span much are logarithmic."
    text = "Among the plans that were simulated, none of these is better than another in time, price, energy and free memory at once "
    text += "(where they are stated)."
    drawings = draw_fronts(study)
    pictures = [Picture(f"front-{number}", drawing, caption) for number, drawing in enumerate(drawings, 1)]
    return [Paragraph(text), *pictures, front_table(study)]


def _alternatives(study: Study) -> list[Block | None]:
    from chinchilla_sim.report.drawing.figures import draw_alternatives

    search, objective = study.search, study.scenario.search.objective
    text = f"{search.considered} plans were considered, {search.simulated} of them simulated"
    text += f"; {search.infeasible} {'does' if search.infeasible == 1 else 'do'} not fit into memory" if search.infeasible else ""
    text += ". Each plan shown is the best one of its split (stages x replicas)."
    drawing = draw_alternatives(search, objective)
    picture = Picture(
        "alternatives", drawing, f"{drawing.title.removesuffix(' of the alternatives')}, simulated, of the best plan of each split."
    )
    return [Paragraph(text), picture, why_table(study), candidates_table(search, objective), *serving_tables(search)]


def _sensitivity(study: Study) -> list[Block | None]:
    from chinchilla_sim.report.drawing.figures import draw_sensitivity

    found = study.sensitivity
    if found is None:
        return []
    caption = "The same plan simulated again with one input changed at a time; nothing is planned again."
    return [Paragraph(explanation_sentence(found)), Picture("sensitivity", draw_sensitivity(found), caption), *explanation_tables(found)]


def _why(study: Study) -> list[Block | None]:
    """The explanation without what the table of alternatives tells already."""
    others = tuple(candidate.title for candidate in study.search.runner_ups)
    lines = [line for line in study.explanation if not (others and line.startswith(others))]
    return [Bullets(tuple(lines))] if lines else []


def _sources(study: Study) -> list[Block | None]:
    hashes = "\n".join(f"{what:<10} {digest}" for what, digest in digests(study).items())
    scenario = study.scenario
    can_run = (scenario.cluster.kind == THIS_MACHINE or emulated(scenario.cluster)) and scenario.model.kind in ("builtin", "factory")
    commands = [("plan", "the plan and its alternatives"), *([("run", "the plan for real, on this machine")] if can_run else [])]
    commands.append(("report", f"this page{', with what was measured' if can_run else ''}"))
    lines = [f"{f'chinchilla {name} {scenario.name}.toml':<{len(scenario.name) + 24}}  # {words}" for name, words in commands]
    defaults = "\n".join(f"{key} = {value}" for key, value in scenario.defaults().items())
    inputs = inputs_table(study)
    told = " ".join(cell for row in inputs.rows for cell in row)
    further = [line for line in study.cluster.provenance if line not in told]
    more: list[Block | None] = [Paragraph("Further sources:"), Bullets(tuple(further))] if further else []
    return [
        inputs,
        *more,
        Paragraph("Assumed beside them:"),
        Bullets(tuple(assumptions(study))),
        Paragraph("How to reproduce it:"),
        Code("\n".join(lines)),
        Code(json.dumps(scenario.to_dict(), indent=1, ensure_ascii=False), "The scenario as it was read"),
        Code(defaults, "What it leaves to defaults") if defaults else None,
        Code(hashes, "SHA-256 of what the figures follow from"),
    ]
