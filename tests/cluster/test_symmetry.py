"""Classes of slots that nothing tells apart, and islands of slots that lie close together."""

from itertools import permutations
from time import process_time
from typing import Any

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.scenario.cluster import ClusterSpec

OLD = {"peak": "5 Tflop/s", "memory": "32 GiB"}
NEW = {"peak": "10 Tflop/s", "memory": "16 GiB"}
NETWORK = {"bandwidth": "100 Gbit/s", "latency": "5 us"}
INTRA_NODE = {"bandwidth": "300 GB/s", "latency": "3 us"}


def build(*nodes: dict[str, Any], network: dict[str, Any] | None = None, **tables: Any) -> Cluster:
    """Nodes called n0, n1, ... of a device each, unless they say otherwise."""
    named = [{"name": f"n{index}", **NEW, **node} for index, node in enumerate(nodes)]
    tables = {"nodes": named, "network": NETWORK | (network or {}), "intra_node": INTRA_NODE} | tables
    return build_cluster(ClusterSpec.model_validate(tables), "fp32")


def joined(count: int, edges: list[tuple[int, int]], peaks: list[str]) -> Cluster:
    """Nodes of one device each, joined by equal links."""
    links = [{"between": [f"n{a}", f"n{b}"], "bandwidth": "1 GB/s", "latency": "1 ms"} for a, b in edges]
    return build(*({"peak": peaks[index]} for index in range(count)), network={"topology": "links"}, links=links)


def test_a_line_is_alike_from_both_ends() -> None:
    """By hand: a - b - c - d: the ends are one class, the middle another; another device in d makes all four different."""
    line = [(0, 1), (1, 2), (2, 3)]
    assert joined(4, line, ["1 Tflop/s"] * 4).slot_classes == (0, 1, 1, 0)
    assert joined(4, line, ["1 Tflop/s"] * 3 + ["2 Tflop/s"]).slot_classes == (0, 1, 2, 3)


def test_names_do_not_count_but_prices_and_quotas_do() -> None:
    """Equal nodes of two entries are one class, until something of them differs."""
    assert build({}, {}).slot_classes == (0, 0)
    assert build({}, {"price": "1 USD/h"}).slot_classes == (0, 1)
    assert build({}, {"devices": 2, "quota": 1}).slot_classes == (0, 1, 1)
    spot = {"spot_price": "0.5 USD/h", "time_between_interruptions": "6 h"}
    assert build({"price": "1 USD/h"}, {"price": "1 USD/h", **spot}).slot_classes == (0, 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_an_automorphism_exchanges_is_one_class(data: st.DataObject) -> None:
    """Oracle: all relabellings of a small network that leave it as it is keep every slot in its class; on trees the reverse holds too."""
    count = data.draw(st.integers(2, 6))
    tree = [(data.draw(st.integers(0, index - 1)), index) for index in range(1, count)]
    more = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=3))
    edges = sorted({(min(pair), max(pair)) for pair in (*tree, *more) if pair[0] != pair[1]})
    peaks = [data.draw(st.sampled_from(["1 Tflop/s", "2 Tflop/s"])) for _ in range(count)]
    classes = joined(count, edges, peaks).slot_classes
    exchanged = nx.Graph()
    exchanged.add_nodes_from(range(count))
    for image in permutations(range(count)):
        kept = {(min(image[a], image[b]), max(image[a], image[b])) for a, b in edges} == set(edges)
        if kept and all(peaks[index] == peaks[image[index]] for index in range(count)):
            exchanged.add_edges_from(enumerate(image))
    orbits = [sorted(orbit) for orbit in nx.connected_components(exchanged)]
    assert all(len({classes[slot] for slot in orbit}) == 1 for orbit in orbits)
    if len(edges) == count - 1:
        assert len(orbits) == len(set(classes))


def test_islands_of_an_oversubscribed_tree() -> None:
    """By hand: two nodes to a rack; an uplink as wide as the nodes' own links is still shared by four devices, so racks are seen."""
    cluster = build({"count": 4, "devices": 2}, network={"topology": "tree", "rack_size": 2, "oversubscription": 2})
    assert cluster.islands == ((0, 0, 1, 1, 2, 2, 3, 3), (0, 0, 0, 0, 1, 1, 1, 1), (0,) * 8)
    fair = build({"count": 4, "devices": 2}, network={"topology": "tree", "rack_size": 2})
    assert fair.islands == cluster.islands


def test_sites_are_islands_though_the_link_between_them_is_wide() -> None:
    """By hand: 100 Gbit/s with 15 ms between two sites, whose nodes have 10 Gbit/s: distance counts, not only width."""
    near, far = {"bandwidth": "10 Gbit/s", "latency": "5 us"}, {"bandwidth": "100 Gbit/s", "latency": "15 ms"}
    places = {"n0": "east", "n1": "west", "n2": "east", "n3": "west"}
    links = [{"between": [node, site], **near} for node, site in places.items()] + [{"between": ["east", "west"], **far}]
    sites = {"switches": ["east", "west"], "links": links}
    assert build({}, {}, {}, {}, network={"topology": "links"}, **sites).islands == ((0, 1, 0, 1), (0, 0, 0, 0))
    # Joined to full meshes in place of switches.
    cables = [("n0", "n1"), ("n0", "n2"), ("n1", "n2"), ("n3", "n4"), ("n3", "n5"), ("n4", "n5")]
    links = [{"between": list(pair), **near} for pair in cables] + [{"between": ["n0", "n3"], **far}]
    assert build(*({},) * 6, network={"topology": "links"}, links=links).islands == ((0, 0, 0, 1, 1, 1), (0,) * 6)


def test_a_switch_and_one_device_have_no_islands_but_the_whole() -> None:
    """Nothing to tell apart."""
    assert build({}, {}, {}).islands == ((0, 0, 0),)
    assert (build({}).islands, build({}).slot_classes) == (((0,),), (0,))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=6), st.sampled_from(["switch", "tree", "ring", "full-mesh", "bus"]), st.integers(1, 3)
)
def test_islands_are_nested(devices: list[int], topology: str, rack_size: int) -> None:
    """Law: who shares a narrow island shares all wider ones; the last is the whole; none comes twice."""
    cluster = build(*({"devices": count} for count in devices), network={"topology": topology, "rack_size": rack_size})
    assert set(cluster.islands[-1]) == {0}
    assert len(set(cluster.islands)) == len(cluster.islands)
    for narrow, wide in zip(cluster.islands, cluster.islands[1:], strict=False):
        assert len({*zip(narrow, wide, strict=True)}) == len(set(narrow))


def test_sixteen_thousand_devices_are_quick() -> None:
    """Half old, half new, in racks: two classes, nodes and racks, in a fraction of a second of processor time."""
    nodes = [{"count": 1024, "devices": 8}, {"count": 1024, "devices": 8, **OLD}]
    cluster = build(*nodes, network={"topology": "tree", "rack_size": 16, "oversubscription": 4})
    start_s = process_time()
    assert (len(set(cluster.slot_classes)), [len(set(level)) for level in cluster.islands]) == (2, [2048, 128, 1])
    assert process_time() - start_s < 1.0
