"""[cluster]: the machines, and what joins them."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from chinchilla_sim.scenario.fields import (
    BytesPerSecond,
    Count,
    FlopPerSecond,
    KgPerJoule,
    LinkName,
    MemoryBytes,
    NodeName,
    PositiveSeconds,
    Seconds,
    UsdPerSecond,
    Watt,
)
from chinchilla_sim.scenario.table import Table

THIS_MACHINE = "this-machine"
"""Kind of a cluster of this computer's cores, and the device of nodes that it emulates."""

CLUSTER_KEYS: Mapping[str, frozenset[str]] = {
    "this-machine": frozenset({"kind", "ranks", "price", "power", "grid_intensity"}),
    "nodes": frozenset({"kind", "nodes", "network", "switches", "links", "intra_node", "grid_intensity"}),
}


class NodeSpec(Table):
    """One machine, or `count` equal ones."""

    name: NodeName = Field(description="Name; with count > 1 the nodes are called name-0, name-1, ...", examples=["big"])
    count: int = Field(default=1, ge=1, le=100_000, description="How many equal nodes.", examples=[4])
    devices: int = Field(default=1, ge=1, le=100_000, description="Devices per node.", examples=[8])
    device: str | None = Field(
        default=None,
        min_length=1,
        description='Device name from the catalogue, or "this-machine" for cores of this computer; or give peak and memory.',
        examples=["a100-sxm-80gb"],
    )
    cpu_share: float = Field(
        default=1.0,
        ge=0.01,
        le=1,
        description='Share of a core that each device gets where device = "this-machine"; `chinchilla run` emulates it.',
        examples=[0.5],
    )
    peak_flop_per_s: FlopPerSecond | None = Field(default=None, alias="peak", description="Peak speed per device.", examples=["10 Tflop/s"])
    memory_bytes: MemoryBytes | None = Field(
        default=None, alias="memory", description="Memory per device; overrides the catalogue.", examples=["16 GiB"]
    )
    memory_bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None, alias="memory_bandwidth", description="Memory bandwidth per device; overrides the catalogue.", examples=["50 GB/s"]
    )
    overlap_slowdown: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="By how much longer computation takes while the device communicates; overrides the catalogue.",
        examples=[0.19],
    )
    communication_s_per_megabyte: Seconds = Field(
        default=0.0,
        alias="communication_per_megabyte",
        description="Processor time that a megabyte sent or received takes from the computation of its device.",
        examples=["0.7 ms"],
    )
    price_usd_per_s: UsdPerSecond | None = Field(
        default=None, alias="price", description="Price per node; default: what the catalogue says of its devices.", examples=["2 USD/h"]
    )
    power_watt: Watt | None = Field(default=None, alias="power", description="Electric power per device.", examples=["300 W"])
    quota: Count | None = Field(
        default=None, description="At most so many of this entry's devices are used, of all that it lists.", examples=[4]
    )
    spot_price_usd_per_s: UsdPerSecond | None = Field(
        default=None,
        alias="spot_price",
        description="Price per node at which it may be taken away at any time; `search.spot` says whether that is used.",
        examples=["0.9 USD/h"],
    )
    time_between_interruptions_s: PositiveSeconds | None = Field(
        default=None,
        alias="time_between_interruptions",
        description="After what time a node at its spot price is taken away, on average.",
        examples=["6 h"],
    )

    def names(self) -> tuple[str, ...]:
        """Name of every node of this entry."""
        return expand_name(self.name, self.count)


def expand_name(name: str, count: int) -> tuple[str, ...]:
    """Names of `count` equal nodes: the bare name when there is one, else numbered.

    >>> expand_name("big", 1), expand_name("small", 2)
    (('big',), ('small-0', 'small-1'))
    """
    return (name,) if count == 1 else tuple(f"{name}-{index}" for index in range(count))


class NetworkSpec(Table):
    """What joins the nodes when every node is joined in the same way."""

    bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None,
        alias="bandwidth",
        description="Bandwidth of each node's link, per direction; overrides the catalogue.",
        examples=["10 Gbit/s"],
    )
    latency_s: Seconds | None = Field(
        default=None, alias="latency", description="One way, from node to node; overrides the catalogue.", examples=["50 us"]
    )
    link: LinkName | None = Field(default=None, description="Link class of the catalogue.", examples=["ethernet-100g"])
    topology: Literal["switch", "tree", "ring", "full-mesh", "bus", "links"] = Field(
        default="switch",
        description="switch: each node has one link of this bandwidth into one switch; tree: racks of rack_size nodes around a core; "
        "ring, full-mesh: a link between neighbours, or between every two nodes; bus: all nodes share one medium; "
        "links: only what [[cluster.links]] lists (default when links are given without a bandwidth here).",
        examples=["switch"],
    )
    rack_size: Count = Field(default=8, description="Nodes of a rack in topology tree.", examples=[8])
    oversubscription: float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Bandwidth of a rack's nodes together over that of its uplink, in topology tree.",
        examples=[4.0],
    )
    duplex: Literal["full", "half"] = Field(
        default="full", description="half: both directions of a link share its bandwidth.", examples=["full"]
    )
    activation_priority: float = Field(
        default=1.0, gt=0, le=1000, description="Weight of messages between stages where they share a link with others.", examples=[4.0]
    )
    gradient_priority: float = Field(
        default=1.0, gt=0, le=1000, description="Weight of gradient and weight exchanges on a shared link.", examples=[1.0]
    )
    backend: Literal["gloo", "nccl", "plain"] = Field(
        default="plain", description="Whose protocol the messages follow; plain has no protocol effects.", examples=["gloo"]
    )


class LinkSpec(Table):
    """One cable between two nodes or switches, beside those of the topology."""

    between: tuple[NodeName, NodeName] = Field(strict=False, description="Two names of nodes or switches.", examples=[["big", "small"]])
    bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None, alias="bandwidth", description="Bandwidth per direction; overrides the catalogue.", examples=["10 Gbit/s"]
    )
    latency_s: Seconds | None = Field(default=None, alias="latency", description="One way; overrides the catalogue.", examples=["50 us"])
    link: LinkName | None = Field(default=None, description="Link class of the catalogue.", examples=["wan-region"])


class IntraNodeSpec(Table):
    """What joins the devices inside one node."""

    bandwidth_bytes_per_s: BytesPerSecond | None = Field(
        default=None,
        alias="bandwidth",
        description="Bandwidth of each device's link, per direction; overrides the catalogue.",
        examples=["300 GB/s"],
    )
    latency_s: Seconds | None = Field(
        default=None, alias="latency", description="One way, from device to device; overrides the catalogue.", examples=["5 us"]
    )
    link: LinkName | None = Field(default=None, description="Link class of the catalogue.", examples=["nvlink-4"])


class ClusterSpec(Table):
    """The machines: this one, or a list of nodes and what joins them."""

    kind: Literal["this-machine", "nodes"] = Field(
        default="nodes", description="this-machine: the cores of this computer; nodes: those listed here.", examples=["this-machine"]
    )
    ranks: Count | None = Field(default=None, description="Ranks on this machine; default: its cores.", examples=[4])
    price_usd_per_s: UsdPerSecond | None = Field(default=None, alias="price", description="Price of this machine.", examples=["0.2 USD/h"])
    power_watt: Watt | None = Field(default=None, alias="power", description="Electric power of this machine.", examples=["65 W"])
    nodes: tuple[NodeSpec, ...] = Field(default=(), strict=False, description="The machines.")
    elsewhere: bool = Field(
        default=False,
        description="true: nodes whose device is this-machine are other machines like this one: simulated, not emulated here.",
        examples=[True],
    )
    network: NetworkSpec = Field(default_factory=NetworkSpec, description="What joins the nodes.")
    switches: tuple[NodeName, ...] = Field(default=(), strict=False, description="Names that links may end at.", examples=[["core"]])
    links: tuple[LinkSpec, ...] = Field(default=(), strict=False, description="Links beside those of the topology.")
    intra_node: IntraNodeSpec | None = Field(default=None, description="What joins the devices inside a node.")
    grid_intensity_kg_per_joule: KgPerJoule | None = Field(
        default=None,
        alias="grid_intensity",
        description="CO2 that the grid emits per electric energy: costs are then told in kg of it too.",
        examples=["400 g/kWh"],
    )

    def node_names(self) -> tuple[str, ...]:
        """Name of every node, in the order of the file; empty for this-machine."""
        return tuple(name for node in self.nodes for name in node.names())
