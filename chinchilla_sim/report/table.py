"""Tables and text of a report: plain data, so that a terminal, HTML and summary.txt show the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING, Any

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.rent import Rent
from chinchilla_sim.planner.candidate import Candidate, SearchResult
from chinchilla_sim.planner.explain import gap_words, limits_words
from chinchilla_sim.report.study import Study
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.units import QuantityKind, format_bytes, format_flop, format_joule, format_requests_per_s, format_seconds, format_usd
from chinchilla_sim.validation.compare import Comparison, Measurement

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NOT_STATED = "not stated"
NONE = "-"
STEPS_WITHOUT_EPOCH = 1000

_MASSES = {"ug": Fraction(1, 10**9), "mg": Fraction(1, 10**6), "g": Fraction(1, 1000), "kg": Fraction(1), "t": Fraction(1000)}
format_kg = QuantityKind("mass", "kg", "2 kg", _MASSES, tuple(_MASSES)).format

_SUPERLATIVE = {"step_time": "fastest", "cost": "cheapest", "energy": "most frugal", "latency": "most responsive"}
_WORSE_BETTER = {"step_time": ("slower", "faster"), "cost": ("dearer", "cheaper"), "energy": ("hungrier", "more frugal")}
_WORSE_BETTER["latency"] = _WORSE_BETTER["step_time"]
_FORMAT_OBJECTIVE = {"step_time": format_seconds, "cost": format_usd, "energy": format_joule, "latency": format_seconds}
_OBJECTIVE_COLUMN = {"cost": "USD", "energy": "energy", "latency": "p95 latency"}


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the columns listed in `text_columns` are left-aligned, the others hold numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)
    note: str = ""


def to_text(table: Table) -> str:
    """Aligned plain text: title, headers, a rule, rows, note."""
    lines = [[_one_line(cell) for cell in row] for row in (table.headers, *table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headers))]
    lines.insert(1, ["-" * width for width in widths])
    aligned = [
        "  ".join(
            cell.ljust(width) if column in table.text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, "", *aligned, *([f"({table.note})"] if table.note else [])])


def to_rich(table: Table) -> RichTable:
    """The same table for a terminal; cells are shown as they are, not as rich's markup."""
    from rich.table import Table as RichTable
    from rich.text import Text

    note = Text(table.note) if table.note else None
    drawn = RichTable(title=Text(table.title), title_justify="left", caption=note, caption_justify="left")
    for column, header in enumerate(table.headers):
        drawn.add_column(Text(header), justify="left" if column in table.text_columns else "right")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def candidates_table(search: SearchResult, objective: str = "step_time") -> Table:
    """The chosen plan, the best plans of other splits, and one rank alone."""
    best = search.best
    headers = ["plan", "ranks", "step time", "vs chosen"]
    if objective != "step_time":
        headers.append(_OBJECTIVE_COLUMN[objective] + (f" per {_unit(best)}" if objective != "latency" else ""))
    rows = []
    for name, candidate in listed_candidates(search):
        facts = candidate_facts(candidate)
        cells = [name, str(len(candidate.plan.slots)), format_seconds(candidate.step_s)]
        cells.append("chosen" if candidate is best else versus(candidate.step_s, best.step_s, "step_time"))
        if objective != "step_time":
            cells.append(_FORMAT_OBJECTIVE[objective](candidate.objective) if candidate.objective else NOT_STATED)
        cells += [format_seconds(facts["exposed_communication_s"]), percent(facts["bubble_fraction"])]
        cells += [format_bytes(facts["sent_bytes"]), format_bytes(facts["peak_memory_bytes"])]
        rows.append(tuple(cells))
    headers += ["exposed communication", "bubble", "sent per step", "peak memory"]
    note = "exposed communication and peak memory: of the worst rank; sent: sum of all ranks"
    if search.one_rank is None:
        note += f"; {_no_one_rank(search)}"
    return Table("Plans by split", tuple(headers), tuple(rows), note=note)


def listed_candidates(search: SearchResult) -> list[tuple[str, Candidate]]:
    """What tables and figures list, by name: the chosen plan first, and one rank alone last where it is not among the best."""
    listed = [(candidate.title, candidate) for candidate in (search.best, *search.runner_ups)]
    if search.one_rank is not None and all(candidate is not search.one_rank for _, candidate in listed):
        listed.append(("one rank alone (for reference)", search.one_rank))
    return listed


def plan_table(study: Study) -> Table:
    """What runs where: tasks and parameters of each stage, its ranks and device slots, its codecs."""
    plan, graph = study.plan, study.graph
    columns: list[tuple[str, list[str]]] = [
        ("stage", [str(stage) for stage in range(plan.stage_count)]),
        ("tasks", [shorten(names) for names in plan.stages]),
    ]
    members = [[graph.tasks[graph.position[name]] for name in names] for names in plan.stages]
    columns.append(("parameters", [format_bytes(graph.parameter_bytes_of(tasks)) for tasks in members]))
    columns.append(("ranks", [shorten([str(rank) for rank in row]) for row in plan.placement]))
    columns.append(
        ("device slots", [shorten([study.cluster.slots[slot] for rank in row for slot in plan.slots_of(rank)]) for row in plan.placement])
    )
    if plan.stage_count > 1:
        columns.append(("codec to next stage", [*plan.activation_codecs, NONE]))
    if plan.exchange_degree > 1 and plan.training:
        columns.append(("gradient codec", list(plan.gradient_codecs)))
    headers, cells = zip(*columns, strict=True)
    text_columns = tuple(index for index, header in enumerate(headers) if header != "parameters")
    return Table("Stages, ranks and device slots", headers, tuple(zip(*cells, strict=True)), text_columns)


def ranks_table(best: Candidate, cluster: Cluster) -> Table:
    """Every rank of a plan: what it runs, how busy it is, what it sends, and its memory."""
    plan, timeline = best.plan, best.timeline
    rows = []
    for rank in range(plan.rank_count):
        stages, slots = plan.position[rank][0], plan.slots_of(rank)
        names = [name for stage in stages for name in plan.stages[stage]]
        row = [str(rank), shorten([cluster.slots[slot] for slot in slots]), ", ".join(map(str, stages)), shorten(names)]
        row.append(percent(timeline.utilization(rank)))
        row += [format_seconds(exposed_s(timeline, rank)), format_bytes(timeline.sent_bytes(rank))]
        capacity = cluster.device(slots[0], len(plan.slots)).memory_bytes
        row += [format_bytes(timeline.peak_memory_bytes(rank)), format_bytes(capacity)]
        rows.append(tuple(row))
    headers = ("rank", "device slot", "stage", "tasks", "utilization", "exposed communication", "sent per step", "peak memory", "capacity")
    return Table("Ranks of the chosen plan", headers, tuple(rows), text_columns=(0, 1, 2, 3))


def cost_table(study: Study) -> Table:
    """Simulated seconds, USD, modelled energy and CO2 of a step, and of the whole job, an epoch or 1000 steps."""
    amounts = [("one step", 1), (f"{STEPS_WITHOUT_EPOCH} steps", STEPS_WITHOUT_EPOCH)]
    steps = study.scenario.job.total_steps
    if steps is not None:
        amounts[1] = (f"whole job: {steps} steps, {steps * study.plan.global_batch_size} samples", steps)
    elif study.steps_per_epoch:
        amounts[1] = (f"one epoch of {study.steps_per_epoch} steps", study.steps_per_epoch)
    with_co2, with_spot = study.cluster.grid_kg_per_joule is not None, bool(study.cluster.spot_offers)
    rows = []
    for name, count in amounts:
        spent = study.step_expense.times(count)
        row = [name, format_seconds(count * study.search.best.step_s)]
        row.append(format_usd(spent.usd) if spent.usd else NOT_STATED)
        row += [format_usd(count * study.search.best.step_s * study.rent.full_usd_per_s)] if with_spot else []
        row.append(format_joule(spent.joule) if spent.joule else NOT_STATED)
        if with_co2:
            row.append(format_kg(spent.kg_co2) if spent.kg_co2 else NOT_STATED)
        rows.append(tuple(row))
    prices = ("expected price", "without spot prices") if with_spot else ("price",)
    headers = ("for", "time", *prices, "energy (modelled)", *(["CO2 (modelled)"] if with_co2 else []))
    return Table("Cost of the chosen plan, simulated", headers, tuple(rows), note=_cost_note(study))


def _cost_note(study: Study) -> str:
    devices = [study.cluster.device(slot, len(study.plan.slots)) for slot in study.plan.slots]
    note = "energy: full power for the whole step on every rank in use, an upper bound"
    served, usd_per_s = study.search.best.serving, sum(device.usd_per_s for device in devices)
    if served and usd_per_s:
        each = format_usd(1000 * usd_per_s / served.arrivals_per_s)
        note += f"; at {format_requests_per_s(served.arrivals_per_s)} the devices, paid while they wait, cost {each} per 1000 requests"
    for what, given in (("price", [d.usd_per_s for d in devices]), ("power", [d.power_watt for d in devices])):
        missing = given.count(0.0)
        if 0 < missing < len(given):
            note += f"; {missing} of {len(given)} ranks have no stated {what} and count as 0"
    return note + (f"; {rent_words(study.rent)}" if study.cluster.spot_offers else "")


def rent_words(rent: Rent) -> str:
    """How the nodes in use are rented, and what interruptions cost."""
    if not rent.on_spot:
        return "no node is rented at its spot price"
    often = f"one interruption in {format_seconds(rent.between_interruptions_s)} on average"
    saved = f"a checkpoint after {format_seconds(rent.interval_s)} of work"
    lost = f"{percent(1 - 1 / rent.wall_s_per_work_s)} of the time is lost and paid for, which the time column leaves out"
    return f"expected price: {', '.join(rent.on_spot)} at the spot price, {often}, {saved}; {lost}"


def comparison_table(comparison: Comparison) -> Table:
    """The simulated step beside the measured one."""
    spread = f"{format_seconds(comparison.measured_p5_s)} to {format_seconds(comparison.measured_p95_s)}"
    row = ("one step", format_seconds(comparison.simulated_step_s), format_seconds(comparison.measured_step_s), spread)
    headers = ("", "simulated", "measured (median)", "measured p5 to p95", "relative error")
    note = f"{comparison.step_count} measured steps; relative error = (simulated - measured) / measured"
    return Table("Simulated and measured step", headers, ((*row, signed_percent(comparison.relative_error)),), note=note)


def categories_table(comparison: Comparison) -> Table:
    """Where the difference comes from: seconds of each category on each rank."""
    rows = []
    for row in comparison.categories:
        difference_s = row.simulated_s - row.measured_s
        sign = "+" if difference_s > 0 else ""
        share = signed_percent(difference_s / comparison.measured_step_s)
        times = [format_seconds(row.simulated_s), format_seconds(row.measured_s), sign + format_seconds(difference_s)]
        rows.append((str(row.rank), row.category, *times, share))
    headers = ("rank", "category", "simulated", "measured", "difference", "of the measured step")
    return Table("Simulated and measured by rank and category", headers, tuple(rows), text_columns=(0, 1))


def metrics_table(measurement: Measurement) -> Table:
    """What the run achieved: losses, the job's own metrics, and seconds of an epoch."""
    rows = []
    for name, value in sorted(measurement.metrics.items()):
        rows.append((name.replace("_", " "), percent(value) if name.endswith("accuracy") else f"{value:.4g}"))
    if measurement.losses:
        rows.append(("training loss, first step", f"{measurement.losses[0]:.4g}"))
        rows.append(("training loss, last step", f"{measurement.losses[-1]:.4g}"))
        rows.append(("steps", str(len(measurement.losses))))
    if measurement.epoch_s:
        rows.append(("epochs", str(len(measurement.epoch_s))))
        rows.append(("one epoch (median)", format_seconds(median(measurement.epoch_s))))
    return Table("What the run achieved", ("metric", "measured"), tuple(rows))


def answer(study: Study) -> str:
    """The answer in one sentence: the plan, its step, and how the best alternative and one rank alone compare with it."""
    search, objective = study.search, study.scenario.search.objective
    best, alone = search.best, search.one_rank
    priced = objective in ("cost", "energy") and best.objective
    own_price = f", {_FORMAT_OBJECTIVE[objective](best.objective)} per {_unit(best)}" if priced else ""
    if best.serving:
        own_price += f", 95 % of {format_requests_per_s(best.serving.arrivals_per_s)} answered within {format_seconds(best.serving.p95_s)}"
    step = f"{format_seconds(best.step_s)} per step (simulated){own_price}"
    parts = [f"The {_SUPERLATIVE[objective]} plan found is {best.plan.describe()}: {step}"]
    alternative = search.runner_ups[0] if search.runner_ups else None
    if alternative:
        name = "one rank alone" if len(alternative.plan.slots) == 1 else alternative.plan.describe()
        parts.append(f"the best alternative, {name}, is {_compared(alternative, best, objective)}")
    else:
        parts.append("no plan of another split is reported")
    if alone is None:
        parts.append(_no_one_rank(search))
    elif len(best.plan.slots) > 1 and alone is not alternative:
        # Were it allowed it would have been chosen: the objective says so.
        beyond = search.limits and not search.limits.hold(alone.plan.slots, alone.step_s)
        excluded = "is beyond the limits" if beyond else "this search excludes"
        name = f"but one rank alone, which {excluded}," if alone.objective < best.objective else "one rank alone"
        own = alone.objective if objective == "latency" else alone.step_s
        parts.append(f"{name} is {_compared(alone, best, objective)} ({format_seconds(own)})")
    return "; ".join(parts) + "."


def _unit(best: Candidate) -> str:
    """What money and energy are counted by: under load the devices run however long a step takes."""
    return f"{best.plan.global_batch_size} requests" if best.serving else "step"


def _no_one_rank(search: SearchResult) -> str:
    return f"one rank alone does not {'carry the load, or does not ' if search.best.serving else ''}fit into memory"


def _compared(candidate: Candidate, best: Candidate, objective: str) -> str:
    if objective == "latency":
        return f"{versus(candidate.objective, best.objective, objective)} at the 95th percentile"
    step = versus(candidate.step_s, best.step_s, "step_time")
    return step if objective == "step_time" else f"{versus(candidate.objective, best.objective, objective)} and {step}"


def versus(value: float, chosen: float, objective: str) -> str:
    """A value beside that of the chosen plan.

    >>> versus(3.0, 2.0, "step_time"), versus(1.0, 2.0, "cost"), versus(2.0, 2.0, "energy")
    ('1.50x slower', '2.00x cheaper', 'equal')
    """
    if value == chosen:
        return "equal"
    if value <= 0 or chosen <= 0:
        return NOT_STATED
    worse, better = _WORSE_BETTER[objective]
    ratio, word = (value / chosen, worse) if value > chosen else (chosen / value, better)
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x {word}"


def summary_text(study: Study) -> str:
    """Deterministic text of a study for golden files: nothing measured, no date of today, no path of this machine."""
    from chinchilla_sim.report.serving import serving_tables

    study = replace(study, measurement=None, comparison=None, explanation=())
    graph, search = study.graph, study.search
    sizes = f"{format_flop(graph.forward_flop)} forward, {format_flop(graph.backward_flop)} backward"
    lines = [f"scenario: {study.scenario.name}"]
    lines += [f"question: {_one_line(study.scenario.question)}"] if study.scenario.question else []
    lines += [
        f"answer: {answer(study)}",
        f"graph: {graph.name}, {len(graph.compute_tasks)} tasks, {sizes} per batch of {graph.batch_size}, "
        f"{format_bytes(graph.total_parameter_bytes)} of parameters ({graph.source or 'source not stated'})",
        f"search: {search.considered} plans considered, {search.simulated} simulated, {search.infeasible} do not fit into memory",
        f"bound: {gap_words(search)}",
    ]
    lines += [f"limits: {limits_words(search)}"] if search.limits else []
    tables = [plan_table(study), candidates_table(search, study.scenario.search.objective), ranks_table(search.best, study.cluster)]
    tables[2:2] = serving_tables(search)
    blocks = ["\n".join(lines), *(to_text(table) for table in (*tables, cost_table(study)))]
    if graph.notes:
        blocks.append("\n".join(["About the graph", "", *(f"- {_one_line(note)}" for note in graph.notes)]))
    blocks.append("\n".join(["Where the cluster's figures are from", "", *(f"- {_one_line(line)}" for line in study.cluster.provenance)]))
    return "\n\n".join(blocks) + "\n"


def search_dict(study: Study) -> dict[str, Any]:
    """JSON-ready result of a search, with comparison and metrics if the plan ran."""
    search, spent = study.search, study.step_expense
    found: dict[str, Any] = {
        "scenario": study.scenario.name,
        "question": study.scenario.question,
        "summary": study.plan.describe(),
        "plan": asdict(study.plan),
        "simulated_step_s": search.best.step_s,
        "minimized": study.scenario.search.objective,
        "objective": search.best.objective,
        "candidates": [_candidate_dict(candidate) for candidate in (search.best, *search.runner_ups)],
        "one_rank": None if search.one_rank is None else _candidate_dict(search.one_rank),
        "lower_bound_s": search.lower_bound_s,
        "gap": search.gap,
        "truncated": search.truncated,
        "screened": search.screened,
        "considered": search.considered,
        "simulated": search.simulated,
        "infeasible": search.infeasible,
        "cost": {"step_usd": spent.usd, "step_joule": spent.joule, "step_kg_co2": spent.kg_co2} | _rent_dict(study) | _job_dict(study),
        "limits": _limits_dict(search),
        "ranks": [_rank_dict(study, rank) for rank in range(study.plan.rank_count)],
        "explanation": list(study.explanation),
    }
    if search.best.serving is not None:
        found |= {"serving": search.best.serving.to_dict(), "overloaded": search.overloaded}
    if study.comparison is not None:
        found |= {"measured_step_s": study.comparison.measured_step_s, "comparison": study.comparison.to_dict()}
    if study.measurement is not None:
        found["metrics"] = {name: value if isfinite(value) else None for name, value in study.measurement.metrics.items()}
    return found


def _job_dict(study: Study) -> dict[str, Any]:
    """Cost per sample, and of the whole job where its steps are stated."""
    spent, batch_size = study.step_expense, study.plan.global_batch_size
    each = spent.times(1 / batch_size)
    found: dict[str, Any] = {"sample_usd": each.usd, "sample_joule": each.joule, "sample_kg_co2": each.kg_co2, "job": None}
    steps = study.scenario.job.total_steps
    if steps is not None:
        whole = spent.times(steps)
        length = {"steps": steps, "samples": steps * batch_size, "time_s": steps * study.search.best.step_s * study.rent.wall_s_per_work_s}
        found["job"] = length | {"usd": whole.usd, "joule": whole.joule, "kg_co2": whole.kg_co2}
    return found


def _limits_dict(search: SearchResult) -> list[dict[str, Any]]:
    """Every limit, and what the chosen plan takes of it (seconds or USD)."""
    uses = search.limits.uses(search.best.plan.slots, search.best.step_s) if search.limits else ()
    return [{"key": use.limit.key, "most": use.limit.most, "value": use.value} for use in uses]


def _rent_dict(study: Study) -> dict[str, Any]:
    """What interruptions make of the cost, where spot prices are offered."""
    found = study.rent
    lost = {"between_interruptions_s": found.between_interruptions_s, "interval_s": found.interval_s} if found.on_spot else {}
    facts = {"on_spot": list(found.on_spot), "wall_s_per_work_s": found.wall_s_per_work_s, **lost}
    return facts if study.cluster.spot_offers else {}


def _rank_dict(study: Study, rank: int) -> dict[str, Any]:
    plan, slots = study.plan, study.plan.slots_of(rank)
    stages, replica = plan.position[rank]
    return {
        "rank": rank,
        "slots": [study.cluster.slots[slot] for slot in slots],
        "stages": list(stages),
        "replica": replica,
        "utilization": study.search.best.timeline.utilization(rank),
        "peak_memory_bytes": study.search.best.timeline.peak_memory_bytes(rank),
        "capacity_bytes": study.cluster.device(slots[0], len(plan.slots)).memory_bytes,
    }


def _candidate_dict(candidate: Candidate) -> dict[str, Any]:
    named = {"describe": candidate.plan.describe(), "rank_count": len(candidate.plan.slots)}
    served = {"serving": candidate.serving.to_dict()} if candidate.serving else {}
    return {**named, "step_s": candidate.step_s, "objective": candidate.objective, **candidate_facts(candidate), **served}


def candidate_facts(candidate: Candidate) -> dict[str, float]:
    """What a step is judged by beside its time: of the worst rank, or the sum over ranks."""
    timeline = candidate.timeline
    ranks = range(timeline.rank_count)
    return {
        "bubble_fraction": timeline.bubble_fraction,
        "exposed_communication_s": max(exposed_s(timeline, rank) for rank in ranks),
        "sent_bytes": sum(timeline.sent_bytes(rank) for rank in ranks),
        "peak_memory_bytes": max(timeline.peak_memory_bytes(rank) for rank in ranks),
    }


def exposed_s(timeline: Timeline, rank: int) -> float:
    """Exposed communication of a rank, without the last bits that a difference of sums leaves."""
    seconds = timeline.exposed_communication_s(rank)
    return seconds if seconds > 1e-9 * timeline.step_s else 0.0


def shorten(names: Sequence[str]) -> str:
    """A list that fits into a cell.

    >>> shorten(["a", "b"]), shorten(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b .. e (5)')
    """
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} .. {names[-1]} ({len(names)})"


def percent(fraction: float) -> str:
    """A fraction as people read it.

    >>> percent(0.4567), percent(0.0001), percent(-1e-12)
    ('45.7 %', '< 0.1 %', '0.0 %')
    """
    return "< 0.1 %" if 1e-9 < fraction < 0.0005 else f"{100 * fraction:.1f} %".replace("-0.0 ", "0.0 ")


def signed_percent(fraction: float) -> str:
    """The same with its sign.

    >>> signed_percent(0.05), signed_percent(-0.00001)
    ('+5.0 %', '0.0 %')
    """
    return f"{100 * fraction:+.1f} %".replace("-0.0 ", "0.0 ").replace("+0.0 ", "0.0 ")


def _one_line(text: str) -> str:
    return " ".join(text.split())
