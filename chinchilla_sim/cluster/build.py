"""From a scenario's `[cluster]` to a Cluster: names are looked up here, links become edges of the graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import networkx as nx

from chinchilla_sim.cluster.calibration import Calibration, core_count
from chinchilla_sim.cluster.catalogue import CPU_CORE, find_backend, find_device, find_link, node_collectives, node_link, source_of
from chinchilla_sim.cluster.curves import CollectiveTables
from chinchilla_sim.cluster.topology import Cluster, Device, Link, check_connected
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.scenario.schema import ClusterSpec, IntraNodeSpec, NetworkSpec, NodeSpec

THIS_MACHINE = "this-machine"
SWITCH = "network/switch"


def build_cluster(spec: ClusterSpec, precision: str, calibration: Calibration | None = None) -> Cluster:
    """The cluster of a scenario at one precision; `calibration` replaces the catalogue's figures on this machine."""
    if spec.kind == THIS_MACHINE:
        return _this_machine(spec, precision, calibration)
    return _nodes(spec, precision)


def this_machine_ranks(spec: ClusterSpec) -> int:
    """Ranks of `kind = "this-machine"`: as named, else one per core."""
    return spec.ranks or core_count()


def _this_machine(spec: ClusterSpec, precision: str, calibration: Calibration | None) -> Cluster:
    rank_count = this_machine_ranks(spec)
    share = {"power_watt": (spec.power_watt or 0.0) / rank_count, "usd_per_s": (spec.price_usd_per_s or 0.0) / rank_count}
    graph: nx.DiGraph[str] = nx.DiGraph()
    slots = tuple(f"{THIS_MACHINE}/{index}" for index in range(rank_count))
    if calibration is None:
        core = find_device(CPU_CORE, precision, "cluster")
        link = find_link("loopback")
        provenance: tuple[str, ...] = (
            source_of("devices", CPU_CORE),
            source_of("links", "loopback"),
            "not calibrated: run `chinchilla calibrate`",
        )
        crowded: dict[int, Device] = {}
    else:
        crowded = {count: _with_expense(device, share) for count, device in calibration.devices.items()}
        core = crowded[min(crowded)]
        link = Link(calibration.transfer_latency_s, calibration.transfer_bandwidth_bytes_per_s)
        provenance = (f"calibration of {calibration.date}: {calibration.key.cpu}, torch {calibration.key.torch}",)
    devices = tuple(_with_expense(core, share) for _ in slots)
    for slot in slots:
        _cable(graph, slot, THIS_MACHINE, Link(link.latency_s / 2, link.bandwidth_bytes_per_s))
    # The measured link contains gloo's headers and hops already; the rendezvous stays.
    backend = replace(find_backend("gloo"), header_factor=1.0, collective_hop_s=0.0)
    return Cluster(
        graph, slots, devices, backend, provenance, crowded,
        node_collectives={THIS_MACHINE: calibration.collective_s} if calibration else {},
        grid_kg_per_joule=spec.grid_intensity_kg_per_joule,
    )  # fmt: skip


def _with_expense(device: Device, share: dict[str, float]) -> Device:
    return replace(device, power_watt=share["power_watt"] or device.power_watt, usd_per_s=share["usd_per_s"] or device.usd_per_s)


def _nodes(spec: ClusterSpec, precision: str) -> Cluster:
    graph: nx.DiGraph[str] = nx.DiGraph()
    mistakes: list[Mistake] = []
    slots: list[str] = []
    devices: list[Device] = []
    for index, node in enumerate(spec.nodes):
        try:
            device = _device(node, precision, f"cluster.nodes.{index}")
        except ScenarioError as error:
            mistakes += error.mistakes
            continue
        for name in node.names():
            graph.add_node(name)
            node_slots = [f"{name}/{number}" for number in range(node.devices)]
            slots += node_slots
            devices += [device] * node.devices
            _cable_devices(graph, name, node_slots, spec.intra_node, node.device or "")
    if mistakes:
        raise ScenarioError(mistakes)
    _cable_network(graph, spec.network, spec.node_names())
    for cable in spec.links:
        _cable(graph, *cable.between, Link(cable.latency_s, cable.bandwidth_bytes_per_s))
    check_connected(graph, slots)
    provenance = [source_of("devices", name) for name in dict.fromkeys(node.device for node in spec.nodes) if name]
    provenance += [f"{node.name}: as the scenario states" for node in spec.nodes if not node.device]
    provenance.append(source_of("backends", spec.network.backend))
    measured = {} if spec.intra_node else _measured_collectives(spec)
    provenance += [source_of("collectives", name) for name in dict.fromkeys(name for name, _ in measured.values())]
    return Cluster(
        graph, tuple(slots), tuple(devices), find_backend(spec.network.backend), tuple(provenance),
        node_collectives={node: tables for node, (_, tables) in measured.items()},
        grid_kg_per_joule=spec.grid_intensity_kg_per_joule, activation_priority=spec.network.activation_priority,
        gradient_priority=spec.network.gradient_priority,
    )  # fmt: skip


def _measured_collectives(spec: ClusterSpec) -> dict[str, tuple[str, CollectiveTables]]:
    """Tables of every node whose devices and their link are the catalogue's, with the name of their source."""
    found = {node.device: node_collectives(node.device, spec.network.backend) for node in spec.nodes if node.device and node.devices > 1}
    return {name: entry for node in spec.nodes if node.device in found and (entry := found[node.device]) for name in node.names()}


def _device(node: NodeSpec, precision: str, where: str) -> Device:
    usd_per_s = (node.price_usd_per_s or 0.0) / node.devices
    if node.device is None:
        assert node.peak_flop_per_s is not None and node.memory_bytes is not None
        bandwidth = node.memory_bandwidth_bytes_per_s or float("inf")
        return Device(
            name=node.name,
            flop_per_s=node.peak_flop_per_s,
            memory_bytes=node.memory_bytes,
            memory_bandwidth_bytes_per_s=bandwidth,
            optimizer_bandwidth_bytes_per_s=bandwidth,
            elementwise_bandwidth_bytes_per_s=bandwidth,
            power_watt=node.power_watt or 0.0,
            usd_per_s=usd_per_s,
            overlap_slowdown=node.overlap_slowdown or 0.0,
            communication_s_per_byte=node.communication_s_per_megabyte / 1e6,
        )
    device = find_device(node.device, precision, f"{where}.device")
    return replace(
        device,
        # Figures of the user's own take the place of the measured curve.
        products=None if node.peak_flop_per_s or node.memory_bandwidth_bytes_per_s else device.products,
        flop_per_s=node.peak_flop_per_s or device.flop_per_s,
        memory_bytes=node.memory_bytes or device.memory_bytes,
        memory_bandwidth_bytes_per_s=node.memory_bandwidth_bytes_per_s or device.memory_bandwidth_bytes_per_s,
        power_watt=device.power_watt if node.power_watt is None else node.power_watt,
        usd_per_s=usd_per_s,
        communication_s_per_byte=node.communication_s_per_megabyte / 1e6,
        overlap_slowdown=device.overlap_slowdown if node.overlap_slowdown is None else node.overlap_slowdown,
    )


def _cable_devices(graph: nx.DiGraph[str], node: str, slots: Iterable[str], intra_node: IntraNodeSpec | None, device: str) -> None:
    """Join the devices of a node; one device alone sits directly at the node's network interface."""
    slots = list(slots)
    link = Link(intra_node.latency_s, intra_node.bandwidth_bytes_per_s) if intra_node else node_link(device)
    if len(slots) == 1:
        link = Link(0.0, float("inf"))
    for slot in slots:
        _cable(graph, slot, node, Link(link.latency_s / 2, link.bandwidth_bytes_per_s))


def _cable_network(graph: nx.DiGraph[str], network: NetworkSpec, names: tuple[str, ...]) -> None:
    if network.bandwidth_bytes_per_s is None or network.latency_s is None or len(names) < 2:
        return
    whole, half_duplex = Link(network.latency_s, network.bandwidth_bytes_per_s), network.duplex == "half"
    hop = Link(whole.latency_s / 2, whole.bandwidth_bytes_per_s)
    if network.topology == "switch":
        for name in names:
            _cable(graph, name, SWITCH, hop, half_duplex)
    elif network.topology == "bus":
        for name in names:
            _cable(graph, name, SWITCH, replace(hop, medium=SWITCH))
    elif network.topology == "tree":
        uplink = replace(hop, bandwidth_bytes_per_s=hop.bandwidth_bytes_per_s * network.rack_size / network.oversubscription)
        for index, name in enumerate(names):
            rack = f"network/rack-{index // network.rack_size}"
            _cable(graph, name, rack, hop, half_duplex)
            if not graph.has_edge(rack, SWITCH):
                _cable(graph, rack, SWITCH, uplink, half_duplex)
    elif network.topology == "ring":
        for name, neighbour in zip(names, (*names[1:], names[0]), strict=True):
            _cable(graph, name, neighbour, whole, half_duplex)
    elif network.topology == "full-mesh":
        for name, other in combinations(names, 2):
            _cable(graph, name, other, whole, half_duplex)


def _cable(graph: nx.DiGraph[str], one: str, other: str, link: Link, half_duplex: bool = False) -> None:
    """A cable: one edge in each direction, which share its bandwidth where it is half duplex."""
    if half_duplex:
        link = replace(link, medium=f"{one} - {other}")
    graph.add_edge(one, other, link=link)
    graph.add_edge(other, one, link=link)
