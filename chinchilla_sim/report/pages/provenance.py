"""Where every input of a study is from: the scenario, the catalogue with its sources, or measured on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chinchilla_sim.cluster.catalogue import catalogue_digest, node_link, price_source_of, source_of
from chinchilla_sim.cluster.topology import Link
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import NOT_STATED, Table
from chinchilla_sim.scenario.cluster import THIS_MACHINE, IntraNodeSpec, LinkSpec, NetworkSpec, NodeSpec
from chinchilla_sim.units import (
    format_bandwidth,
    format_bytes,
    format_flop,
    format_flop_per_s,
    format_kg_per_joule,
    format_seconds,
    format_usd_per_s,
    format_watt,
)

SCENARIO = "the scenario states it"
_OVERRIDES = ("peak_flop_per_s", "memory_bytes", "memory_bandwidth_bytes_per_s", "overlap_slowdown")
Row = tuple[str, str, str]


def inputs_table(study: Study) -> Table:
    """Every input with its value and where it is from."""
    rows = [*_model_rows(study), *_device_rows(study), *_link_rows(study), *_grid_rows(study)]
    return Table("Inputs", ("input", "value", "where from"), tuple(rows), text_columns=(0, 1, 2))


def _model_rows(study: Study) -> Iterator[Row]:
    graph, job = study.graph, study.scenario.job
    work = f"{format_flop(graph.forward_flop)} forward, {format_flop(graph.backward_flop)} backward per batch of {graph.batch_size}"
    size = f"{len(graph.compute_tasks)} tasks, {work}, {format_bytes(graph.total_parameter_bytes)} of parameters"
    yield f"graph {graph.name}", size, graph.source or "source not stated"
    optimizer = f", {job.optimizer}" if job.kind == "training" else ""
    yield "job", f"{job.kind}, batch of {job.global_batch_size}, {job.precision}{optimizer}", SCENARIO


def _device_rows(study: Study) -> Iterator[Row]:
    """Speed, memory, price and power of every kind of device."""
    spec = study.scenario.cluster
    if spec.kind == THIS_MACHINE:
        measured = "; ".join(study.cluster.provenance)
        yield f"{study.cluster.rank_count} ranks of this machine", _device_words(study, 0), measured
        yield "price", _price_words(study, 0), SCENARIO if spec.price_usd_per_s else NOT_STATED
        yield "power", _power_words(study, 0), SCENARIO if spec.power_watt else _power_source(study, 0, None)
        return
    slot = 0
    for node in spec.nodes:
        name = f"{node.name}: {node.count} x {node.devices} x {node.device or 'device'}"
        yield name, _device_words(study, slot), _device_source(node, study)
        listed = price_source_of(node.device) if node.device and node.device != THIS_MACHINE else None
        yield f"{node.name}: price", _price_words(study, slot), SCENARIO if node.price_usd_per_s is not None else listed or NOT_STATED
        yield f"{node.name}: power", _power_words(study, slot), _power_source(study, slot, node)
        slot += node.count * node.devices


def _device_words(study: Study, slot: int) -> str:
    device = study.cluster.device(slot, len(study.plan.slots))
    speed = f"{format_flop_per_s(device.flop_per_s)} sustained at {study.scenario.job.precision}"
    memory = f"{format_bytes(device.memory_bytes)} of memory"
    wide = device.memory_bandwidth_bytes_per_s
    return f"{speed}, {memory}" + (f" at {format_bytes(wide)}/s" if wide < float("inf") else ", read in no time")


def _device_source(node: NodeSpec, study: Study) -> str:
    if node.device is None:
        return SCENARIO
    if node.device == THIS_MACHINE:
        return next((line for line in study.cluster.provenance if line.startswith("calibration")), "catalogue: not calibrated")
    stated = [name for name in _OVERRIDES if getattr(node, name, None) is not None]
    own = f"; the scenario states its own {', '.join(_plain(name) for name in stated)}" if stated else ""
    return f"catalogue, {source_of('devices', node.device)}{own}"


def _plain(name: str) -> str:
    return name.removesuffix("_bytes_per_s").removesuffix("_bytes").removesuffix("_flop_per_s").replace("_", " ")


def _price_words(study: Study, slot: int) -> str:
    usd_per_s = study.cluster.device(slot, len(study.plan.slots)).usd_per_s
    return f"{format_usd_per_s(usd_per_s)} per device" if usd_per_s else NOT_STATED


def _power_words(study: Study, slot: int) -> str:
    watt = study.cluster.device(slot, len(study.plan.slots)).power_watt
    return f"{format_watt(watt)} per device" if watt else NOT_STATED


def _power_source(study: Study, slot: int, node: NodeSpec | None) -> str:
    if node and node.power_watt is not None:
        return SCENARIO
    return "catalogue, as the device" if study.cluster.device(slot, len(study.plan.slots)).power_watt else NOT_STATED


def _link_rows(study: Study) -> Iterator[Row]:
    """What joins devices and nodes."""
    spec = study.scenario.cluster
    if spec.kind == THIS_MACHINE:
        link = study.cluster.idle_link(0, study.cluster.rank_count - 1) if study.cluster.rank_count > 1 else None
        if link:
            yield "between two ranks", _link_words(link), "; ".join(study.cluster.provenance)
        return
    if any(node.devices > 1 for node in spec.nodes):
        if spec.intra_node:
            yield "link within nodes", _stated_words(spec.intra_node), _link_source(spec.intra_node)
        else:
            for device in dict.fromkeys(node.device for node in spec.nodes if node.devices > 1 and node.device != THIS_MACHINE):
                yield f"link within nodes of {device or 'own devices'}", _link_words(node_link(device or "")), "catalogue, as the device"
    if spec.network.bandwidth_bytes_per_s or spec.network.link:
        yield f"network ({spec.network.topology})", _stated_words(spec.network), _link_source(spec.network)
    for cable in spec.links:
        yield f"link {' - '.join(cable.between)}", _stated_words(cable), _link_source(cable)
    yield f"protocol {spec.network.backend}", "headers, rendezvous, hops", f"catalogue, {source_of('backends', spec.network.backend)}"


def _link_words(link: Link) -> str:
    return f"{format_bandwidth(link.bandwidth_bytes_per_s)}, {format_seconds(link.latency_s)} one way"


def _stated_words(table: NetworkSpec | IntraNodeSpec | LinkSpec) -> str:
    stated = [format_bandwidth(table.bandwidth_bytes_per_s)] if table.bandwidth_bytes_per_s else []
    stated += [f"{format_seconds(table.latency_s)} one way"] if table.latency_s is not None else []
    return ", ".join([*([table.link] if table.link else []), *stated])


def _link_source(table: NetworkSpec | IntraNodeSpec | LinkSpec) -> str:
    if not table.link:
        return SCENARIO
    own = "; the scenario states its own figures" if table.bandwidth_bytes_per_s or table.latency_s is not None else ""
    return f"catalogue, {source_of('links', table.link)}{own}"


def _grid_rows(study: Study) -> Iterator[Row]:
    intensity = study.scenario.cluster.grid_intensity_kg_per_joule
    cure = f'{NOT_STATED}: write cluster.grid_intensity = "400 g/kWh" to be told kg of CO2'
    yield (
        "CO2 of the grid",
        format_kg_per_joule(intensity) if intensity is not None else NOT_STATED,
        SCENARIO if intensity is not None else cure,
    )


def assumptions(study: Study) -> list[str]:
    """What is assumed beside the inputs: remarks on graph and setting, and how money and energy are counted."""
    told = ["energy is an upper bound: every rank in use draws its full power for the whole step"]
    told += ["a step is simulated without disturbances: no jitter, no failures, nobody else on the links"]
    told += list(dict.fromkeys([*study.notes, *study.graph.notes]))
    return told


def digests(study: Study) -> dict[str, str]:
    """SHA-256 of what the figures follow from."""
    return {"graph": study.graph.digest, "cluster": study.cluster.digest, "catalogue": catalogue_digest()}


def provenance_dict(study: Study) -> dict[str, Any]:
    """JSON-ready inputs, sources, assumptions, defaults and digests."""
    rows = [dict(zip(("input", "value", "from"), row, strict=True)) for row in inputs_table(study).rows]
    told = {"inputs": rows, "sources": list(study.cluster.provenance), "assumptions": assumptions(study)}
    return {"provenance": told | {"defaults": study.scenario.defaults(), "sha256": digests(study)}}
