"""Packets on emulated wires, by hand: when they arrive, what they wait for, what is lost."""

from typing import Any

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.runtime.emulated.fabric import FRAME_BYTES, HEADER_BYTES, QUEUE_BYTES, Fabric, Wire, Wiring, address_of, destination_of
from chinchilla_sim.runtime.emulated.testbed import wiring_of
from chinchilla_sim.scenario.cluster import ClusterSpec


def packet(target: int, size: int) -> bytes:
    """An IPv4 packet for a node that takes so many bytes on the wire."""
    address = bytes(map(int, address_of(target).split(".")))
    header = bytes(HEADER_BYTES) + bytes([0x45]) + bytes(15) + address
    return header + bytes(size - FRAME_BYTES - 20)


def wiring(*wires: Wire) -> Wiring:
    """Nodes a, b, c around a switch s."""
    numbers = {(wire.source, wire.target): index for index, wire in enumerate(wires)}
    nodes = ("a", "b", "c")
    routes = {
        (one, other): (numbers[nodes[one], "s"], numbers["s", nodes[other]]) for one in range(3) for other in range(3) if one != other
    }
    return Wiring(nodes, wires, routes)


def star(medium: str = "", slow: float = 1000.0) -> Wiring:
    """Wires of 1000 bytes/s and 1 s; the one to c has another bandwidth."""
    ends = [(node, "s") for node in "abc"] + [("s", node) for node in "abc"]
    return wiring(*(Wire(a, b, 1.0, slow if b == "c" else 1000.0, medium or f"{a}{b}") for a, b in ends))


def arrivals(fabric: Fabric) -> list[tuple[float, int]]:
    """When each packet is at its node, and at which."""
    found = []
    while fabric.next_s < float("inf"):
        now_s = fabric.next_s
        found += [(now_s, target) for target, _ in fabric.arrived(now_s)]
    return found


def test_a_packet_takes_its_latencies_and_one_transfer() -> None:
    """Wires of equal rate pass a packet on while it arrives: 500 bytes take 0.5 s once, and 1 s on each hop."""
    fabric = Fabric(star())
    fabric.admit(0, packet(1, 500), 10.0)
    assert arrivals(fabric) == [(pytest.approx(12.5), 1)]
    assert (fabric.wire_bytes[0], fabric.wire_bytes[4], sum(fabric.wire_packets)) == (500, 500, 2)


def test_the_narrowest_wire_decides() -> None:
    """On a route over 1000 and 100 bytes/s, 500 bytes take 5 s, wherever the narrow wire is."""
    fabric = Fabric(star(slow=100.0))
    fabric.admit(0, packet(2, 500), 0.0)
    assert arrivals(fabric) == [(pytest.approx(7.0), 2)]


def test_packets_to_one_node_wait_for_each_other() -> None:
    """Two nodes send 500 bytes to a third at once: the second packet is there one transfer later; back to back it is the same."""
    together, behind = Fabric(star()), Fabric(star())
    for source in (0, 1):
        together.admit(source, packet(2, 500), 0.0)
    for _ in range(2):
        behind.admit(0, packet(2, 500), 0.0)
    expected = [(pytest.approx(2.5), 2), (pytest.approx(3.0), 2)]
    assert arrivals(together) == expected and arrivals(behind) == expected


def test_ways_of_a_full_duplex_cable_do_not_meet_and_those_of_a_medium_do() -> None:
    """Three nodes that send around are done together, unless all wires are one medium: there each packet takes its turn, once."""
    for medium, expected in (("", [2.5, 2.5, 2.5]), ("ether", [2.5, 3.0, 3.5])):
        fabric = Fabric(star(medium))
        for node in range(3):
            fabric.admit(node, packet((node + 1) % 3, 500), 0.0)
        assert [at_s for at_s, _ in arrivals(fabric)] == pytest.approx(expected)


def test_a_node_waits_for_its_wire() -> None:
    """A node with one cable may send again just before that is idle."""
    fabric = Fabric(star())
    assert fabric.free_s(0) <= 0.0
    fabric.admit(0, packet(1, 500), 2.0)
    assert 2.49 < fabric.free_s(0) <= 2.5
    assert fabric.free_s(1) <= 0.0


def test_only_an_absurd_queue_loses_packets_and_they_are_counted() -> None:
    """What waits behind QUEUE_BYTES is dropped; packets for nobody vanish without a count."""
    fabric = Fabric(star(slow=1.0))
    count = QUEUE_BYTES // 60_000 + 2
    for _ in range(count):
        fabric.admit(0, packet(2, 60_000), 0.0)
    delivered = len(arrivals(fabric))
    assert fabric.drops == count - delivered > 0
    assert destination_of(b"\x00" * 60) is None
    fabric.admit(0, bytes(60), 0.0)
    assert fabric.drops == count - delivered


NODES = [{"name": "a", "device": "this-machine"}, {"name": "b", "device": "this-machine", "devices": 2, "count": 2}]


@pytest.mark.parametrize("topology", ["switch", "tree", "ring", "full-mesh", "bus"])
def test_wires_are_those_between_nodes_with_the_latency_and_bandwidth_of_the_routes(topology: str) -> None:
    """In every topology a route has the latency and bandwidth between its nodes, and survives the way through JSON."""
    network: dict[str, Any] = {"topology": topology, "bandwidth": "80 Mbit/s", "latency": "2 ms", "rack_size": 2}
    cluster = build_cluster(ClusterSpec.model_validate({"nodes": NODES, "network": network}), "fp32")
    found = wiring_of(cluster)
    assert found.nodes == ("a", "b-0", "b-1") and len(found.routes) == 6
    assert not any("/0" in wire.source + wire.target for wire in found.wires)
    inner_s = cluster.link(("b-0/0", "b-0")).latency_s
    for (source, target), route in found.routes.items():
        slots = [cluster.first_slot(found.nodes[end]) or 0 for end in (source, target)]
        inside_s = sum(inner_s for end in (source, target) if end)
        assert sum(found.wires[wire].latency_s for wire in route) == pytest.approx(cluster.latency_s(*slots) - inside_s)
        assert min(found.wires[wire].bandwidth_bytes_per_s for wire in route) == pytest.approx(10e6)
    assert Wiring.from_dict(found.to_dict()) == found
    if topology == "bus":
        assert len({wire.medium for wire in found.wires}) == 1
