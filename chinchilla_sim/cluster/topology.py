"""Devices and the links between them, as a directed networkx graph.

A vertex is a device slot (`node-0/0`), a node (`node-0`) or a switch; every edge carries a `Link` and is one
direction of a cable. A plan says which slot each of its ranks runs on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import networkx as nx

from chinchilla_sim.cluster.curves import CollectiveTables, LinearCurve, ProductCurve, Table
from chinchilla_sim.cluster.hosts import Host, share_cores
from chinchilla_sim.cluster.symmetry import Peeled, find_islands, slot_classes
from chinchilla_sim.errors import Mistake, ScenarioError


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a cable, shared fairly by the transfers on it.

    Links of the same `medium` share one bandwidth: both directions of a half-duplex cable, all stations of a bus. A
    `fat_pipe` gives each transfer its whole bandwidth.
    """

    latency_s: float
    bandwidth_bytes_per_s: float
    medium: str = ""
    fat_pipe: bool = False

    def idle_transfer_s(self, message_bytes: float) -> float:
        """Alpha-beta time of one message when nothing else uses the link."""
        return self.latency_s + message_bytes / self.bandwidth_bytes_per_s


CONTEXT_BYTES = 0.8e9
"""CUDA context with PyTorch's kernels loaded and cuBLAS's workspace: a round figure, 0.5 to 1 GB are reported for V100 to H100."""


@dataclass(frozen=True, slots=True)
class Device:
    """What one rank computes with: sustained rates and fixed times, at one precision.

    `forward_launch_s` and `backward_launch_s` are per kernel, `forward_fixed_s` and `backward_fixed_s` per microbatch and stage,
    `step_fixed_s` per step. `optimizer_bandwidth_bytes_per_s` and
    `optimizer_launch_s` (per step) describe the parameter update, `elementwise_bandwidth_bytes_per_s` and `elementwise_launch_s` (per
    kernel) the passes of a codec. While a rank communicates its computation takes `1 + overlap_slowdown` times as long, and every byte
    that it sends or receives takes `communication_s_per_byte` from its cores, every message `communication_s_per_message`. Where
    `products` is known kernels follow that curve from the peak rates, and sustained rates and launch times do not count for them.
    Within a long job products run at `sustained_share` of the curve's speed, other kernels at `streaming_share`. A program takes
    `host_launch_s` to start each kernel and `host_microbatch_s` for each microbatch beside, and `host_message_s` to send or await a
    message. `quantized_flop_per_s` is the peak of products with weights where they run in fp8 (0: they do not). A device with a
    `core_share` below 1 is a core that the kernel gives out in portions: full speed until its share of a period is used up, then none
    until the next; its rates are what it sustains, what was measured on a whole core takes 1 / that. `linear` are measured linear
    layers, by number format, on a whole core. `inference_fixed_s` and `inference_launch_s` take the place of `forward_*` where nothing
    is kept for a backward pass, and nothing else runs in between (0: not measured). `reread` are (bytes, seconds per byte) of weights
    of so many bytes that are read again and again: more than fit into a cache come from farther away.
    """

    name: str
    flop_per_s: float
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float = float("inf")
    forward_launch_s: float = 0.0
    backward_launch_s: float = 0.0
    forward_fixed_s: float = 0.0
    backward_fixed_s: float = 0.0
    step_fixed_s: float = 0.0
    optimizer_bandwidth_bytes_per_s: float = float("inf")
    optimizer_launch_s: float = 0.0
    elementwise_bandwidth_bytes_per_s: float = float("inf")
    elementwise_launch_s: float = 0.0
    power_watt: float = 0.0
    usd_per_s: float = 0.0
    overlap_slowdown: float = 0.0
    communication_s_per_byte: float = 0.0
    communication_s_per_message: float = 0.0
    host_launch_s: float = 0.0
    host_microbatch_s: float = 0.0
    host_message_s: float = 0.0
    sustained_share: float = 1.0
    streaming_share: float = 1.0
    products: ProductCurve | None = None
    peak_flop_per_s: float = 0.0
    quantized_flop_per_s: float = 0.0
    peak_bytes_per_s: float = 0.0
    core_share: float = 1.0
    linear: tuple[LinearCurve, ...] = ()
    inference_fixed_s: float = 0.0
    inference_launch_s: float = 0.0
    reread: Table = ()

    def curve_of(self, number_format: str) -> LinearCurve | None:
        """Measured linear layers whose weights are in this format."""
        return next((curve for curve in self.linear if curve.format == number_format), None)

    def with_core_share(self, share: float) -> Device:
        """The same device with only that share of its core's time: what it sustains is less, what is fixed takes longer.

        A byte of communication keeps a core busy as long as before.

        >>> Device("core", flop_per_s=1e9, memory_bytes=1e9, step_fixed_s=0.001).with_core_share(0.5).step_fixed_s
        0.002
        """
        rates = {name: getattr(self, name) * share for name in _CORE_RATES}
        return replace(self, **rates, **{name: getattr(self, name) / share for name in _CORE_SECONDS}, core_share=self.core_share * share)

    def for_inference(self, profiled: bool = False) -> Device:
        """The same device where nothing is kept for a backward pass; measured tasks (`profiled`) add up to whole passes already."""
        if not self.inference_fixed_s:
            return self
        return replace(self, forward_fixed_s=0.0 if profiled else self.inference_fixed_s, forward_launch_s=self.inference_launch_s)

    def for_training(self) -> Device:
        """The same device between whose forward passes other kernels run, which linear layers were not measured behind."""
        return replace(self, linear=(), reread=()) if self.linear or self.reread else self

    @property
    def usable_memory_bytes(self) -> float:
        """What tensors can have: an accelerator's context comes out of its memory first."""
        return self.memory_bytes - (CONTEXT_BYTES if self.products else 0.0)


_CORE_RATES = ("flop_per_s", "memory_bandwidth_bytes_per_s", "optimizer_bandwidth_bytes_per_s", "elementwise_bandwidth_bytes_per_s")
_CORE_SECONDS = (
    "forward_launch_s",
    "backward_launch_s",
    "forward_fixed_s",
    "inference_fixed_s",
    "inference_launch_s",
    "backward_fixed_s",
    "step_fixed_s",
    "optimizer_launch_s",
    "elementwise_launch_s",
    "host_launch_s",
    "host_microbatch_s",
    "host_message_s",
)


@dataclass(frozen=True, slots=True)
class Backend:
    """What a communication library adds to plain links (see catalogue.toml): `message_s` to each message between two ranks.

    It runs `concurrent_collectives` of one group at once.
    """

    name: str
    header_factor: float = 1.0
    rendezvous: bool = False
    collective_hop_s: float = 0.0
    collective_segment_bytes: float = float("inf")
    message_s: float = 0.0
    concurrent_collectives: int = 1

    @property
    def tensor_by_tensor(self) -> bool:
        """Whether memory is allocated as torch does on CPUs, where this project's runtime plays (gloo); GPU software keeps flat buffers."""
        return self.rendezvous


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `limit` of the `slot_count` slots from `first_slot` on may be used: those of one entry of the scenario."""

    entry: str
    first_slot: int
    slot_count: int
    limit: int


@dataclass(frozen=True, slots=True)
class SpotOffer:
    """A device of a node at a price at which the node may be taken away, every `between_interruptions_s` on average."""

    entry: str
    usd_per_s: float
    between_interruptions_s: float


@dataclass(frozen=True)
class Cluster:
    """Device slots in rank order, and the network between them.

    `crowded[n]` replaces all devices while n ranks are busy on one machine (calibration measures that), whose `cores` are shared where
    ranks are more (0: every rank has its own);
    `node_collectives[node]` are measured tables of collectives among devices of that node alone. `provenance` says where the
    figures are from. Vertices of `graph` are slots, nodes and switches; `fixed_routes` come before the shortest paths.
    The priorities are weights of flows that share a link: messages between stages, and exchanges of replicas.
    `quotas` limit which slots may be used together; `spot_offers[node]` is the other way to rent that node. Slots of one of the `hosts`
    have no core of their own.
    """

    graph: nx.DiGraph[str]
    slots: tuple[str, ...]
    devices: tuple[Device, ...]
    backend: Backend
    provenance: tuple[str, ...] = ()
    crowded: Mapping[int, Device] = field(default_factory=dict)
    node_collectives: Mapping[str, CollectiveTables] = field(default_factory=dict)
    grid_kg_per_joule: float | None = None
    activation_priority: float = 1.0
    gradient_priority: float = 1.0
    fixed_routes: Mapping[tuple[int, int], tuple[tuple[str, str], ...]] = field(default_factory=dict)
    quotas: tuple[Quota, ...] = ()
    spot_offers: Mapping[str, SpotOffer] = field(default_factory=dict)
    hosts: tuple[Host, ...] = ()
    cores: int = 0

    def for_inference(self, profiled: bool = False) -> Cluster:
        """The same cluster where nothing is kept for a backward pass; `profiled` as of its devices."""
        return self._with_devices(lambda device: device.for_inference(profiled))

    def for_training(self) -> Cluster:
        """The same cluster with devices for training."""
        return self._with_devices(Device.for_training)

    def _with_devices(self, change: Callable[[Device], Device]) -> Cluster:
        changed = {id(device): change(device) for device in self.devices}
        crowded = {count: change(device) for count, device in self.crowded.items()}
        return replace(self, devices=tuple(changed[id(device)] for device in self.devices), crowded=crowded)

    @property
    def rank_count(self) -> int:
        """Number of device slots."""
        return len(self.slots)

    @property
    def usable_count(self) -> int:
        """How many of them a plan may use, by the quotas."""
        return self.rank_count - sum(max(0, quota.slot_count - quota.limit) for quota in self.quotas)

    @cached_property
    def quota_of_slot(self) -> dict[int, Quota]:
        """The quota of every slot that has one."""
        return {slot: quota for quota in self.quotas for slot in range(quota.first_slot, quota.first_slot + quota.slot_count)}

    @cached_property
    def _peeled(self) -> Peeled:
        return Peeled(self.graph)

    @cached_property
    def slot_classes(self) -> tuple[int, ...]:
        """Class of every slot: slots of a class have the same device, price and quota, and the same place in the network."""
        same: dict[int, int] = {}
        kinds: list[Device] = []
        labels: list[object] = []
        for slot, device in enumerate(self.devices):
            if id(device) not in same:
                unnamed = replace(device, name="")
                if unnamed not in kinds:
                    kinds.append(unnamed)
                same[id(device)] = kinds.index(unnamed)
            spot = self.spot_offers.get(self.node_of(slot)) if self.spot_offers else None
            labels.append((same[id(device)], self.quota_of_slot.get(slot), spot))
        return slot_classes(self._peeled, self.slots, labels)

    @cached_property
    def islands(self) -> tuple[tuple[int, ...], ...]:
        """Nested groups of slots that lie closer to each other than to the rest, narrowest first: the island of each slot by level."""
        return find_islands(self._peeled, self.slots)

    def device(self, rank: int, busy_ranks: int = 1) -> Device:
        """The device of a rank while `busy_ranks` ranks compute."""
        return self.crowded[self.measured_count(busy_ranks)] if self.crowded else self.devices[rank]

    def measured_count(self, busy_ranks: int) -> int:
        """With how many busy ranks that was measured which holds for `busy_ranks`; the same where nothing was."""
        return min((count for count in self.crowded if count >= busy_ranks), default=max(self.crowded, default=busy_ranks))

    def hosts_of(self, slots: Sequence[int]) -> tuple[Host, ...]:
        """Cores that slots of a run share, which has these slots in the order of its processes."""
        return self.hosts or (share_cores(slots, self.cores) if self.cores else ())

    def node_of(self, slot: int) -> str:
        """Name of the node that a device slot is in."""
        return self.slots[slot].rpartition("/")[0]

    def first_slot(self, node: str) -> int | None:
        """First device slot of a node, or None where there is no such node."""
        return next((slot for slot in range(self.rank_count) if self.node_of(slot) == node), None)

    @cached_property
    def _routes(self) -> dict[tuple[int, int], tuple[tuple[str, str], ...]]:
        return dict(self.fixed_routes)

    def route(self, source: int, target: int) -> tuple[tuple[str, str], ...]:
        """Edges of the lowest-latency path between two slots (fewest hops, then the order of the scenario, break ties)."""
        key = (source, target)
        if key not in self._routes:
            ends = self.slots[source], self.slots[target]
            path = self._tree_path(*ends) if self._parents else nx.dijkstra_path(self.graph, *ends, weight=_route_weight)
            self._routes[key] = tuple(pairwise(path))
        return self._routes[key]

    @property
    def is_tree(self) -> bool:
        """Whether there is one way only between any two slots."""
        return bool(self._parents)

    @cached_property
    def _parents(self) -> dict[str, str]:
        """Where the cables form a tree, there is one path: every vertex with its parent (the root with itself); else empty."""
        cables = self.graph.to_undirected(as_view=True)
        if not nx.is_tree(cables) or any(not self.graph.has_edge(b, a) for a, b in self.graph.edges):
            return {}
        root = max(cables.degree, key=lambda entry: (entry[1], entry[0]))[0]
        return {root: root} | {child: parent for parent, child in nx.bfs_edges(cables, root)}

    def _tree_path(self, source: str, target: str) -> list[str]:
        up, down = self._line_to_root(source), self._line_to_root(target)
        if len(up) == len(down) == 2 and source != target:
            return [source, up[1], target]
        common = 0
        while common < min(len(up), len(down)) and up[-1 - common] == down[-1 - common]:
            common += 1
        return up[: len(up) - common + 1] + down[: len(down) - common][::-1]

    @cached_property
    def _lines(self) -> dict[str, list[str]]:
        return {}

    def _line_to_root(self, vertex: str) -> list[str]:
        """A vertex, its parent and so on up to the root of the tree."""
        if vertex not in self._lines:
            parent = self._parents[vertex]
            self._lines[vertex] = [vertex] if parent == vertex else [vertex, *self._line_to_root(parent)]
        return self._lines[vertex]

    def link(self, edge: tuple[str, str]) -> Link:
        """The link on an edge of the graph."""
        return self.graph.edges[edge]["link"]  # type: ignore[no-any-return]

    def latency_s(self, source: int, target: int) -> float:
        """One-way latency between two ranks: the sum over the route."""
        return self.idle_link(source, target).latency_s

    def bandwidth_bytes_per_s(self, source: int, target: int) -> float:
        """Bandwidth of the narrowest link between two ranks."""
        return self.idle_link(source, target).bandwidth_bytes_per_s

    @cached_property
    def _idle_links(self) -> dict[tuple[int, int], Link]:
        return {}

    def idle_link(self, source: int, target: int) -> Link:
        """The whole route as one link."""
        key = (source, target)
        if key not in self._idle_links:
            links = [self.link(edge) for edge in self.route(source, target)]
            bandwidth = min((link.bandwidth_bytes_per_s for link in links), default=float("inf"))
            self._idle_links[key] = Link(sum(link.latency_s for link in links), bandwidth)
        return self._idle_links[key]

    def slowest_pair(self, ranks: Sequence[int]) -> Link:
        """Largest latency and smallest bandwidth between neighbours on the ring of these ranks."""
        pairs = list(zip(ranks, (*ranks[1:], ranks[0]), strict=True))
        return Link(max(self.latency_s(a, b) for a, b in pairs), min(self.bandwidth_bytes_per_s(a, b) for a, b in pairs))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every figure that a simulation reads."""
        content = {
            "slots": self.slots,
            "devices": [asdict(device) for device in self.devices],
            "edges": sorted((a, b, *astuple(link)) for a, b, link in self.graph.edges(data="link")),
            "backend": asdict(self.backend),
            "crowded": {str(count): asdict(device) for count, device in self.crowded.items()},
            "hosts": [asdict(host) for host in self.hosts],
            "cores": self.cores,
            "priorities": [self.activation_priority, self.gradient_priority],
            "collectives": sorted((node, *key, table) for node, tables in self.node_collectives.items() for key, table in tables.items()),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _route_weight(_source: str, _target: str, edge: Mapping[str, Link]) -> float:
    return edge["link"].latency_s + 1e-9


def check_connected(graph: nx.DiGraph[str], slots: Sequence[str]) -> None:
    """Raise a ScenarioError that names a device which no other can reach."""
    for slot in slots[1:]:
        if not nx.has_path(graph, slots[0], slot):
            raise ScenarioError([Mistake("cluster.links", f"no path from {slots[0]} to {slot}", "add a link or name a topology")])
