"""Who sends how much to whom: by hand, and against what the timeline says."""

from dataclasses import replace

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.graph.zoo import FORMULAS, mlp
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Exchange
from chinchilla_sim.planner.pricing.traffic import (
    ACTIVATION_GRADIENTS,
    ACTIVATIONS,
    GRADIENTS,
    INSIDE,
    WEIGHTS,
    Traffic,
    pattern,
    traffic_of,
)
from chinchilla_sim.planner.program import lower
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator.engine import simulate

GRAPH = mlp([64, 32, 32, 10], 8)
NAMES = tuple(task.name for task in GRAPH.compute_tasks)


def cluster_of(nodes: int, devices: int = 1) -> Cluster:
    """Equal nodes around a switch."""
    node = {"name": "n", "count": nodes, "devices": devices, "peak": "1 Tflop/s", "memory": "64 GiB"}
    tables = {"nodes": [node], "network": {"bandwidth": "10 Gbit/s", "latency": "10 us"}}
    return build_cluster(ClusterSpec.model_validate(tables), "fp32")


def plan_of(stages: int, replicas: int, **changes: object) -> Plan:
    """Stages cut evenly, replicas side by side, two microbatches."""
    cut = [NAMES[len(NAMES) * stage // stages : len(NAMES) * (stage + 1) // stages] for stage in range(stages)]
    placement = tuple(tuple(stage * replicas + replica for replica in range(replicas)) for stage in range(stages))
    plan = Plan(
        stages=tuple(cut), placement=placement, slots=tuple(range(stages * replicas)), global_batch_size=8, microbatch_count=2,
        schedule="1f1b", gradient_codecs=("none",) * stages, activation_codecs=("none",) * (stages - 1),
    )  # fmt: skip
    return replace(plan, **changes)  # type: ignore[arg-type]


def flows(plan: Plan, cluster: Cluster, folded: bool = False) -> Traffic:
    """The traffic of a plan of the small network."""
    pricer = Pricer(GRAPH, cluster, JobSpec(global_batch_size=8, optimizer="adam"))
    pricing = pricer.price(plan)
    return traffic_of(plan, pricing, simulate(lower(plan, folded), pricing, cluster), pricer)


def test_messages_of_two_stages_by_hand() -> None:
    """Two microbatches of four samples of 32 values of 4 bytes go forward, as many gradients come back."""
    cluster, plan = cluster_of(2), plan_of(2, 1)
    pricing = Pricer(GRAPH, cluster, JobSpec(global_batch_size=8)).price(plan)
    found = {(flow.source, flow.target, flow.what): flow.bytes for flow in flows(plan, cluster).flows}
    assert found == {
        (0, 1, ACTIVATIONS): 2 * pricing.boundary_bytes[0],
        (1, 0, ACTIVATION_GRADIENTS): 2 * pricing.boundary_gradient_bytes[0],
    }
    assert pricing.boundary_bytes[0] == 4 * 32 * 4


def test_gradients_go_around_a_ring_by_hand() -> None:
    """Of n bytes each of four replicas sends 2 * 3/4 n to the next one, in the order of the ring."""
    cluster, plan = cluster_of(4), plan_of(1, 4, collective_algorithm="ring", microbatch_count=1)
    found = flows(plan, cluster).flows
    size = GRAPH.total_parameter_bytes
    assert {(flow.source, flow.target) for flow in found} == {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert {flow.what for flow in found} == {GRADIENTS}
    assert [flow.bytes for flow in found] == [pytest.approx(1.5 * size)] * 4


@pytest.mark.parametrize("changes", [{}, {"zero_stage": 1}, {"zero_stage": 3, "gradient_buckets": 2}, {"local_steps": 3}])
def test_sums_are_those_of_the_timeline(changes: dict[str, object]) -> None:
    """What the slots of a rank send adds up to what its spans say, with sharding and local steps too."""
    cluster, plan = cluster_of(4), plan_of(2, 2, collective_algorithm="ring", microbatch_count=2, **changes)
    pricer = Pricer(GRAPH, cluster, JobSpec(global_batch_size=8, optimizer="adam"))
    pricing = pricer.price(plan)
    timeline = simulate(lower(plan), pricing, cluster)
    found = traffic_of(plan, pricing, timeline, pricer)
    for rank in range(plan.rank_count):
        assert sum(flow.bytes for flow in found.flows if flow.source == rank) == pytest.approx(timeline.sent_bytes(rank))
    assert any(flow.what == WEIGHTS for flow in found.flows) == bool(plan.zero_stage)


GPT = {"layers": 2, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 128}


@pytest.mark.parametrize(
    ("changes", "experts"),
    [
        ({"tensor_parallel_degree": 2}, 0),
        ({"tensor_parallel_degree": 2, "recompute": ("full", "none"), "schedule": "zb-h1"}, 0),
        ({"tensor_parallel_degree": 2, "sequence_parallel": True, "zero_stage": 3, "gradient_buckets": 2}, 0),
        ({"context_parallel_degree": 2}, 0),
        ({"expert_parallel_degree": 2}, 4),
    ],
)
def test_sums_are_those_of_the_timeline_inside_passes_too(changes: dict[str, object], experts: int) -> None:
    """What a rank's span says of all the collectives inside a pass is what its slots exchange along every axis."""
    options = GPT | ({"experts": experts, "key_value_heads": 4, "inner_width": 96} if experts else {})
    graph = FORMULAS["mixture_of_experts" if experts else "gpt"](batch_size=8, training=True, value_bytes=4.0, **options)
    names, width = [task.name for task in graph.compute_tasks], 1 if experts else 2
    # Between two layers one tensor crosses.
    ends = [end for end in range(1, len(names)) if len(graph.live_after(graph.position[names[end - 1]])) == 1]
    half = min(ends, key=lambda end: abs(end - len(names) / 2))
    stages = (tuple(names[:half]), tuple(names[half:]))
    plan = replace(plan_of(2, 2, collective_algorithm="ring", **changes), stages=stages, slots=tuple(range(4 * width)))
    cluster = cluster_of(4, devices=width)
    pricer = Pricer(graph, cluster, JobSpec(global_batch_size=8, optimizer="adam"))
    plan = pricer.completed(plan)
    pricing = pricer.price(plan)
    timeline = simulate(lower(plan), pricing, cluster)
    found = traffic_of(plan, pricing, timeline, pricer).flows
    for rank in range(plan.rank_count):
        sent = sum(flow.bytes for flow in found if flow.source in plan.slots_of(rank))
        assert sent == pytest.approx(timeline.sent_bytes(rank)), rank
    assert any(flow.what in INSIDE.values() for flow in found)


def test_zero_3_sends_its_weights_with_every_pass_by_hand() -> None:
    """Of n bytes each of four replicas sends 3/4 n to gather them, forward and back in both microbatches, and as much for its gradients."""
    cluster, plan = cluster_of(4), plan_of(1, 4, collective_algorithm="ring", global_batch_size=8, microbatch_count=2, zero_stage=3)
    pricing = Pricer(GRAPH, cluster, JobSpec(global_batch_size=8, optimizer="adam")).price(plan)
    timeline = simulate(lower(plan), pricing, cluster)
    assert [timeline.sent_bytes(rank) for rank in range(4)] == [pytest.approx(6 * 0.75 * GRAPH.total_parameter_bytes)] * 4


def test_a_replica_that_stands_for_all_speaks_for_all() -> None:
    """Folded or not, the same bytes go the same ways, and every rank is as busy."""
    cluster, plan = cluster_of(4), plan_of(2, 2, collective_algorithm="ring")
    whole, folded = flows(plan, cluster), flows(plan, cluster, folded=True)
    assert {flow[:5]: flow.bytes for flow in whole.flows} == {flow[:5]: pytest.approx(flow.bytes) for flow in folded.flows}
    pricing = Pricer(GRAPH, cluster, JobSpec(global_batch_size=8, optimizer="adam")).price(plan)
    one, all_of_them = (simulate(lower(plan, fold), pricing, cluster) for fold in (True, False))
    assert one.bubble_fraction == pytest.approx(all_of_them.bubble_fraction, rel=1e-4)
    assert [one.peak_memory_bytes(rank) for rank in range(4)] == [all_of_them.peak_memory_bytes(rank) for rank in range(4)]


def test_links_carry_what_passes_them() -> None:
    """Two slots of a node that talk inside it leave its uplink alone; others load every edge of their way."""
    cluster = cluster_of(2, devices=2)
    loads = flows(plan_of(4, 1), cluster).over_links(cluster)
    assert loads["n-0", "network/switch"] == loads["network/switch", "n-1"] > 0
    inner = flows(plan_of(2, 1), cluster).over_links(cluster)
    assert ("n-0", "network/switch") not in inner and inner["n-0/0", "n-0"] > 0


def test_tensor_parallelism_is_counted_inside_passes() -> None:
    """By Megatron's count: 2 all-reduces of the hidden state per layer forward, 2 backward, and what embedding and loss add."""
    options = {"layers": 2, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 128}
    graph, cluster = FORMULAS["gpt"](batch_size=8, training=True, value_bytes=4.0, **options), cluster_of(1, devices=2)
    names = (tuple(task.name for task in graph.compute_tasks),)
    plan = Plan(
        stages=names, placement=((0,),), slots=(0, 1), global_batch_size=8, microbatch_count=2, schedule="1f1b", gradient_codecs=("none",),
        activation_codecs=(), tensor_parallel_degree=2,
    )  # fmt: skip
    pricer = Pricer(graph, cluster, JobSpec(global_batch_size=8))
    pricing = pricer.price(plan)
    found = [
        flow for flow in traffic_of(plan, pricing, simulate(lower(plan), pricing, cluster), pricer).flows if flow.what == INSIDE["tensor"]
    ]
    hidden_bytes = 8 * 16 * 64 * 4.0
    assert [(flow.source, flow.target) for flow in found] == [(0, 1), (1, 0)]
    # An all-reduce between two sends as many bytes as it has.
    assert all(8 * hidden_bytes <= flow.bytes <= 12 * hidden_bytes for flow in found)


@pytest.mark.parametrize("algorithm", ["ring", "halving-doubling", "hierarchical"])
def test_every_algorithm_sends_what_a_ring_sends(algorithm: str) -> None:
    """Each of them sends 2 (p-1)/p of the payload per member; only along other ways."""
    cluster = cluster_of(2, devices=2)
    exchange = Exchange("all_reduce", 8.0, sent_bytes=12.0, algorithm=algorithm, orders=((0, 1, 2, 3),))
    sent = dict.fromkeys(range(4), 0.0)
    for source, _, share in pattern(exchange, (0, 1, 2, 3), cluster):
        sent[source] += share
    assert list(sent.values()) == [pytest.approx(1.5)] * 4
