"""What a simulated plan breaks: memory that it does not fit into, limits that it does not keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.selection.limits import limits_of, use_words
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.units import format_bytes


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


def remarks(candidate: Candidate, cluster: Cluster, scenario: Scenario) -> Iterator[str]:
    """A sentence for everything that the plan breaks, and one for the limits of the scenario that it keeps."""
    lacking = missing_memory(candidate, cluster)
    if lacking:
        rank, peak_bytes, usable_bytes = lacking
        yield f"does not fit into memory: rank {rank} needs {format_bytes(peak_bytes)} of {format_bytes(usable_bytes)} usable"
    for use in limits_of(scenario.job, scenario.search, cluster).uses(candidate.plan.slots, candidate.step_s):
        yield f"{use_words(use)}{'' if use.holds else ', which is beyond'}"


def remarks_dict(candidate: Candidate, cluster: Cluster, scenario: Scenario) -> dict[str, Any]:
    """JSON-ready: whether the plan fits, and what it takes of every limit."""
    uses = limits_of(scenario.job, scenario.search, cluster).uses(candidate.plan.slots, candidate.step_s)
    limits = [{"key": use.limit.key, "most": use.limit.most, "value": use.value, "holds": use.holds} for use in uses]
    return {"fits": missing_memory(candidate, cluster) is None} | ({"limits": limits} if limits else {})
