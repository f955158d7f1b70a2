"""Whether a plan that somebody gives does what its scenario asks for, and what would help where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.selection.limits import limits_of, shortfall_of
from chinchilla_sim.planner.selection.served_judge import overload_of, overloaded
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.units import format_bytes

ROOM = 1.01
"""What is written as enough has a hundredth more: it is shown with three digits."""


@dataclass(frozen=True, slots=True)
class Breach:
    """A constraint that a plan breaks, by how much, and what would help; the three parts of a NoFeasiblePlanError.

    >>> print(Breach("device memory", "rank 0 needs 21 GB of 16 GB", "plan again"))
    device memory: rank 0 needs 21 GB of 16 GB; plan again
    """

    constraint: str
    shortfall: str
    cure: str

    def __str__(self) -> str:
        return f"{self.constraint}: {self.shortfall}; {self.cure}"


def breaches_of(candidate: Candidate, cluster: Cluster, scenario: Scenario) -> tuple[Breach, ...]:
    """Everything that a simulated plan breaks: memory, limits of [search], requests that it does not answer in time."""
    found = []
    if lacking := missing_memory(candidate, cluster):
        found.append(_memory_breach(candidate, cluster, *lacking))
    limits = limits_of(scenario.job, scenario.search, cluster)
    uses = limits.uses(candidate.plan.slots, candidate.step_s)
    if not all(use.holds for use in uses):
        found.append(Breach(*shortfall_of(limits, [uses])))
    serving, most_s = candidate.serving, scenario.search.maximum_latency_s
    if serving and overloaded(serving, most_s):
        found.append(Breach(*overload_of(serving, most_s, "the plan")))
    return tuple(found)


def missing_memory(candidate: Candidate, cluster: Cluster) -> tuple[int, float, float] | None:
    """The rank that lacks most memory, the bytes that it holds at its peak and those that it can use; None where the plan fits."""
    plan, peaks = candidate.plan, dict[int, float]()
    for sample in candidate.timeline.memory:
        peaks[sample.rank] = max(peaks.get(sample.rank, 0.0), sample.held_bytes)
    usable = {rank: cluster.device(plan.slots_of(rank)[0], len(plan.slots)).usable_memory_bytes for rank in peaks}
    lacking = [(usable[rank] - peak, rank) for rank, peak in peaks.items() if peak > usable[rank]]
    if not lacking:
        return None
    _, rank = min(lacking)
    return rank, peaks[rank], usable[rank]


def _memory_breach(candidate: Candidate, cluster: Cluster, rank: int, peak_bytes: float, usable_bytes: float) -> Breach:
    slot = candidate.plan.slots_of(rank)[0]
    device = cluster.device(slot, len(candidate.plan.slots))
    enough = format_bytes(ROOM * (device.memory_bytes + peak_bytes - usable_bytes))
    what = f"rank {rank} needs {format_bytes(peak_bytes)} of {format_bytes(usable_bytes)} usable on {cluster.slots[slot]}"
    cure = (
        f"plan again (chinchilla plan tries more stages, ZeRO, recompute and smaller microbatches), or use devices with {enough} of memory"
    )
    return Breach("device memory", f"{what}: {format_bytes(peak_bytes - usable_bytes)} too little", cure)


def joined(breaches: Sequence[Breach]) -> tuple[str, str, str]:
    """Several breaches as one: all constraints, shortfalls and cures."""
    return (
        " and ".join(one.constraint for one in breaches),
        "; ".join(one.shortfall for one in breaches),
        "; ".join(one.cure for one in breaches),
    )
