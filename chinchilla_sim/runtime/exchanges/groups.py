"""Process groups of a plan: who exchanges what with whom.

A process is one device slot: the lane-th of those that its rank of the plan stands for (one, unless several work in lockstep).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from chinchilla_sim.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a process sits in its plan: rank, lane within the rank, the rank's stages and its place in their rows of replicas."""

    process: int
    rank: int
    lane: int
    stages: tuple[int, ...]
    replica: int


def seat_of(plan: Plan, process: int) -> Seat:
    """The seat of a process of the run."""
    rank, lane = divmod(process, plan.group_width)
    return Seat(process, rank, lane, *plan.position[rank])


def process_of(plan: Plan, rank: int, lane: int) -> int:
    """Inverse of `seat_of`."""
    return rank * plan.group_width + lane


@dataclass(slots=True)
class Groups:
    """Process groups: by their ranks in this process's lane, that of a rank's lanes, of a norm, and one for each direction of messages.

    None stands for the default group of all processes.
    """

    forward: Any = None
    backward: Any = None
    among: dict[tuple[int, ...], Any] = field(default_factory=dict)
    lanes: Any = None
    norm: Any = None


def make_groups(plan: Plan, seat: Seat, ordered_messages: bool) -> Groups:
    """All groups of the plan; every process calls this at the same time.

    With `ordered_messages` (NCCL) a pair's messages run in order on one communicator: each direction gets its own.
    """
    groups = Groups()
    if ordered_messages:
        everyone = list(range(len(plan.slots)))
        groups.forward, groups.backward = dist.new_group(everyone), dist.new_group(everyone)
    for ranks in _exchanging(plan):
        for lane in range(plan.group_width):
            members = [process_of(plan, rank, lane) for rank in ranks]
            group = dist.new_group(members)
            if lane == seat.lane:
                groups.among[ranks] = group
    if plan.group_width > 1:
        for rank in range(plan.rank_count):
            group = dist.new_group([process_of(plan, rank, lane) for lane in range(plan.group_width)])
            if rank == seat.rank:
                groups.lanes = group
    for ranks in _of_norms(plan):
        group = dist.new_group([process_of(plan, rank, lane) for rank in ranks for lane in range(plan.group_width)])
        if seat.rank in ranks:
            groups.norm = group
    return groups


def _of_norms(plan: Plan) -> Sequence[tuple[int, ...]]:
    """Ranks that hold all gradients together, where these are clipped: all their lanes add up the norm."""
    if not (plan.training and plan.clips_gradients):
        return []
    rows = dict.fromkeys(plan.norm_ranks(replica) for replica in range(plan.data_parallel_degree))
    return [ranks for ranks in rows if len(ranks) * plan.group_width > 1]


def _exchanging(plan: Plan) -> Sequence[tuple[int, ...]]:
    """Ranks that exchange gradients: replicas of a stage, and stages that share weights."""
    rows = [tuple(row) for row in plan.placement if len(row) > 1]
    rows += [
        ranks
        for number in range(len(plan.shared_stages))
        for replica in range(plan.data_parallel_degree)
        if len(ranks := plan.sharing_ranks(number, replica)) > 1
    ]
    return list(dict.fromkeys(rows)) if plan.training else []
