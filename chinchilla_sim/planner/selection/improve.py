"""Local search around a plan: small changes where its step loses time, judged by the simulator.

A change moves a cut by one place, takes another codec for one boundary or one stage's gradients, recomputes more or less in one
stage, exchanges in other buckets, by another algorithm or ring, or swaps two neighbours of the pipeline. Codecs come in the order of the
time that ranks wait for data, since only what is exposed can be won back. The first change that helps is taken, until none does or
the budget is spent. The budget counts prices of stages and spans of simulated steps, so that the same plan is improved alike on any
machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.codec import GRADIENTS_ONLY
from chinchilla_sim.cost.rounds import can_do
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Exchange
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.space.configuration import RECOMPUTE, microbatch_counts
from chinchilla_sim.scenario.search import SearchSpec

T = TypeVar("T")

Evaluate = Callable[[Plan, float], Candidate | None]
"""The simulated plan if it fits and its bound is below a limit, else None."""

BUDGET = 60_000
"""Spans of all steps that are simulated for the plans of one search; a plan that is only priced counts as its stages times PRICE."""

PRICE = 20


@dataclass(slots=True)
class Budget:
    """What is left to spend."""

    left: int = BUDGET


LEAST_GAIN = 1e-6
ALGORITHMS = ("ring", "halving-doubling", "tree")
MOST_SWAPS = 16


def improve(
    start: Candidate,
    search: SearchSpec,
    cluster: Cluster,
    can_end: dict[str, bool],
    evaluate: Evaluate,
    budget: Budget,
    cut_off: Callable[[], bool],
) -> Candidate:
    """The best plan reached from `start`; `can_end` says behind which tasks a stage may end."""
    best, tried = start, {start.plan}
    found = True
    while found:
        found = False
        for plan in _changes(best, search, cluster, can_end):
            if budget.left <= 0 or cut_off():
                return best
            if plan in tried:
                continue
            tried.add(plan)
            candidate = evaluate(plan, best.objective)
            budget.left -= PRICE * plan.stage_count + (len(candidate.timeline.spans) if candidate else 0)
            if candidate and candidate.objective < best.objective * (1 - LEAST_GAIN):
                best, found = candidate, True
                break
    return best


def _changes(candidate: Candidate, search: SearchSpec, cluster: Cluster, can_end: dict[str, bool]) -> Iterator[Plan]:
    """Neighbours of a plan, the most likely to help first."""
    plan = candidate.plan
    if plan.order:
        return  # its rows were drawn for these seconds
    yield from _other_codecs(candidate, search)
    yield from _moved_cuts(candidate, can_end)
    yield from _other_recompute(plan, search)
    yield from _other_exchange(candidate, search, cluster)
    if plan.free_replicas:
        return  # its stages were counted for these devices and microbatches
    yield from _other_counts(plan, search)
    yield from _swapped(plan)


def _waiting_s(candidate: Candidate, stage: int) -> float:
    """Seconds that the ranks of a stage wait for data on the wire."""
    return max(candidate.timeline.exposed_communication_s(rank) for rank in candidate.plan.placement[stage][:1])


def _other_codecs(candidate: Candidate, search: SearchSpec) -> Iterator[Plan]:
    plan = candidate.plan
    boundaries = [boundary for boundary in range(plan.stage_count - 1) if plan.crosses(boundary)]
    boundaries.sort(key=lambda boundary: (-max(_waiting_s(candidate, boundary), _waiting_s(candidate, boundary + 1)), boundary))
    for boundary in boundaries:
        for codec in search.activation_codecs:
            if codec != plan.activation_codecs[boundary]:
                yield replace(plan, activation_codecs=_with(plan.activation_codecs, boundary, codec))
    if not plan.training or plan.exchange_degree == 1:
        return
    for stage in sorted(range(plan.stage_count), key=lambda stage: (-_waiting_s(candidate, stage), stage)):
        for other in search.gradient_codecs:
            if other != plan.gradient_codecs[stage] and not (plan.zero_stage == 3 and other in GRADIENTS_ONLY):
                # Another codec may travel by another collective, of which not every algorithm is capable.
                yield replace(plan, gradient_codecs=_with(plan.gradient_codecs, stage, other), collective_algorithm="auto")


def _moved_cuts(candidate: Candidate, can_end: dict[str, bool]) -> Iterator[Plan]:
    """Every cut one allowed place down and up, those around the busiest stage first."""
    plan, stages = candidate.plan, candidate.plan.stages
    busy_s = [row[0].action_s[Op.F] + row[0].action_s[Op.B] * plan.training for row in candidate.pricing.stages]
    for upper in sorted(range(1, len(stages)), key=lambda upper: (-max(busy_s[upper - 1], busy_s[upper]), upper)):
        both = (*stages[upper - 1], *stages[upper])
        ends = [index for index, name in enumerate(both[:-1], start=1) if can_end[name]]
        here = len(stages[upper - 1])
        near = [max((end for end in ends if end < here), default=None), min((end for end in ends if end > here), default=None)]
        for end in near if busy_s[upper - 1] >= busy_s[upper] else reversed(near):
            if end is not None:
                yield replace(plan, stages=(*stages[: upper - 1], both[:end], both[end:], *stages[upper + 1 :]))


def _other_recompute(plan: Plan, search: SearchSpec) -> Iterator[Plan]:
    """Less in one stage first: it saves time where memory allows."""
    if not plan.training:
        return
    kinds = tuple(plan.recompute_of(stage) for stage in range(plan.stage_count))
    for stage in range(plan.stage_count):
        for kind in RECOMPUTE:
            if kind in search.recompute and kind != kinds[stage]:
                changed = _with(kinds, stage, kind)
                yield replace(plan, recompute=() if set(changed) == {"none"} else changed)


def _other_exchange(candidate: Candidate, search: SearchSpec, cluster: Cluster) -> Iterator[Plan]:
    """Other buckets; and another algorithm and ring where the backend leaves the choice and no table says what it does."""
    plan = candidate.plan
    if not plan.training or plan.exchange_degree == 1:
        return
    for buckets in search.gradient_buckets:
        if buckets != plan.gradient_buckets:
            yield replace(plan, gradient_buckets=buckets)
    for priority in (None, *search.activation_priorities) if plan.pipeline_parallel_degree > 1 else ():
        if priority != plan.activation_priority:
            yield replace(plan, activation_priority=priority)
    exchanges = [one for one in (*candidate.pricing.gradients, *candidate.pricing.weights) if one.payload_bytes]
    if search.executable or plan.exchange_degree < 3 or any(one.table for one in exchanges):
        return
    for algorithm in ("auto", *_algorithms(exchanges, cluster)):
        if algorithm != plan.collective_algorithm:
            yield replace(plan, collective_algorithm=algorithm)
    yield replace(plan, ring_order="placed" if plan.ring_order == "near" else "near")


def _algorithms(exchanges: Sequence[Exchange], cluster: Cluster) -> Iterator[str]:
    """Algorithms that can do all exchanges of a plan; hierarchical ones need nodes with as many members each."""
    sizes = [len(one.orders[0]) for one in exchanges]
    for algorithm in ALGORITHMS:
        if all(can_do(one.kind, algorithm, size) for one, size in zip(exchanges, sizes, strict=True)):
            yield algorithm
    nodes = [Counter(cluster.node_of(slot) for slot in one.orders[0]) for one in exchanges]
    if all(one.kind == "all_reduce" for one in exchanges) and all(len(set(row.values())) == 1 < len(row) for row in nodes):
        yield "hierarchical"


def _other_counts(plan: Plan, search: SearchSpec) -> Iterator[Plan]:
    """The next larger and smaller number of microbatches that the search allows."""
    if plan.replica_microbatch_counts:
        return
    for lower, upper in pairwise(microbatch_counts(search, plan.global_batch_size // plan.data_parallel_degree)):
        other = {lower: upper, upper: lower}.get(plan.microbatch_count)
        if other and _can_have(plan, other, search):
            yield replace(plan, microbatch_count=other)


def _can_have(plan: Plan, count: int, search: SearchSpec) -> bool:
    """Whether the plan's schedule may be played with so many microbatches: as in `Space.schedules`, one needs only a plain schedule."""
    ranks, name = plan.pipeline_parallel_degree, plan.schedule
    if ranks == 1 or not plan.training:
        return True
    allowed = name in ("gpipe", "1f1b") if count == 1 else name in search.schedules
    return allowed and SCHEDULES[name].refuses(ranks, plan.stages_per_rank, count) is None


def _swapped(plan: Plan) -> Iterator[Plan]:
    """Two neighbours of the pipeline in each other's place, in all replicas."""
    line = [plan.pipeline(replica) for replica in range(plan.data_parallel_degree)]
    if any(len(ranks) != len(line[0]) for ranks in line):
        return
    for position in range(min(len(line[0]) - 1, MOST_SWAPS)):
        slots = list(plan.slots)
        for ranks in line:
            here, there = (slice(rank * plan.group_width, (rank + 1) * plan.group_width) for rank in ranks[position : position + 2])
            slots[here], slots[there] = slots[there], slots[here]
        yield replace(plan, slots=tuple(slots))


def _with(row: Sequence[T], index: int, value: T) -> tuple[T, ...]:
    """A row with another value at one place."""
    return (*row[:index], value, *row[index + 1 :])
