"""From a scenario's `[cluster]` to a Cluster: names are looked up here, links become edges of the graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import networkx as nx

from chinchilla_sim.cluster.calibration import Calibration, EmulatedLinks, core_count
from chinchilla_sim.cluster.catalogue import (
    CPU_CORE,
    find_backend,
    find_device,
    find_link,
    node_collectives,
    node_link,
    price_source_of,
    source_of,
)
from chinchilla_sim.cluster.curves import CollectiveTables
from chinchilla_sim.cluster.hosts import Host
from chinchilla_sim.cluster.topology import Cluster, Device, Link, Quota, SpotOffer, check_connected
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.scenario.cluster import THIS_MACHINE, ClusterSpec, IntraNodeSpec, LinkSpec, NetworkSpec, NodeSpec

SWITCH = "network/switch"


def build_cluster(spec: ClusterSpec, precision: str, calibration: Calibration | None = None) -> Cluster:
    """The cluster of a scenario at one precision; `calibration` replaces the catalogue's figures on this machine."""
    if spec.kind == THIS_MACHINE:
        return _this_machine(spec, precision, calibration)
    return _nodes(spec, precision, calibration)


def this_machine_ranks(spec: ClusterSpec) -> int:
    """How many ranks are busy on this machine when a cluster is: as named for `kind = "this-machine"`, else one per core.

    Of nodes that are emulated here, as many as their shares of cores add up to (rounded up), at most one per core, because the
    simulator shares out the cores among more (`Cluster.hosts`); of machines like this one as many as one has; 0 where there are none.
    """
    if spec.kind == THIS_MACHINE:
        return spec.ranks or core_count()
    return min(core_count(), _busy_ranks(spec))


def _busy_ranks(spec: ClusterSpec) -> int:
    """Ranks that listed nodes keep busy on one machine like this."""
    if spec.elsewhere:
        return max((node.devices for node in spec.nodes if node.device == THIS_MACHINE), default=0)
    return math.ceil(emulated_cores(spec) - 1e-9)


def slot_nodes(spec: ClusterSpec) -> tuple[str, ...]:
    """Name of the node of every device slot."""
    if spec.kind == THIS_MACHINE:
        return (THIS_MACHINE,) * this_machine_ranks(spec)
    return tuple(name for node in spec.nodes for name in node.names() for _ in range(node.devices))


def emulated_cores(spec: ClusterSpec) -> float:
    """Cores of this machine that its emulated nodes take together."""
    return 0.0 if spec.elsewhere else sum(node.count * node.devices * node.cpu_share for node in spec.nodes if node.device == THIS_MACHINE)


def emulated_core_of(spec: ClusterSpec, cores: int) -> dict[int, int]:
    """Which of this machine's cores each device of an emulated node runs on, by slot: the largest shares first, on what is left."""
    shares = [(node.device, node.cpu_share) for node in spec.nodes for _ in range(node.count * node.devices)]
    here = [slot for slot, (device, _) in enumerate(shares) if device == THIS_MACHINE]
    taken = [0.0] * cores
    placed = {}
    for slot in sorted(here, key=lambda slot: (-shares[slot][1], slot)):
        core = taken.index(min(taken))
        placed[slot] = core
        taken[core] += shares[slot][1]
    return dict(sorted(placed.items()))


def emulated(spec: ClusterSpec) -> bool:
    """Whether the cluster is one of nodes that this machine emulates, all of them."""
    return bool(spec.nodes) and not spec.elsewhere and all(node.device == THIS_MACHINE for node in spec.nodes)


def _this_machine(spec: ClusterSpec, precision: str, calibration: Calibration | None) -> Cluster:
    rank_count = this_machine_ranks(spec)
    share = {"power_watt": (spec.power_watt or 0.0) / rank_count, "usd_per_s": (spec.price_usd_per_s or 0.0) / rank_count}
    graph: nx.DiGraph[str] = nx.DiGraph()
    slots = tuple(f"{THIS_MACHINE}/{index}" for index in range(rank_count))
    if calibration is None:
        core = find_device(CPU_CORE, precision, "cluster")
        link = find_link("loopback")
        crowded: dict[int, Device] = {}
    else:
        # What is measured with more ranks than cores depends on who else runs meanwhile: the simulator shares out the cores instead.
        measured = {count: device for count, device in calibration.devices.items() if count <= calibration.key.cores} or calibration.devices
        crowded = {count: _with_expense(device, share) for count, device in measured.items()}
        core = crowded[min(crowded)]
        link = Link(calibration.transfer_latency_s, calibration.transfer_bandwidth_bytes_per_s)
    cores = calibration.key.cores if calibration else core_count()
    provenance = tuple(_core_provenance(calibration))
    devices = tuple(_with_expense(core, share) for _ in slots)
    for slot in slots:
        _cable(graph, slot, THIS_MACHINE, Link(link.latency_s / 2, link.bandwidth_bytes_per_s))
    # The measured link contains gloo's headers and hops already; the rendezvous stays.
    backend = replace(find_backend("gloo"), header_factor=1.0, collective_hop_s=0.0, message_s=0.0)
    return Cluster(
        graph, slots, devices, backend, provenance, crowded,
        node_collectives={THIS_MACHINE: calibration.collective_s} if calibration else {},
        grid_kg_per_joule=spec.grid_intensity_kg_per_joule, cores=cores if cores < rank_count else 0,
    )  # fmt: skip


def _core_provenance(calibration: Calibration | None) -> Iterator[str]:
    """Where the figures of this machine are from."""
    if calibration:
        yield f"calibration of {calibration.date}: {calibration.key.cpu}, torch {calibration.key.torch}"
    else:
        yield from (source_of("devices", CPU_CORE), source_of("links", "loopback"), "not calibrated: run `chinchilla calibrate`")


def _with_expense(device: Device, share: dict[str, float]) -> Device:
    return replace(device, power_watt=share["power_watt"] or device.power_watt, usd_per_s=share["usd_per_s"] or device.usd_per_s)


def _nodes(spec: ClusterSpec, precision: str, calibration: Calibration | None) -> Cluster:
    graph: nx.DiGraph[str] = nx.DiGraph()
    mistakes: list[Mistake] = []
    slots: list[str] = []
    devices: list[Device] = []
    quotas: list[Quota] = []
    spot_offers: dict[str, SpotOffer] = {}
    inner, network, cables = _links(spec, mistakes)
    for index, node in enumerate(spec.nodes):
        try:
            device = _device(node, precision, f"cluster.nodes.{index}", _core(spec, precision, calibration))
        except ScenarioError as error:
            mistakes += error.mistakes
            continue
        if node.quota and node.quota < node.count * node.devices:
            quotas.append(Quota(node.name, len(slots), node.count * node.devices, node.quota))
        offer = _spot_offer(node, device, f"cluster.nodes.{index}", mistakes)
        spot_offers |= dict.fromkeys(node.names(), offer) if offer else {}
        for name in node.names():
            graph.add_node(name)
            node_slots = [f"{name}/{number}" for number in range(node.devices)]
            slots += node_slots
            devices += [device] * node.devices
            _cable_devices(graph, name, node_slots, inner or _inner_link(node, calibration))
    if mistakes:
        raise ScenarioError(mistakes)
    if network:
        _cable_network(graph, spec.network, network, spec.node_names())
    for cable, link in zip(spec.links, cables, strict=True):
        _cable(graph, *cable.between, link)
    check_connected(graph, slots)
    measured = {} if spec.intra_node else _measured_collectives(spec)
    provenance = [
        *_provenance(spec, calibration),
        *(source_of("collectives", name) for name in dict.fromkeys(name for name, _ in measured.values())),
    ]
    return Cluster(
        graph, tuple(slots), tuple(devices), find_backend(spec.network.backend), tuple(provenance),
        node_collectives={node: tables for node, (_, tables) in measured.items()},
        grid_kg_per_joule=spec.grid_intensity_kg_per_joule, activation_priority=spec.network.activation_priority,
        gradient_priority=spec.network.gradient_priority, quotas=tuple(quotas), spot_offers=spot_offers,
        hosts=_hosts(spec, calibration),
    )  # fmt: skip


def _core(spec: ClusterSpec, precision: str, calibration: Calibration | None) -> Device:
    """A core of this machine while all nodes that it emulates are busy, or of one like it: as measured, else the catalogue's."""
    if calibration is None:
        return find_device(CPU_CORE, precision, "cluster")
    # Of the machine that was measured, so that a stored calibration gives the same anywhere.
    core = calibration.device(min(calibration.key.cores, _busy_ranks(spec)))
    links = calibration.emulation
    return replace(core, communication_s_per_byte=links.socket_s_per_byte, communication_s_per_message=links.socket_s_per_message)


def _hosts(spec: ClusterSpec, calibration: Calibration | None) -> tuple[Host, ...]:
    """This machine's cores, each with the devices of emulated nodes that run on it."""
    if spec.elsewhere:
        return ()
    placed = emulated_core_of(spec, calibration.key.cores if calibration else core_count())
    links = calibration.emulation if calibration else EmulatedLinks()
    costs = links.fabric_s_per_byte, links.fabric_s_per_message
    return tuple(Host(tuple(slot for slot, core in placed.items() if core == one), 1.0, *costs) for one in sorted({*placed.values()}))


def _inner_link(node: NodeSpec, calibration: Calibration | None) -> Link:
    """What joins the devices of a node where the scenario does not say."""
    if node.device != THIS_MACHINE:
        return node_link(node.device or "")
    if calibration:
        return Link(calibration.transfer_latency_s, calibration.transfer_bandwidth_bytes_per_s)
    return find_link("loopback")


def _provenance(spec: ClusterSpec, calibration: Calibration | None) -> Iterator[str]:
    """Where each figure of the catalogue that the cluster uses is from."""
    for name in dict.fromkeys(node.device for node in spec.nodes):
        if name == THIS_MACHINE:
            yield from _core_provenance(calibration)
        elif name:
            yield source_of("devices", name)
    yield from (f"{node.name}: as the scenario states" for node in spec.nodes if not node.device)
    yield from (
        f"{node.name}: spot price and time between interruptions as the scenario states" for node in spec.nodes if node.spot_price_usd_per_s
    )
    catalogued = [node for node in spec.nodes if node.device and node.device != THIS_MACHINE]
    unpriced = dict.fromkeys(node.device for node in catalogued if node.device and node.price_usd_per_s is None)
    yield from filter(None, map(price_source_of, unpriced))
    named = dict.fromkeys(table.link for table in (spec.network, *spec.links, spec.intra_node) if table and table.link)
    yield from (source_of("links", name) for name in named)
    yield source_of("backends", spec.network.backend)


def _links(spec: ClusterSpec, mistakes: list[Mistake]) -> tuple[Link | None, Link | None, list[Link]]:
    """Within a node, between nodes and of each listed cable; names that are not in the catalogue are added to the mistakes."""

    def link(table: NetworkSpec | IntraNodeSpec | LinkSpec, where: str) -> Link | None:
        known = Link(0.0, float("inf"))
        if table.link:
            try:
                known = find_link(table.link, f"{where}.link")
            except ScenarioError as error:
                mistakes.extend(error.mistakes)
        elif table.bandwidth_bytes_per_s is None or table.latency_s is None:
            return None
        latency_s = known.latency_s if table.latency_s is None else table.latency_s
        return Link(latency_s, table.bandwidth_bytes_per_s or known.bandwidth_bytes_per_s)

    inner = link(spec.intra_node, "cluster.intra_node") if spec.intra_node else None
    network = link(spec.network, "cluster.network")
    cables = [link(cable, f"cluster.links.{index}") for index, cable in enumerate(spec.links)]
    return inner, network, [cable for cable in cables if cable]


def _measured_collectives(spec: ClusterSpec) -> dict[str, tuple[str, CollectiveTables]]:
    """Tables of every node whose devices and their link are the catalogue's, with the name of their source."""
    several = [node for node in spec.nodes if node.device != THIS_MACHINE and node.devices > 1]
    found = {node.device: node_collectives(node.device, spec.network.backend) for node in several if node.device}
    return {name: entry for node in spec.nodes if node.device in found and (entry := found[node.device]) for name in node.names()}


def _device(node: NodeSpec, precision: str, where: str, core: Device) -> Device:
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
    here = node.device == THIS_MACHINE
    device = core.with_core_share(node.cpu_share) if here else find_device(node.device, precision, f"{where}.device")
    return replace(
        device,
        # Figures of the user's own take the place of measured curves.
        products=None if node.peak_flop_per_s or node.memory_bandwidth_bytes_per_s else device.products,
        linear=() if node.peak_flop_per_s or node.memory_bandwidth_bytes_per_s else device.linear,
        flop_per_s=node.peak_flop_per_s or device.flop_per_s,
        memory_bytes=node.memory_bytes or device.memory_bytes,
        memory_bandwidth_bytes_per_s=node.memory_bandwidth_bytes_per_s or device.memory_bandwidth_bytes_per_s,
        power_watt=device.power_watt if node.power_watt is None else node.power_watt,
        usd_per_s=device.usd_per_s if node.price_usd_per_s is None else usd_per_s,
        communication_s_per_byte=node.communication_s_per_megabyte / 1e6 or device.communication_s_per_byte,
        overlap_slowdown=device.overlap_slowdown if node.overlap_slowdown is None else node.overlap_slowdown,
    )


def _spot_offer(node: NodeSpec, device: Device, where: str, mistakes: list[Mistake]) -> SpotOffer | None:
    """The other price of a node; it can only be compared with a stated one."""
    if node.spot_price_usd_per_s is None or node.time_between_interruptions_s is None:
        return None
    if not device.usd_per_s:
        what = "is not stated, so that spot_price can be compared with nothing"
        mistakes.append(Mistake(f"{where}.price", what, 'write what the node costs without interruptions, such as price = "2 USD/h"'))
    return SpotOffer(node.name, node.spot_price_usd_per_s / node.devices, node.time_between_interruptions_s)


def _cable_devices(graph: nx.DiGraph[str], node: str, slots: Sequence[str], link: Link) -> None:
    """Join the devices of a node; one device alone sits directly at the node's network interface."""
    if len(slots) == 1:
        link = Link(0.0, float("inf"))
    for slot in slots:
        _cable(graph, slot, node, Link(link.latency_s / 2, link.bandwidth_bytes_per_s))


def _cable_network(graph: nx.DiGraph[str], network: NetworkSpec, whole: Link, names: tuple[str, ...]) -> None:
    if len(names) < 2:
        return
    half_duplex = network.duplex == "half"
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
