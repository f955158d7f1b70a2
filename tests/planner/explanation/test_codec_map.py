"""When compression pays: laws of the map, and how bandwidth is changed."""

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.explanation.codec_map import CodecCell, codec_cell, data_parallel, with_bandwidth
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate


def cluster_of(nodes: int, devices: int = 1, **network: object) -> Cluster:
    """Nodes of 1 Tflop/s devices on a switch of 1 GB/s; 10 GB/s within a node."""
    node = {"name": "n", "count": nodes, "devices": devices, "peak": "1 Tflop/s", "memory": "16 GiB", "memory_bandwidth": "100 GB/s"}
    joined = {"bandwidth": "1 GB/s", "latency": "20 us", "topology": "switch"} | network
    spec = {"nodes": [node], "network": joined, "intra_node": {"bandwidth": "10 GB/s", "latency": "2 us"}}
    return build_cluster(ClusterSpec.model_validate(spec), "fp32", None)


def cell_of(bandwidth: float, batch: int = 16) -> CodecCell:
    """A wide network over four nodes."""
    graph, job = mlp([512, 2048, 512], batch), JobSpec(global_batch_size=batch)
    return CodecCell(bandwidth, batch, codec_cell(graph, with_bandwidth(cluster_of(4), bandwidth), job, SearchSpec(), simulate))


def test_more_bandwidth_makes_compression_pay_less() -> None:
    """Law: from 1 MB/s to 1 TB/s the winner's gain over none never grows, and at last nothing is gained."""
    cells = [cell_of(10.0**power) for power in range(6, 13)]
    gains = [cell.speedup or 0.0 for cell in cells]
    assert all(set(cell.step_s) == set(CODECS) for cell in cells)
    assert gains == sorted(gains, reverse=True) and gains[0] > 10
    assert cells[0].winner in ("low-rank", "top-k") and (cells[-1].winner, gains[-1]) == ("none", 1.0)


def test_a_gain_below_a_hundredth_is_none() -> None:
    """By hand: half a percent does not pay; with equal steps the simpler codec wins; without any plan there is no winner."""
    assert CodecCell(1.0, 1, {"none": 1.005, "top-k": 1.0}).winner == "none"
    cell = CodecCell(1.0, 1, {"none": 3.0, "bf16": 2.0, "fp16": 2.0})
    assert (cell.winner, cell.speedup) == ("fp16", 1.5)
    empty = CodecCell(1.0, 1, {})
    assert (empty.winner, empty.speedup) == (None, None)
    assert CodecCell(1.0, 1, {"fp16": 1.0}).speedup == float("inf")


def test_bandwidth_is_that_of_the_narrowest_link_between_nodes() -> None:
    """Links within nodes stay; a tree's uplinks keep their ratio; with one node its own links are meant."""
    changed = with_bandwidth(cluster_of(2, 2), 5e8)
    assert changed.bandwidth_bytes_per_s(0, 2) == 5e8 and changed.bandwidth_bytes_per_s(0, 1) == 10e9
    tree = with_bandwidth(cluster_of(4, topology="tree", rack_size=2, oversubscription=4), 1e8)
    assert tree.bandwidth_bytes_per_s(0, 2) == pytest.approx(1e8) and tree.bandwidth_bytes_per_s(0, 1) == pytest.approx(2e8)
    assert with_bandwidth(cluster_of(1, 2), 1e8).bandwidth_bytes_per_s(0, 1) == 1e8


def test_only_replicas_are_searched() -> None:
    """Every other axis is 1; degrees are those allowed, without 1; none left is a mistake with a cure."""
    search = SearchSpec(pipeline_parallel_degrees=(2,), gradient_codecs=("none",), objective="cost")
    found = data_parallel(search, 3, "top-k")
    assert (found.data_parallel_degrees, found.pipeline_parallel_degrees, found.gradient_codecs) == ((2, 3), (1,), ("top-k",))
    with pytest.raises(ScenarioError, match="leaves no two replicas"):
        data_parallel(SearchSpec(data_parallel_degrees=(1,)), 3, "none")
