"""The Pareto front of time, cost, energy and memory headroom: plans of which none is better in one of them and no worse in the others.

Per step, as everywhere: seconds, USD, modelled joule; headroom is the least share of its usable memory that any rank leaves free.
Where no node states a price, or a power, that axis is left out. Values count to nine digits, so that sums in another order make
no new points; of equal plans the chosen one stays, then the one on fewer devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.money import expense
from chinchilla_sim.cost.rent import rent
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.space.configuration import RECOMPUTE, Sharding
from chinchilla_sim.planner.space.screen import Screen
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec

SHOWN = 12
FEWER_COUNTS = 6
TRIES = 2


@dataclass(frozen=True)
class FrontPlan:
    """A plan with what it is judged by, per step; None where no node of the cluster states a price or power."""

    candidate: Candidate
    step_s: float
    step_usd: float | None
    step_joule: float | None
    headroom: float

    @property
    def values(self) -> tuple[float, ...]:
        """All axes in use, less is better, to nine digits."""
        axes = (self.step_s, self.step_usd, self.step_joule, -self.headroom)
        return tuple(float(f"{value:.8e}") for value in axes if value is not None)

    def dominates(self, other: FrontPlan) -> bool:
        """Whether it is no worse on any axis, and better on one."""
        mine, theirs = self.values, other.values
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def weigh(candidate: Candidate, cluster: Cluster, job: JobSpec, search: SearchSpec) -> FrontPlan:
    """A simulated plan on all axes."""
    slots = candidate.plan.slots
    devices = [cluster.device(slot, len(slots)) for slot in slots]
    spent = expense(candidate.step_s, devices)
    usd = candidate.step_s * rent(cluster, slots, job, search).usd_per_work_s
    every = [cluster.device(slot) for slot in range(cluster.rank_count)]
    return FrontPlan(
        candidate,
        candidate.step_s,
        usd if any(device.usd_per_s for device in every) else None,
        spent.joule if any(device.power_watt for device in every) else None,
        headroom(candidate, cluster),
    )


def headroom(candidate: Candidate, cluster: Cluster) -> float:
    """Least share of usable memory that is free at the peak, over all ranks."""
    plan = candidate.plan
    peaks: dict[int, float] = {}
    for sample in candidate.timeline.memory:
        peaks[sample.rank] = max(peaks.get(sample.rank, 0.0), sample.held_bytes)
    usable = {rank: cluster.device(plan.slots_of(rank)[0], len(plan.slots)).usable_memory_bytes for rank in peaks}
    return min((1 - peak / usable[rank] for rank, peak in peaks.items()), default=1.0)


def front_of(
    candidates: Sequence[Candidate], cluster: Cluster, job: JobSpec, search: SearchSpec, chosen: Candidate | None = None
) -> tuple[FrontPlan, ...]:
    """The plans that no other one dominates, fastest first; one of several that are equal on all axes."""
    points = [weigh(candidate, cluster, job, search) for candidate in candidates]
    points.sort(key=lambda point: (point.values, point.candidate is not chosen, *_key(point)))
    members: list[FrontPlan] = []
    for point in points:
        # Whatever dominates a point, or equals it, comes before it in this order.
        if not any(member.values == point.values or member.dominates(point) for member in members):
            members.append(point)
    return tuple(members)


def spread(front: Sequence[FrontPlan], chosen: Candidate | None = None, most: int = SHOWN) -> tuple[FrontPlan, ...]:
    """At most so many members, in order: the best of each axis, the chosen one, then always the one farthest from those taken."""
    if len(front) <= most:
        return tuple(front)
    places = _places(front)
    ends = [min(range(len(front)), key=lambda row: (front[row].values[axis], row)) for axis in range(len(front[0].values))]
    taken = list(dict.fromkeys([*(row for row, point in enumerate(front) if chosen and point.candidate is chosen), *ends]))[:most]
    distance = np.min(np.linalg.norm(places[:, None] - places[taken][None], axis=2), axis=1)
    while len(taken) < most:
        row = int(np.argmax(distance))
        taken.append(row)
        distance = np.minimum(distance, np.linalg.norm(places - places[row], axis=1))
    return tuple(front[row] for row in sorted(taken))


def rows_on_fewer_devices(screened: Screen, simulated: frozenset[int]) -> Iterator[list[int]]:
    """Rows to try for some device counts that no simulated plan has: halves of the largest, and the least.

    The likeliest one, then the likeliest of those that save most memory.
    """
    counts = screened.device_counts()
    known = sorted(set(counts.tolist()))
    if not known:
        return
    halves = [known[-1] >> power for power in range(FEWER_COUNTS)]
    wanted = [max((count for count in known if count <= half), default=known[0]) for half in halves]
    for count in dict.fromkeys([*wanted[: FEWER_COUNTS - 1], known[0]]):
        if count not in simulated:
            rows = np.flatnonzero(counts == count)
            rows = rows[np.argsort(screened.estimate_s[rows], kind="stable")]
            saved = [_saving(screened.shardings[number]) for number in screened.sharding[rows].tolist()]
            lean = [row for row, saving in zip(rows.tolist(), saved, strict=True) if saving == max(saved)]
            yield list(dict.fromkeys([*rows[:1].tolist(), *lean]))[:TRIES]


def _saving(sharding: Sharding) -> tuple[int, int]:
    return RECOMPUTE.index(sharding.recompute), sharding.zero_stage


def _places(front: Sequence[FrontPlan]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Members as points of a unit cube: logarithms of amounts, headroom as it is."""
    rows = [[log(value) if value > 0 else value for value in point.values] for point in front]
    places = np.array(rows, dtype=np.float64)
    widths = np.ptp(places, axis=0)
    scaled: np.ndarray[tuple[int, int], np.dtype[np.float64]] = (places - places.min(axis=0)) / np.where(widths > 0, widths, 1.0)
    return scaled


def _key(point: FrontPlan) -> tuple[int, str]:
    return len(point.candidate.plan.slots), point.candidate.title
