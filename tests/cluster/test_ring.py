"""The order of a ring: neighbours one after the other, found in either way."""

from random import Random
from typing import Any

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.ring import _through_islands, _to_the_nearest, ring_order
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.scenario.cluster import ClusterSpec

TREE = {"topology": "tree", "rack_size": 3, "oversubscription": 4}


def nodes_of(network: dict[str, Any], devices: int = 8) -> Cluster:
    """Twelve nodes of V100."""
    nodes = [{"name": "n", "count": 12, "devices": devices, "device": "v100-sxm2-32gb"}]
    spec: dict[str, Any] = {"nodes": nodes, "network": {"bandwidth": "200 Gbit/s", "latency": "5 us", **network}}
    if devices > 1:
        spec["intra_node"] = {"bandwidth": "300 GB/s", "latency": "3 us"}
    return build_cluster(ClusterSpec.model_validate(spec), "fp16", None)


@pytest.mark.parametrize("network", [{}, TREE])
@pytest.mark.parametrize("seed", range(5))
def test_islands_and_nearest_neighbours_agree_on_trees(network: dict[str, Any], seed: int) -> None:
    """Going through one island after the other is going to the nearest slot that is left, from any start."""
    cluster = nodes_of(network)
    slots = list(range(cluster.rank_count))
    Random(seed).shuffle(slots)
    assert _through_islands(cluster, slots) == _to_the_nearest(cluster, slots) == ring_order(cluster, slots)


def test_a_ring_of_cables_is_followed() -> None:
    """Where the network is a ring itself, the order walks along it."""
    cluster = nodes_of({"topology": "ring"}, devices=1)
    assert ring_order(cluster, [0, 6, 3, 9]) == [0, 3, 6, 9]
