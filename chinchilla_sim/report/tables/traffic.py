"""Tables of who talks to whom: messages and exchanges by kind and stage, and the links that they fill."""

from __future__ import annotations

from typing import Any

from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.pricing.traffic import ACTIVATION_GRADIENTS, ACTIVATIONS, GRADIENTS, INSIDE, NORM, SHARED, WEIGHTS, Flow
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import Table, percent, shorten
from chinchilla_sim.units import format_bandwidth, format_bytes, format_seconds

MOST_LINKS = 10
MOST_TALKS = 12
DIGITS = 3
ORDER = (ACTIVATIONS, ACTIVATION_GRADIENTS, GRADIENTS, WEIGHTS, SHARED, NORM, *INSIDE.values())
NOTE = "payload bytes per step, without the protocol's headers; collectives timed by a table are counted as rings"


def traffic_table(study: Study) -> Table | None:
    """Bytes of a step by what they are and between which stages, and the share that leaves its node."""
    groups: dict[tuple[str, int, int], list[Flow]] = {}
    for flow in study.traffic.flows:
        groups.setdefault((flow.what, flow.stage, flow.target_stage), []).append(flow)
    if not groups:
        return None
    # Stages in a row that talk alike share a row of the table.
    rows: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for (what, stage, target), flows in sorted(groups.items(), key=lambda group: (ORDER.index(group[0][0]), *group[0][1:])):
        pairs = {(flow.source, flow.target) for flow in flows}
        kind = (what, target - stage, len(pairs), _rounded(sum(flow.bytes for flow in flows)), _rounded(_leaving(flows, study.cluster)))
        rows.setdefault(kind if len(groups) > MOST_TALKS else (*kind, stage), []).append((stage, target))
    cells = []
    for (what, _, pairs, size, leaving, *_), ends in rows.items():
        sources = shorten([str(stage) for stage, _ in ends])
        targets = shorten([str(target) for _, target in ends]) if ends[0][0] != ends[0][1] else _inner_words(what)
        amounts = [format_bytes(size / pairs), format_bytes(size * len(ends)), percent(leaving / size)]
        cells.append((what, sources, targets, str(pairs * len(ends)), *amounts))
    headers = ("what", "from stage", "to stage", "pairs of devices", "each", "all", "between nodes")
    return Table("Who sends how much to whom in a step", headers, tuple(cells), text_columns=(0, 1, 2), note=NOTE)


def _inner_words(what: str) -> str:
    """Whom the devices of a stage talk to where that is no other stage."""
    if what in INSIDE.values():
        return "its own group"
    return {SHARED: "stages that share them", NORM: "all stages"}.get(what, "its replicas")


def _leaving(flows: list[Flow], cluster: Cluster) -> float:
    return sum(flow.bytes for flow in flows if cluster.node_of(flow.source) != cluster.node_of(flow.target))


def _rounded(size: float) -> float:
    return float(f"{size:.{DIGITS - 1}e}")


def links_table(study: Study) -> Table | None:
    """The links that a step keeps busy longest; those that are equally so share a row."""
    rows: dict[tuple[float, float], list[str]] = {}
    for edge, size in sorted(study.traffic.over_links(study.cluster).items()):
        bandwidth = study.cluster.link(edge).bandwidth_bytes_per_s
        if size and bandwidth < float("inf"):
            ends = (vertex.removeprefix("network/") for vertex in edge)
            rows.setdefault((_rounded(size), bandwidth), []).append(" to ".join(ends))
    if not rows:
        return None
    step_s = study.search.best.step_s
    ordered = sorted(rows.items(), key=lambda row: (-row[0][0] / row[0][1], row[1]))[:MOST_LINKS]
    cells = []
    for (size, bandwidth), names in ordered:
        name = names[0] if len(names) == 1 else f"{names[0]} ({len(names)} links)"
        busy_s = size / bandwidth
        cells.append((name, format_bytes(size), format_bandwidth(bandwidth), format_seconds(busy_s), percent(busy_s / step_s)))
    headers = ("link, one direction", "bytes per step", "bandwidth", "time at full speed", "of the step")
    some = f"the busiest {len(ordered)} of {len(rows)} kinds; " if len(rows) > len(ordered) else ""
    return Table("Busiest links", headers, tuple(cells), note=f"{some}{NOTE}")


def traffic_dict(study: Study) -> dict[str, Any]:
    """JSON-ready: bytes per step by kind and stages, and on every link that carries any."""
    groups: dict[tuple[str, int, int], list[Flow]] = {}
    for flow in study.traffic.flows:
        groups.setdefault((flow.what, flow.stage, flow.target_stage), []).append(flow)
    talks = [
        {
            "what": what,
            "from_stage": stage,
            "to_stage": target,
            "pairs": len({(flow.source, flow.target) for flow in flows}),
            "bytes": sum(flow.bytes for flow in flows),
            "between_nodes_bytes": _leaving(flows, study.cluster),
        }
        for (what, stage, target), flows in groups.items()
    ]
    loads = sorted(study.traffic.over_links(study.cluster).items())
    return {"traffic": talks, "links": [{"from": source, "to": target, "bytes": size} for (source, target), size in loads]}
