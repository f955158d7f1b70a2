"""From a scenario's [cluster] to routes, latencies and devices."""

from dataclasses import replace
from typing import Any

import networkx as nx
import pytest

from chinchilla_sim.cluster.build import build_cluster, emulated, emulated_core_of, slot_nodes, this_machine_ranks
from chinchilla_sim.cluster.calibration import Calibration, MachineKey
from chinchilla_sim.cluster.hosts import Host
from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.cluster import ClusterSpec

NODE = {"peak": "10 Tflop/s", "memory": "16 GiB"}
NETWORK = {"bandwidth": "1 GB/s", "latency": "2 ms"}


def build(**tables: Any) -> Cluster:
    """The cluster of a [cluster] table, by default of four nodes on a network of 1 GB/s and 2 ms."""
    tables = {"nodes": [{"name": "n", "count": 4, **NODE}], "network": NETWORK} | tables
    return build_cluster(ClusterSpec.model_validate(tables), "fp32")


def hops(cluster: Cluster, source: int, target: int) -> list[str]:
    """Vertices between two ranks."""
    return [edge[1] for edge in cluster.route(source, target)][:-1]


@pytest.mark.parametrize(
    ("topology", "far", "between"),
    [("switch", 2e-3, ["n-0", "switch", "n-2"]), ("full-mesh", 2e-3, ["n-0", "n-2"]), ("ring", 4e-3, ["n-0", "n-1", "n-2"])],
)
def test_routes_of_the_topologies(topology: str, far: float, between: list[str]) -> None:
    """From node 0 to node 2 of four: over the switch, at once, or around half the ring; neighbours are one latency apart."""
    cluster = build(network={**NETWORK, "topology": topology})
    assert cluster.latency_s(0, 1) == pytest.approx(2e-3)
    assert cluster.latency_s(0, 2) == cluster.latency_s(2, 0) == pytest.approx(far)
    route = hops(cluster, 0, 2)
    assert len(route) == len(between) and {route[0], route[-1]} == {"n-0", "n-2"}
    assert {cluster.bandwidth_bytes_per_s(a, b) for a in range(4) for b in range(4) if a != b} == {1e9}


@pytest.mark.parametrize("topology", ["switch", "full-mesh", "ring"])
def test_ways_there_and_back_are_alike_and_use_no_link_in_common(topology: str) -> None:
    """Cables are full duplex: the way back takes as long and shares no direction with the way there."""
    cluster = build(network={**NETWORK, "topology": topology})
    for a in range(4):
        for b in range(a):
            assert cluster.latency_s(a, b) == pytest.approx(cluster.latency_s(b, a))
            assert not set(cluster.route(a, b)) & set(cluster.route(b, a))


def test_rank_reaches_itself_at_once() -> None:
    """The route to oneself is empty: no latency, no limit."""
    cluster = build()
    assert (cluster.route(1, 1), cluster.latency_s(1, 1), cluster.bandwidth_bytes_per_s(1, 1)) == ((), 0, float("inf"))


def test_listed_links_make_a_line() -> None:
    """Two links over a switch of the user: latencies add up, the narrower link counts."""
    cluster = build(
        nodes=[{"name": "big", **NODE}, {"name": "small", **NODE}],
        network={"topology": "links"},
        switches=["core"],
        links=[
            {"between": ["big", "core"], "bandwidth": "10 Gbit/s", "latency": "1 ms"},
            {"between": ["core", "small"], "bandwidth": "1 Gbit/s", "latency": "3 ms"},
        ],
    )
    assert hops(cluster, 0, 1) == ["big", "core", "small"]
    assert (cluster.latency_s(0, 1), cluster.bandwidth_bytes_per_s(0, 1)) == (pytest.approx(4e-3), 125e6)
    assert cluster.idle_link(0, 1).idle_transfer_s(125e6) == pytest.approx(1.004)


def test_route_takes_the_lower_latency() -> None:
    """A detour of less latency is taken although it is narrower."""
    cluster = build(
        nodes=[{"name": name, **NODE} for name in "abc"],
        network={"topology": "links"},
        links=[
            {"between": ["a", "b"], "bandwidth": "10 Gbit/s", "latency": "9 ms"},
            {"between": ["a", "c"], "bandwidth": "1 Gbit/s", "latency": "1 ms"},
            {"between": ["c", "b"], "bandwidth": "1 Gbit/s", "latency": "1 ms"},
        ],
    )
    assert hops(cluster, 0, 1) == ["a", "c", "b"]


def test_disconnected_links_are_a_scenario_error() -> None:
    """A device that no other reaches is named."""
    with pytest.raises(ScenarioError, match="no path from a/0 to c/0"):
        build(
            nodes=[{"name": name, **NODE} for name in "abc"],
            network={"topology": "links"},
            links=[{"between": ["a", "b"], "bandwidth": "1 Gbit/s", "latency": "1 ms"}],
        )


def test_devices_of_a_node_share_its_network_link() -> None:
    """Two nodes of two devices: inside a node the stated link, between nodes that one twice by half and the network."""
    cluster = build(nodes=[{"name": "n", "count": 2, "devices": 2, **NODE}], intra_node={"bandwidth": "100 GB/s", "latency": "10 us"})
    assert cluster.slots == ("n-0/0", "n-0/1", "n-1/0", "n-1/1")
    assert (cluster.latency_s(0, 1), cluster.bandwidth_bytes_per_s(0, 1)) == (pytest.approx(10e-6), 100e9)
    assert (cluster.latency_s(0, 2), cluster.bandwidth_bytes_per_s(0, 2)) == (pytest.approx(2e-3 + 10e-6), 1e9)
    assert set(cluster.route(0, 2)) & set(cluster.route(1, 3)) == {("n-0", "network/switch"), ("network/switch", "n-1")}


def test_slowest_pair_of_a_ring_of_ranks() -> None:
    """Over ranks 0, 1, 2 of two nodes the ring crosses nodes twice: the network's link counts."""
    cluster = build(nodes=[{"name": "n", "count": 2, "devices": 2, **NODE}], intra_node={"bandwidth": "100 GB/s", "latency": "10 us"})
    assert cluster.slowest_pair([0, 1]).bandwidth_bytes_per_s == 100e9
    assert cluster.slowest_pair([0, 1, 2]) == cluster.idle_link(1, 2)


def test_all_unknown_devices_are_told_at_once() -> None:
    """Two nodes of unknown devices are two mistakes, each at its key."""
    with pytest.raises(ScenarioError) as caught:
        build(nodes=[{"name": "a", "device": "a1000"}, {"name": "b", "device": "h1000"}])
    assert [mistake.where for mistake in caught.value.mistakes] == ["cluster.nodes.0.device", "cluster.nodes.1.device"]


def test_stated_figures_override_the_catalogue() -> None:
    """Memory and power of the scenario replace the catalogue's; a node's price is shared by its devices."""
    cluster = build(nodes=[{"name": "n", "device": "t4", "devices": 4, "memory": "8 GB", "power": "10 W", "price": "4 USD/h"}], network={})
    device = cluster.device(0)
    assert (device.memory_bytes, device.power_watt, device.usd_per_s) == (8e9, 10, pytest.approx(1 / 3600))
    assert device.flop_per_s == pytest.approx(0.79 * 8.1e12)


def test_digest_knows_every_figure() -> None:
    """The same tables give the same digest; another latency, backend or memory another one."""
    variants = [
        build(),
        build(network={**NETWORK, "latency": "3 ms"}),
        build(network={**NETWORK, "backend": "gloo"}),
        build(nodes=[{"name": "n", "count": 4, **NODE, "memory": "8 GiB"}]),
    ]
    assert build().digest == variants[0].digest
    assert len({cluster.digest for cluster in variants}) == 4


def calibrated(rank_count: int) -> Cluster:
    """This machine of two cores with a calibration of one, two and (as older ones have it) four busy ranks."""
    key = MachineKey("cpu", 2, "2.13", 1)
    devices = {1: Device("core", 100.0, 1e9), 2: Device("core", 60.0, 1e9), 4: Device("core", 50.0, 1e9)}
    calibration = Calibration(key, "2026-11-23", devices, 1e-4, 2e9, {("all_reduce", 2): ((0.0, 1e-3), (1e6, 2e-3))})
    return build_cluster(ClusterSpec.model_validate({"kind": "this-machine", "ranks": rank_count, "power": "60 W"}), "fp32", calibration)


def test_this_machine_without_calibration_says_so() -> None:
    """Catalogue figures stand in, with gloo's rendezvous, and the provenance asks for a calibration."""
    cluster = build_cluster(ClusterSpec.model_validate({"kind": "this-machine", "ranks": 2}), "fp32")
    assert cluster.backend.rendezvous and cluster.rank_count == 2
    assert "not calibrated" in cluster.provenance[-1]
    assert this_machine_ranks(ClusterSpec.model_validate({"kind": "this-machine"})) >= 1


def test_busy_neighbours_slow_a_rank() -> None:
    """Devices are those measured with as many busy ranks, or with more where that count was not measured."""
    cluster = calibrated(2)
    assert [cluster.device(0, busy).flop_per_s for busy in (1, 2, 3)] == [100, 60, 60]
    assert (cluster.latency_s(0, 1), cluster.bandwidth_bytes_per_s(0, 1)) == (pytest.approx(1e-4), 2e9)
    assert cluster.node_collectives["this-machine"]["all_reduce", 2] == ((0.0, 1e-3), (1e6, 2e-3))


def test_ranks_beyond_the_cores_share_them() -> None:
    """Four ranks on two cores: figures measured with four count for nothing, the cores of two are shared; two ranks have one each."""
    four, two = calibrated(4), calibrated(2)
    assert (sorted(four.crowded), four.cores, two.cores) == ([1, 2], 2, 0)
    assert four.device(0, busy_ranks=4) == four.device(0, busy_ranks=2) != four.device(0, busy_ranks=1)
    assert [host.slots for host in four.hosts_of(range(4))] == [(0, 1), (2, 3)]
    assert four.hosts_of([0, 3]) == two.hosts_of([0, 1]) == ()


def test_measured_counts_hold_for_what_is_between() -> None:
    """Three busy ranks have the figures of four, more than were measured those of most; nothing measured, nothing changed."""
    crowded = dict.fromkeys((1, 2, 4), calibrated(2).devices[0])
    cluster = replace(calibrated(2), crowded=crowded)
    assert [cluster.measured_count(busy) for busy in (1, 3, 9)] == [1, 4, 4]
    assert replace(cluster, crowded={}).measured_count(3) == 3


def test_power_of_this_machine_is_shared_by_its_ranks() -> None:
    """60 W over two ranks are 30 W each, at every crowding."""
    cluster = calibrated(2)
    assert {cluster.device(rank, busy).power_watt for rank in (0, 1) for busy in (1, 2)} == {30}


def test_node_may_be_called_switch() -> None:
    """The latency between two nodes does not depend on what they are called."""
    cluster = build(nodes=[{"name": "switch", **NODE}, {"name": "other", **NODE}])
    assert cluster.latency_s(0, 1) == pytest.approx(2e-3)


def test_tree_has_racks_with_a_slower_way_out() -> None:
    """Four nodes in racks of two, uplinks oversubscribed 4:1: half the bandwidth of one node, one latency more."""
    cluster = build(network={**NETWORK, "topology": "tree", "rack_size": 2, "oversubscription": 4})
    assert (cluster.latency_s(0, 1), cluster.latency_s(0, 2)) == pytest.approx((2e-3, 4e-3))
    assert (cluster.bandwidth_bytes_per_s(0, 1), cluster.bandwidth_bytes_per_s(0, 2)) == (1e9, 0.5e9)
    assert hops(cluster, 0, 2)[1:-1] == ["network/rack-0", "network/switch", "network/rack-1"]


@pytest.mark.parametrize(("network", "media"), [({"topology": "bus"}, 1), ({"duplex": "half"}, 4), ({}, 0)])
def test_media_are_shared_as_stated(network: dict[str, str], media: int) -> None:
    """A bus is one medium, half duplex one for each cable, full duplex none."""
    cluster = build(network=NETWORK | network)
    assert len({link.medium for *_, link in cluster.graph.edges(data="link") if link.medium}) == media


def test_overlap_slowdown_comes_from_the_node_or_the_catalogue() -> None:
    """A GPU has the published mean; a node may say otherwise, one described by hand has none unless it says so."""
    nodes = [{"name": "a", "device": "a100-sxm-80gb"}, {"name": "b", "device": "a100-sxm-80gb", "overlap_slowdown": 0.4}]
    cluster = build(nodes=[*nodes, {"name": "c", **NODE}, {"name": "d", **NODE, "overlap_slowdown": 0.1}])
    assert [device.overlap_slowdown for device in cluster.devices] == [0.19, 0.4, 0.0, 0.1]


def test_processor_time_of_communication_is_stated_per_megabyte() -> None:
    """0.7 ms a megabyte are 0.7 ns a byte, also for a device of the catalogue."""
    stated = {"communication_per_megabyte": "0.7 ms"}
    cluster = build(nodes=[{"name": "a", "device": "t4", **stated}, {"name": "b", **NODE, **stated}, {"name": "c", **NODE}])
    assert [device.communication_s_per_byte for device in cluster.devices] == pytest.approx([0.7e-9, 0.7e-9, 0.0])


def test_tree_paths_are_those_of_dijkstra() -> None:
    """The shortcut for trees finds the path that the general search finds."""
    network = {**NETWORK, "topology": "tree", "rack_size": 2}
    cluster = build(nodes=[{"name": "n", "count": 5, "devices": 2, **NODE}], network=network)
    for source in range(cluster.rank_count):
        for target in range(cluster.rank_count):
            path = nx.dijkstra_path(cluster.graph, cluster.slots[source], cluster.slots[target], weight=lambda *_: 1)
            assert [edge[0] for edge in cluster.route(source, target)] == path[:-1]


def test_links_by_their_name() -> None:
    """Network, cable and inside of a node from the catalogue; a figure beside the name takes the place of the catalogue's."""
    nodes = [{"name": "a", "devices": 2, **NODE}, {"name": "b", **NODE}]
    cluster = build(
        nodes=nodes,
        network={"link": "infiniband-hdr", "bandwidth": "1600 Gbit/s"},
        intra_node={"link": "nvlink-4"},
    )
    assert (cluster.latency_s(0, 1), cluster.bandwidth_bytes_per_s(0, 1)) == (pytest.approx(1.5e-6), 340e9)
    assert (cluster.latency_s(0, 2), cluster.bandwidth_bytes_per_s(0, 2)) == (pytest.approx(5e-6 + 0.75e-6), 200e9)
    assert any(line.startswith("infiniband-hdr: InfiniBand HDR 4x") for line in cluster.provenance)
    home = build(nodes=nodes, network={"topology": "links"}, links=[{"between": ["a", "b"], "link": "home"}])
    assert home.bandwidth_bytes_per_s(0, 2) == pytest.approx(38.3e6 / 8)


def test_unknown_links_and_devices_are_told_at_once() -> None:
    """Each misspelt name at its key, with the nearest known one."""
    with pytest.raises(ScenarioError) as caught:
        build(nodes=[{"name": "a", "count": 2, "device": "h1000"}], network={"link": "ethernet-100"}, intra_node={"link": "nv-link-4"})
    assert [(mistake.where, mistake.cure) for mistake in caught.value.mistakes][:2] == [
        ("cluster.intra_node.link", "did you mean 'nvlink-4'?"),
        ("cluster.network.link", "did you mean 'ethernet-100g'?"),
    ]
    assert caught.value.mistakes[2].where == "cluster.nodes.0.device"


def test_price_is_the_scenarios_else_the_catalogues() -> None:
    """An L4 costs 0.80 USD an hour; a stated price is of the whole node, and 0 is a price."""
    node = {"name": "n", "device": "l4", "devices": 2}
    assert build(nodes=[node]).devices[0].usd_per_s == pytest.approx(0.80 / 3600)
    assert any("0.80 USD/h" in line and "2026-05" in line for line in build(nodes=[node]).provenance)
    for text, usd_per_hour in (("1 USD/h", 0.5), ("0 USD/h", 0.0)):
        stated = build(nodes=[node | {"price": text}])
        assert stated.devices[0].usd_per_s == pytest.approx(usd_per_hour / 3600)
        assert not any("USD/h" in line for line in stated.provenance)


def test_nodes_of_the_catalogue_have_measured_collectives() -> None:
    """Under NCCL, where the scenario states no link of its own, and where there are several devices; the source is named."""

    def nodes(devices: int = 8, **more: Any) -> Cluster:
        node = {"name": "node", "count": 2, "devices": devices, "device": "a100-sxm-80gb"}
        network = {"bandwidth": "100 GB/s", "latency": "5 us", "backend": more.pop("backend", "nccl")}
        return build_cluster(ClusterSpec.model_validate({"nodes": [node], "network": network, **more}), "bf16")

    cluster = nodes()
    assert list(cluster.node_collectives) == ["node-0", "node-1"]
    assert ("all_reduce", 8) in cluster.node_collectives["node-1"]
    assert any(line.startswith("a100-sxm: thinned from") for line in cluster.provenance)
    without = [nodes(devices=1), nodes(backend="plain"), nodes(intra_node={"bandwidth": "300 GB/s", "latency": "3 us"})]
    assert not any(other.node_collectives for other in without)
    assert cluster.digest != without[-1].digest


def two_shares() -> Cluster:
    """Nodes that are emulated on a calibrated machine of two cores: one of two whole devices, one of a quarter of a core."""
    devices = {1: Device("core", 100.0, 1e9, forward_launch_s=0.5), 2: Device("core", 60.0, 1e9, forward_launch_s=0.5)}
    calibration = Calibration(MachineKey("cpu", 2, "2.13", 1), "2026-11-28", devices, 1e-4, 2e9, {})
    nodes = [{"name": "a", "device": "this-machine", "devices": 2}, {"name": "b", "device": "this-machine", "cpu_share": 0.25}]
    return build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": NETWORK}), "fp32", calibration)


def test_emulated_devices_are_shares_of_the_measured_core() -> None:
    """More than two cores' work keeps both busy; a quarter of a core has a quarter of the rate and four times the fixed time."""
    cluster = two_shares()
    assert [device.flop_per_s for device in cluster.devices] == [60.0, 60.0, 15.0]
    assert [device.forward_launch_s for device in cluster.devices] == [0.5, 0.5, 2.0]
    assert [device.core_share for device in cluster.devices] == [1.0, 1.0, 0.25]
    # The quarter goes to the core that has no more than one.
    assert cluster.hosts == (Host((0, 2), 1.0), Host((1,), 1.0))
    assert cluster.provenance[0] == "calibration of 2026-11-28: cpu, torch 2.13"
    # Within a node as on this machine, between nodes as stated.
    assert cluster.latency_s(0, 1) == pytest.approx(1e-4) and cluster.latency_s(0, 2) == pytest.approx(2e-3 + 0.5e-4)


def test_emulated_nodes_without_calibration_say_so() -> None:
    """The catalogue's core stands in."""
    nodes = [{"name": "a", "device": "this-machine", "cpu_share": 0.5, "price": "1 USD/h", "memory": "1 GB"}]
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": nodes}), "fp32")
    assert any("not calibrated" in source for source in cluster.provenance)
    assert (cluster.devices[0].memory_bytes, cluster.devices[0].usd_per_s) == (1e9, 1 / 3600)


def test_which_nodes_this_machine_emulates() -> None:
    """All of a cluster, or only some of its nodes; slots are counted node by node."""
    here, other = (
        {"name": "a", "device": "this-machine", "count": 2, "devices": 2, "cpu_share": 0.1},
        {"name": "b", "device": "a100-sxm-80gb"},
    )
    only, mixed, elsewhere = (
        ClusterSpec.model_validate({"nodes": nodes, "network": NETWORK}) for nodes in ([here], [here, other], [other])
    )
    assert [emulated(spec) for spec in (only, mixed, elsewhere)] == [True, False, False]
    assert [this_machine_ranks(spec) for spec in (only, mixed, elsewhere)] == [1, 1, 0]
    assert slot_nodes(mixed) == ("a-0", "a-0", "a-1", "a-1", "b")
    assert emulated_core_of(mixed, 2) == {0: 0, 1: 1, 2: 0, 3: 1}
