"""Stages that are not contiguous: a rank takes several pieces of the line of tasks, wherever they lie.

Contiguous stages can only be as even as the line allows: of tasks that take 2, 4 and 2 ms two ranks get 2 and 6, but 4 and 4 where
one takes the first and the last. Which task goes where is the assignment problem of `peers/assignment.py` under our own costs, with all
microbatches of a step, and with the tensors that cross the line between two neighbouring tasks as their transfer. From the contiguous
optimum the integer programme shares the tasks of the busiest ranks anew (`free_assignment.share_anew`, counted in nodes, not in
seconds). Neighbours on one rank are then one stage, and list scheduling draws the rows for few, some and all microbatches in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby, pairwise

from chinchilla_sim.cluster.topology import Link
from chinchilla_sim.cost.codec import payload_bytes
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.drafting.cutting import Cutter
from chinchilla_sim.planner.peers.assignment import AssignmentProblem, assign_contiguous, least_load_s
from chinchilla_sim.planner.peers.assignment_programme import AssignmentProgramme
from chinchilla_sim.planner.peers.free_assignment import share_anew
from chinchilla_sim.planner.plan import CUSTOM, Plan
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.schedules.listed import StageSeconds, list_rows

MOST_NODES = 50
LEAST_GAIN = 0.02
"""Contiguous stages that are uneven by less are left as they are."""

MOST_PIECES = 4
"""Pieces per rank on average: more would send more often than they even out."""


def scatter(cutter: Cutter, whole: Plan, counts: Sequence[int]) -> Iterator[Plan]:
    """Plans with several pieces per rank from a plan of one stage with a placement for each pipeline position.

    `counts` are the numbers of microbatches to draw rows for. No plan where devices differ (the programme's are alike) or where contiguous
    stages are as even as can be.
    """
    pricer = cutter.pricer
    devices = {pricer.device_of(whole, rank) for row in whole.placement for rank in row}
    if len(devices) > 1:
        return
    problem, units = _problem(cutter, whole)
    first = assign_contiguous(problem)
    if first is None or not first.processor or first.slowest_s < least_load_s(problem) * (1 + LEAST_GAIN):
        return
    shared = share_anew(AssignmentProgramme(problem), first.processor, nodes=MOST_NODES)
    pieces = [
        (rank, [name for _, unit in run for name in units[unit]])
        for rank, run in groupby(zip(shared, range(len(units)), strict=True), _rank)
    ]
    ranks = list(dict.fromkeys(rank for rank, _ in pieces))
    if len(ranks) == len(pieces) or len(ranks) < len(whole.placement) or len(pieces) > MOST_PIECES * len(ranks):
        return
    positions = [ranks.index(rank) for rank, _ in pieces]
    count = len(pieces)
    plan = replace(
        whole,
        stages=tuple(tuple(names) for _, names in pieces),
        placement=tuple(whole.placement[position] for position in positions),
        schedule=CUSTOM,
        gradient_codecs=(whole.gradient_codecs[0],) * count,
        activation_codecs=(whole.activation_codecs[0] if whole.activation_codecs else "none",) * (count - 1),
        recompute=(),
    )
    for microbatches in counts:
        yield from _with_rows(cutter, replace(with_sharing(plan, cutter.graph), microbatch_count=microbatches), positions)


def _rank(item: tuple[int, int]) -> int:
    return item[0]


def _problem(cutter: Cutter, plan: Plan) -> tuple[AssignmentProblem, list[list[str]]]:
    """Tasks between allowed cuts on alike ranks: seconds of a step, transfers there and back, bytes with one microbatch per rank."""
    pricer = cutter.pricer.for_devices(plan)
    device, count, size = cutter.pricer.device_of(plan, 0), plan.microbatch_count, plan.microbatch_size
    tasks = pricer.graph.compute_tasks
    ends = [index for index, end in enumerate(cutter.can_end, start=1) if end]
    runs = [tasks[first:end] for first, end in pairwise((0, *ends))]
    seconds = [count * sum(sum(pricer.task_s(task, size, device, len(plan.slots))[:2]) for task in run) for run in runs]
    link = _link(cutter, plan)
    codec = plan.activation_codecs[0] if plan.activation_codecs else "none"
    scale = pricer.scale(size)
    crossing = [payload_bytes(codec, scale * cutter.crossing_bytes[end], pricer.value_bytes) / plan.group_width for end in ends]
    output_s = [count * 2 * link.idle_transfer_s(sent) for sent in crossing]
    in_flight = min(count, len(plan.placement))
    held = [cutter.run_bytes(plan, first, end, in_flight) for first, end in pairwise((0, *ends))]
    limit = min(cutter.cluster.device(slot).usable_memory_bytes for slot in plan.slots)
    chain = list(pairwise(range(len(runs))))
    units = [[unit] for unit in range(len(runs))]
    problem = AssignmentProblem(seconds, seconds, output_s, held, chain, units, chain, len(plan.placement), 0, limit)
    return problem, [[task.name for task in run] for run in runs]


def _link(cutter: Cutter, plan: Plan) -> Link:
    """The slowest link between two neighbours of the pipeline."""
    slots = [plan.slots_of(row[0])[0] for row in plan.placement]
    return max(
        (cutter.cluster.idle_link(a, b) for a, b in pairwise(slots)), key=lambda link: (1 / link.bandwidth_bytes_per_s, link.latency_s)
    )


def _with_rows(cutter: Cutter, plan: Plan, positions: Sequence[int]) -> Iterator[Plan]:
    """The plan with rows for few, some and all microbatches in flight, each as fast as the one before or faster."""
    drawn = replace(plan, order=("",))
    pricing = cutter.pricer.price(drawn)
    link = _link(cutter, replace(plan, placement=tuple(dict.fromkeys(plan.placement))))
    seconds = []
    for stage, row in enumerate(pricing.stages):
        crosses = stage < plan.stage_count - 1 and plan.crosses(stage)
        transfer_s = link.idle_transfer_s(pricing.boundary_bytes[stage] / plan.group_width) if crosses else 0.0
        seconds.append(StageSeconds(row[0].compute_s(Op.F), row[0].compute_s(Op.B, first=False), transfer_s))
    best_s = float("inf")
    ranks = len(set(positions))
    for in_flight in accumulate([ranks, ranks, 2 * ranks]):
        rows, step_s = list_rows(positions, seconds, plan.microbatch_count, min(in_flight, plan.microbatch_count))
        if step_s < best_s:
            best_s = step_s
            yield replace(plan, order=tuple(" ".join(map(str, row)) for row in rows))
        if in_flight >= plan.microbatch_count:
            return
