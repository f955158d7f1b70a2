"""What decides a step: by hand, and laws of what-ifs."""

from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.catalogue import find_backend
from chinchilla_sim.cluster.topology import Cluster, Device, Link
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator.sensitivity import WHAT_IFS, Explanation, explain_step, path_shares
from chinchilla_sim.timeline import Span, Timeline

GRAPH = mlp([64, 256, 256, 10], 8)
JOB = JobSpec(global_batch_size=8, optimizer="sgd", precision="fp32")


def cluster_of(latency_s: float, bandwidth: float, flop_per_s: float = 1e9) -> Cluster:
    """Two nodes with a cable."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for edge in (("a/0", "a"), ("a", "a/0"), ("b/0", "b"), ("b", "b/0")):
        graph.add_edge(*edge, link=Link(0.0, float("inf")))
    for edge in (("a", "b"), ("b", "a")):
        graph.add_edge(*edge, link=Link(latency_s, bandwidth))
    return Cluster(graph, ("a/0", "b/0"), (Device("d", flop_per_s, 1e9),) * 2, find_backend("plain"))


def plan_of(stages: int) -> Plan:
    """All tasks on one rank, or cut in the middle."""
    names = tuple(task.name for task in GRAPH.compute_tasks)
    cut = (names,) if stages == 1 else (names[:3], names[3:])
    return Plan(
        stages=cut, placement=tuple((rank,) for rank in range(stages)), slots=tuple(range(stages)), global_batch_size=8, microbatch_count=1,
        schedule="1f1b", gradient_codecs=("none",) * stages, activation_codecs=("none",) * (stages - 1),
    )  # fmt: skip


def explain(stages: int, cluster: Cluster) -> tuple[Explanation, dict[str, float]]:
    """An explanation and its changes by name."""
    found = explain_step(GRAPH, cluster, JOB, plan_of(stages))
    return found, {one.what: one.change for one in found.sensitivities}


def test_one_device_that_only_computes() -> None:
    """All of the step is computation: a tenth more flop/s, a step of 1 / 1.1; nothing on the network matters."""
    found, changes = explain(1, cluster_of(1e-3, 1e6))
    assert (found.binding, found.binding_rank, found.path_shares["computation"]) == ("computation", 0, 1.0)
    assert changes["flop/s + 10 %"] == pytest.approx(1 / 1.1 - 1)
    assert changes["network bandwidth x 2"] == changes["network latency / 2"] == 0.0
    assert found.headroom_bytes < 1e9 and found.utilization == 1.0


def test_two_stages_over_a_slow_cable() -> None:
    """With endless flop/s the step is two messages: twice the bandwidth, half the step; half of it, twice the step."""
    found, changes = explain(2, cluster_of(0.0, 1e6, flop_per_s=1e18))
    assert found.binding == "transfer"
    assert changes["network bandwidth x 2"] == pytest.approx(-0.5, abs=1e-3)
    assert changes["network bandwidth / 2"] == pytest.approx(1.0, abs=1e-3)
    assert found.sensitivities[0].what == "network bandwidth x 2"


def test_a_cable_that_is_only_far() -> None:
    """Two latencies on the way there and back: half the latency, half the step."""
    _, changes = explain(2, cluster_of(1.0, 1e15, flop_per_s=1e18))
    assert changes["network latency / 2"] == pytest.approx(-0.5, abs=1e-3)


@given(st.floats(1e-6, 1e-2), st.floats(1e5, 1e10), st.floats(1e8, 1e13))
@settings(max_examples=30, deadline=None)
def test_better_machines_are_never_slower(latency_s: float, bandwidth: float, flop_per_s: float) -> None:
    """Every what-if but the halved bandwidths improves a pipeline or leaves it."""
    found, changes = explain(2, cluster_of(latency_s, bandwidth, flop_per_s))
    assert all(change <= 0 for what, change in changes.items() if "bandwidth / 2" not in what and what in WHAT_IFS)
    assert all(change >= 0 for what, change in changes.items() if "bandwidth / 2" in what)
    assert sum(found.path_shares.values()) == pytest.approx(1.0)


def test_the_path_counts_every_moment_once() -> None:
    """Two overlapping spans and a gap: 2 s of computation, 1 s more of transfer, 1 s of waiting, 1 s of the optimizer."""
    spans = (
        Span(0, "compute", "forward", "0F0", 0.0, 2.0),
        Span(0, "send", "transfer", "0F0", 1.0, 3.0),
        Span(1, "compute", "optimizer", "OPTIM", 4.0, 5.0),
    )
    shares, rank = path_shares(replace(Timeline(2, spans), critical_path=(0, 1, 2)))
    assert (shares, rank) == ({"computation": 0.4, "optimizer": 0.2, "transfer": 0.2, "waiting": 0.2}, 0)
