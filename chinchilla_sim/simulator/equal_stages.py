"""A schedule alone: equal stages over links of a fixed delay, without memory, codecs or exchanges."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.planner.action import Action, Op, parse_action
from chinchilla_sim.planner.plan import CUSTOM, Plan
from chinchilla_sim.planner.pricing.prices import NO_EXCHANGE, Pricing, StagePrice
from chinchilla_sim.planner.program import lower, passes_of
from chinchilla_sim.planner.schedules.automatic import PassSeconds, find_rows
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline


def equal_stages_plan(
    schedule: str,
    ranks: int,
    stages_per_rank: int,
    microbatches: int,
    seconds: PassSeconds,
    transfer_s: float = 0.0,
    kept: float = 1.0,
) -> Plan:
    """A plan of equal stages; automatic schedules are found for `seconds`, `transfer_s` and the share `kept` until W."""
    chosen = SCHEDULES[schedule]
    order: tuple[str, ...] = ()
    if chosen.row is None:
        rows = find_rows([seconds] * ranks, transfer_s, microbatches, ranks * (1 if schedule == "zb-1p" else 2), kept)
        order = _written(rows)
    stages = ranks * stages_per_rank
    placement = tuple((chosen.rank_of_stage(stage, ranks),) for stage in range(stages))
    return _plan(schedule, placement, microbatches, order)


def custom_plan(order: Sequence[str]) -> Plan:
    """A plan that plays rows written out: stages and microbatches are those that the rows name."""
    actions = [(rank, parse_action(word)) for rank, row in enumerate(order) for word in row.split()]
    rank_of = {action.stage: rank for rank, action in actions}
    microbatches = 1 + max((action.microbatch or 0 for _, action in actions), default=0)
    placement = tuple((rank_of.get(stage, 0),) for stage in range(1 + max(rank_of, default=0)))
    return _plan(CUSTOM, placement, microbatches, tuple(order))


def _written(rows: Sequence[Sequence[Action]]) -> tuple[str, ...]:
    return tuple(" ".join(map(str, row)) for row in rows)


def _plan(schedule: str, placement: tuple[tuple[int, ...], ...], microbatches: int, order: tuple[str, ...]) -> Plan:
    stages = len(placement)
    return Plan(
        stages=tuple((f"stage{stage}",) for stage in range(stages)),
        placement=placement,
        slots=tuple(range(1 + max(row[0] for row in placement))),
        global_batch_size=microbatches,
        microbatch_count=microbatches,
        schedule=schedule,
        gradient_codecs=("none",) * stages,
        activation_codecs=("none",) * (stages - 1),
        receives_in_flight=microbatches * stages,
        order=order,
    )


def play_equal_stages(plan: Plan, seconds: PassSeconds, transfer_s: float = 0.0) -> Timeline:
    """One step; `seconds` are of all stages of a rank together."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    slots = tuple(f"rank{rank}" for rank in range(plan.rank_count))
    for slot in slots:
        graph.add_edge(slot, "network", link=Link(transfer_s / 2, float("inf")))
        graph.add_edge("network", slot, link=Link(transfer_s / 2, float("inf")))
    cluster = Cluster(graph, slots, (Device("equal", 1.0, 1.0),) * len(slots), Backend("plain"))
    passes = {Op.F: seconds.forward_s, Op.I: seconds.input_s, Op.W: seconds.weight_s, Op.B: seconds.input_s + seconds.weight_s}
    width = plan.stages_per_rank
    price = StagePrice({op: spent / width for op, spent in passes.items()} | {Op.OPTIM: 0.0}, 0.0, {}, 1.0, 1.0)
    none = (0.0,) * (plan.stage_count - 1)
    pricing = Pricing(((price,),) * plan.stage_count, none, none, (NO_EXCHANGE,) * plan.stage_count)
    return simulate(lower(plan), pricing, cluster)


def rows_of(plan: Plan) -> tuple[str, ...]:
    """Passes of every rank in PyTorch's notation."""
    return _written(passes_of(plan, 0))


def row_seconds(timeline: Timeline) -> list[float]:
    """Seconds from the first to the last pass of every rank."""
    found = []
    for rank in range(timeline.rank_count):
        passes = [span for span in timeline.spans_of(rank, "compute") if span.category in ("forward", "backward")]
        found.append(passes[-1].end_s - passes[0].start_s if passes else 0.0)
    return found
