"""Tables of plans: those found by a search, and the stages and ranks of the chosen one."""

from __future__ import annotations

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import NONE, NOT_STATED, Table, percent, shorten
from chinchilla_sim.report.verdict import FORMAT_OBJECTIVE, against_chosen, counted_by, no_one_rank
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.units import format_bytes, format_seconds

FACT_HEADERS = ("exposed communication", "bubble", "sent per step", "peak memory")
_OBJECTIVE_COLUMN = {"cost": "USD", "energy": "energy", "latency": "p95 latency", "time_to_accuracy": "time to accuracy"}
_WHOLE = ("latency", "time_to_accuracy")
"""Objectives that are no amount of a step."""


def candidates_table(search: SearchResult, objective: str = "step_time") -> Table:
    """The chosen plan, the best plans of other splits, and one rank alone."""
    best = search.best
    headers = ["plan", "ranks", "step time", "vs chosen"]
    if objective != "step_time":
        headers += ["steps"] if objective == "time_to_accuracy" else []
        headers.append(_OBJECTIVE_COLUMN[objective] + (f" per {counted_by(best)}" if objective not in _WHOLE else ""))
    rows = []
    for name, candidate in listed_candidates(search):
        cells = [name, str(len(candidate.plan.slots)), format_seconds(candidate.step_s)]
        cells.append("chosen" if candidate is best else against_chosen(candidate, best, objective))
        if objective == "time_to_accuracy":
            steps = candidate.forecast.steps if candidate.forecast else None
            cells.append(NOT_STATED if steps is None else f"{steps:.0f}")
        if objective != "step_time":
            cells.append(FORMAT_OBJECTIVE[objective](candidate.objective) if candidate.objective else NOT_STATED)
        rows.append((*cells, *fact_cells(candidate)))
    headers += FACT_HEADERS
    note = "exposed communication and peak memory: of the worst rank; sent: sum of all ranks"
    if search.one_rank is None:
        note += f"; {no_one_rank(search)}"
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


def fact_cells(candidate: Candidate) -> tuple[str, ...]:
    """Cells under FACT_HEADERS."""
    facts = candidate_facts(candidate)
    seconds, share = format_seconds(facts["exposed_communication_s"]), percent(facts["bubble_fraction"])
    return seconds, share, format_bytes(facts["sent_bytes"]), format_bytes(facts["peak_memory_bytes"])


def exposed_s(timeline: Timeline, rank: int) -> float:
    """Exposed communication of a rank, without the last bits that a difference of sums leaves."""
    seconds = timeline.exposed_communication_s(rank)
    return seconds if seconds > 1e-9 * timeline.step_s else 0.0
