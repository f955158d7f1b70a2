"""What a simulated plan breaks, and which limits it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.selection.feasibility import breaches_of, missing_memory
from chinchilla_sim.planner.selection.limits import limits_of, use_words
from chinchilla_sim.scenario.schema import Scenario


def remarks(candidate: Candidate, cluster: Cluster, scenario: Scenario) -> Iterator[str]:
    """A sentence for everything that the plan breaks, and one for every limit of the scenario that it keeps."""
    yield from (f"is not feasible: {breach}" for breach in breaches_of(candidate, cluster, scenario))
    uses = limits_of(scenario.job, scenario.search, cluster).uses(candidate.plan.slots, candidate.step_s)
    yield from (use_words(use) for use in uses if use.holds)


def remarks_dict(candidate: Candidate, cluster: Cluster, scenario: Scenario) -> dict[str, Any]:
    """JSON-ready: whether the plan is feasible and fits into memory, all that it breaks, and what it takes of every limit."""
    found = breaches_of(candidate, cluster, scenario)
    uses = limits_of(scenario.job, scenario.search, cluster).uses(candidate.plan.slots, candidate.step_s)
    limits = [{"key": use.limit.key, "most": use.limit.most, "value": use.value, "holds": use.holds} for use in uses]
    told = {"status": "infeasible" if found else "feasible", "breaches": [asdict(breach) for breach in found]}
    return told | {"fits": missing_memory(candidate, cluster) is None} | ({"limits": limits} if limits else {})
