"""What decides a step, and what an unseen laboratory may expect: tables and dictionaries of explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.rent import rent
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.report.table import NONE, Table, percent, signed_percent
from chinchilla_sim.report.tables.simulated import peak_of
from chinchilla_sim.report.verdict import versus
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.simulator.sensitivity import Explanation
from chinchilla_sim.units import format_bytes, format_seconds, format_usd
from chinchilla_sim.validation.left_out import LeftOut


def explanation_sentence(found: Explanation) -> str:
    """The step, what binds it, and how much memory is left."""
    share = percent(found.path_shares.get(found.binding, 0.0))
    text = f"One step takes {format_seconds(found.step_s)} (simulated). {found.binding.capitalize()} binds: {share} of the critical path, "
    text += (
        f"most of it on rank {found.binding_rank}; rank {found.busiest_rank} is the busiest ({percent(found.utilization)} of the step). "
    )
    if found.headroom_bytes < 0:
        return text + f"It does not fit: rank {found.fullest_rank} needs {format_bytes(-found.headroom_bytes)} more memory."
    return text + f"Memory does not bind: rank {found.fullest_rank}, the fullest, has {format_bytes(found.headroom_bytes)} left."


def explanation_tables(found: Explanation) -> tuple[Table, ...]:
    """The critical path by what it does, and the step with each input changed."""
    path = [(what, format_seconds(share * found.step_s), percent(share)) for what, share in found.path_shares.items()]
    moved = [one for one in found.sensitivities if one.change]
    still = [one.what for one in found.sensitivities if not one.change]
    rows = [(one.what, format_seconds(one.step_s), signed_percent(one.change)) for one in moved]
    note = f"no effect: {', '.join(still)}" if still else ""
    return (
        Table("Critical path of the step", ("what", "time", "share"), tuple(path), text_columns=(0,)),
        Table("If an input were different", ("what", "step time", "change"), tuple(rows), text_columns=(0,), note=note),
    )


def explanation_dict(found: Explanation) -> dict[str, Any]:
    """JSON-ready."""
    return {"binding": found.binding} | asdict(found)


def left_out_table(results: Sequence[LeftOut]) -> Table:
    """Errors of sources that constants and intervals have not seen."""
    rows: list[tuple[str, ...]] = []
    for one in results:
        constants = one.constants
        figures = percent(one.shipped_error), percent(one.refitted_error), signed_percent(one.bias), percent(one.inside), percent(one.width)
        shares = (f"{constants.sustained_share:.2f}", f"{constants.streaming_share:.2f}", f"{constants.link_efficiency:.2f}")
        rows.append((one.source, str(one.rows), *figures, *shares, format_seconds(constants.host_launch_s)))
    if results:
        means = [float(np.mean([getattr(one, name) for one in results])) for name in ("shipped_error", "refitted_error", "inside", "width")]
        total = str(sum(one.rows for one in results))
        rows.append(("all sources, weighted equally", total, percent(means[0]), percent(means[1]), "", *map(percent, means[2:]), *[""] * 4))
    errors = "source", "rows", "shipped", "refitted without it", "bias", "inside p5 to p95", "half width"
    headers = (*errors, "speed of products", "of other kernels", "of links", "host launch")
    return Table("Each source with constants and intervals of all others", headers, tuple(rows), text_columns=(0,))


def left_out_dict(results: Sequence[LeftOut]) -> dict[str, Any]:
    """JSON-ready."""
    return {"sources": [asdict(one) for one in results]}


def instead_table(chosen: Candidate, other: Candidate, cluster: Cluster, scenario: Scenario) -> Table:
    """A plan beside the best one of another configuration."""
    rows = [
        _instead_row(name, candidate, chosen, instead_facts(candidate, cluster, scenario))
        for name, candidate in (("this plan", chosen), ("instead", other))
    ]
    headers = ("", "plan", "ranks", "step time", "", "computation", "exposed communication", "peak memory", "of device", "cost of a step")
    return Table("Why not another one", headers, tuple(rows), text_columns=(0, 1, 4))


def _instead_row(name: str, candidate: Candidate, chosen: Candidate, facts: dict[str, Any]) -> tuple[str, ...]:
    compared = "" if candidate is chosen else versus(candidate.step_s, chosen.step_s, "step_time")
    cost = format_usd(facts["step_usd"]) if facts["step_usd"] else NONE
    return (
        name,
        candidate.plan.describe(),
        str(len(candidate.plan.slots)),
        format_seconds(candidate.step_s),
        compared,
        format_seconds(facts["computation_s"]),
        format_seconds(facts["exposed_communication_s"]),
        format_bytes(facts["peak_memory_bytes"]),
        percent(facts["peak_memory_share"]),
        cost,
    )


def instead_facts(candidate: Candidate, cluster: Cluster, scenario: Scenario) -> dict[str, Any]:
    """Time of the busiest rank, memory of the fullest, and what a step costs."""
    timeline, plan = candidate.timeline, candidate.plan
    busiest = max(range(timeline.rank_count), key=timeline.busy_s)
    peaks = [peak_of(candidate, rank)["peak_bytes"] for rank in range(timeline.rank_count)]
    limits = [cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes for rank in range(timeline.rank_count)]
    return {
        "plan": plan.describe(),
        "step_s": candidate.step_s,
        "computation_s": timeline.busy_s(busiest),
        "exposed_communication_s": timeline.exposed_communication_s(busiest),
        "peak_memory_bytes": max(peaks),
        "peak_memory_share": max(peak / limit for peak, limit in zip(peaks, limits, strict=True)),
        "step_usd": candidate.step_s * rent(cluster, plan.slots, scenario.job, scenario.search).usd_per_work_s,
    }


def instead_dict(chosen: Candidate, other: Candidate, cluster: Cluster, scenario: Scenario) -> dict[str, Any]:
    """JSON-ready form of both."""
    return {"chosen": instead_facts(chosen, cluster, scenario), "instead": instead_facts(other, cluster, scenario)}
