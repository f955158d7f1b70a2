"""Prices of a plan's actions, worked out by hand, and what the memory of a rank holds."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.cost.collective import ring_all_gather_s, ring_all_reduce_s
from chinchilla_sim.graph.profile import Profile, TaskTime
from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import lower, passes_of
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator.engine import simulate

DEVICE = Device(
    "d", flop_per_s=1000.0, memory_bytes=1e9, forward_fixed_s=0.5, backward_fixed_s=0.25, step_fixed_s=2.0,
    optimizer_bandwidth_bytes_per_s=100.0, elementwise_bandwidth_bytes_per_s=10.0, elementwise_launch_s=1.0,
)  # fmt: skip
LINK = Link(latency_s=1.0, bandwidth_bytes_per_s=10.0)


def cluster_of(device: Device, count: int) -> Cluster:
    """Equal devices, a cable for every pair."""
    slots = tuple(f"slot{index}" for index in range(count))
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(slots)
    graph.add_edges_from(((a, b) for a in slots for b in slots if a != b), link=LINK)
    return Cluster(graph, slots, (device,) * count, Backend("plain"))


def plan_of(graph: TaskGraph, ends: list[int], replicas: int = 1, **changes: Any) -> Plan:
    """Stages that end at the given tasks, one microbatch of the graph's whole batch for each replica."""
    names = [task.name for task in graph.compute_tasks]
    stages = tuple(tuple(names[first:end]) for first, end in zip([0, *ends[:-1]], ends, strict=True))
    plan = Plan(
        stages=stages,
        placement=tuple(tuple(stage * replicas + replica for replica in range(replicas)) for stage in range(len(ends))),
        slots=tuple(range(len(ends) * replicas)),
        global_batch_size=graph.batch_size,
        microbatch_count=1,
        schedule="gpipe",
        gradient_codecs=("none",) * len(ends),
        activation_codecs=("none",) * (len(ends) - 1),
    )
    return replace(plan, **changes)


def price(graph: TaskGraph, plan: Plan, device: Device = DEVICE, **job: Any) -> Pricing:
    """Prices on equal devices."""
    return Pricer(graph, cluster_of(device, plan.rank_count), JobSpec(global_batch_size=plan.global_batch_size, **job)).price(plan)


CHAIN = chain(4, 40, 12_000.0, 80.0, batch_size=8)
"""Four tasks, each 1,000 flop a pass and gradient, 10 parameters (40 B) and 80 B of output."""


def test_seconds_of_a_stage_by_hand() -> None:
    """Two of four tasks, a quarter of the batch: 2 x 250 flop forward, twice that back, and the fixed times; 3 x 80 B to accumulate."""
    first = price(CHAIN, plan_of(CHAIN, [2, 4], microbatch_count=4)).stages[0][0]
    assert first.action_s[Op.F] == pytest.approx(0.5 + 500 / 1000)
    assert first.action_s[Op.B] == pytest.approx(0.25 + 1000 / 1000)
    assert first.compute_s(Op.B, first=False) == pytest.approx(first.action_s[Op.B] + 3 * 80 / 10)
    assert first.action_s[Op.OPTIM] == pytest.approx(2.0 + 28 * 20 / 100)


def test_first_backward_pass_alone_does_not_accumulate() -> None:
    """Microbatch 0 writes its gradients, every later one adds to them."""
    pricing = price(CHAIN, plan_of(CHAIN, [4], microbatch_count=4))
    price_of = pricing.stages[0][0]
    assert price_of.compute_s(Op.B, first=True) == price_of.action_s[Op.B]
    assert price_of.compute_s(Op.B, first=False) == price_of.action_s[Op.B] + price_of.accumulation_s
    assert price_of.accumulation_s == 3 * 160 / 10


def test_boundary_by_hand() -> None:
    """One output of 80 B crosses; a quarter of the batch is 20 B, 5 values: 10 B in fp16, 9 B in int8 with its scale."""
    for codec, payload in (("none", 20), ("fp16", 10), ("bf16", 10), ("int8", 5 + 4)):
        pricing = price(CHAIN, plan_of(CHAIN, [2, 4], microbatch_count=4, activation_codecs=(codec,)))
        assert pricing.boundary_bytes == pricing.boundary_gradient_bytes == (payload,)
        assert pricing.message_bytes("F", 0) == pricing.message_bytes("B", 0) == payload


def test_activation_codec_is_paid_at_both_ends_by_hand() -> None:
    """fp16 of 20 values: one kernel and 6 B each to pack and to unpack, forward and back."""
    (lower,), (upper,) = price(CHAIN, plan_of(CHAIN, [2, 4], activation_codecs=("fp16",))).stages
    packing_s = 1.0 + 6 * 20 / 10
    assert (lower.action_s[Op.ENCODE_F], lower.action_s[Op.DECODE_B]) == (packing_s, packing_s)
    assert (upper.action_s[Op.DECODE_F], upper.action_s[Op.ENCODE_B]) == (packing_s, packing_s)


def test_input_that_travels_has_no_gradient_on_the_way_back() -> None:
    """A skip from the model's input crosses forward; only what needs a gradient comes back."""
    tasks = (Task("x", INPUT_OP, output_bytes=16, needs_gradient=False), Task("a", "y", output_bytes=8), Task("b", "y", output_bytes=4))
    graph = TaskGraph("skip", 1, tasks, (("x", "a"), ("a", "b"), ("x", "b")))
    pricing = price(graph, plan_of(graph, [1, 2]))
    assert (pricing.boundary_bytes, pricing.boundary_gradient_bytes) == ((24,), (8,))


@pytest.mark.parametrize(("codec", "payload"), [("none", 160), ("fp16", 80), ("int8", 44)])
def test_gradient_exchange_by_hand(codec: str, payload: float) -> None:
    """160 B of gradients: summable ones are reduced in a ring, int8 is gathered; all but fp16 are copied into the bucket first."""
    pricing = price(CHAIN, plan_of(CHAIN, [4], replicas=2, gradient_codecs=(codec,)))
    collective = ring_all_gather_s if codec == "int8" else ring_all_reduce_s
    (exchange,) = pricing.gradients
    assert (exchange.payload_bytes, exchange.sent_bytes) == (payload, payload)
    assert exchange.idle_s == pytest.approx(collective(payload, 2, LINK, Backend("plain")))
    copying_s = 0.0 if codec == "fp16" else 1.0 + 2 * 160 / 10
    encoding_s = {"none": 0.0, "fp16": 1.0 + 6 * 40 / 10, "int8": 9.0 + 29 * 40 / 10}[codec]
    decoding_s = {"none": 0.0, "fp16": 1.0 + 6 * 40 / 10, "int8": 2.0 + 13 * 40 / 10 + 2.0 + 17 * 40 / 10}[codec]
    assert pricing.stages[0][0].action_s[Op.ENCODE_GRAD] == pytest.approx(copying_s + encoding_s)
    assert pricing.stages[0][0].action_s[Op.DECODE_GRAD] == pytest.approx(decoding_s)


def test_measured_collective_is_preferred() -> None:
    """Where the cluster has a table for so many ranks, seconds are interpolated in it."""
    plan = plan_of(CHAIN, [4], replicas=2)
    cluster = replace(cluster_of(DEVICE, 2), node_collectives={"": {("all_reduce", 2): ((0.0, 1.0), (320.0, 5.0))}})
    assert Pricer(CHAIN, cluster, JobSpec(global_batch_size=8)).price(plan).gradients[0].idle_s == 3.0


def test_memory_of_a_rank_by_hand() -> None:
    """Adam holds 16 B per parameter; saved inputs are distinct tensors; two replicas add the bucket and its payload."""
    alone = price(CHAIN, plan_of(CHAIN, [4], microbatch_count=4)).stages[0][0]
    assert (alone.held_bytes, alone.saved_bytes) == (40 * 16, 4 * 20)
    plan = plan_of(CHAIN, [4], microbatch_count=4)
    assert price(CHAIN, plan).peak_bytes(plan, 0, passes_of(plan, 0)[0]) == 640 + 4 * 80
    pair = price(CHAIN, plan_of(CHAIN, [4], replicas=2, gradient_codecs=("int8",))).stages[0][0]
    assert pair.held_bytes == 640 + 160 + 2 * 44
    # 40 values are one of top-k's with its index, and a residual as large as the gradients.
    sparse = price(CHAIN, plan_of(CHAIN, [4], replicas=2, gradient_codecs=("top-k",))).stages[0][0]
    assert sparse.held_bytes == 640 + 160 + 2 * 8 + 160 and sparse.held_parts["error feedback"] == 160


def test_low_rank_takes_two_rounds_and_the_shapes_of_the_weights() -> None:
    """64 x 32 and 32 x 16 with biases: 4 (64 + 32) + 32 and 4 (32 + 16) + 16 values, half of them in each of two all-reduces."""
    graph = mlp([64, 32, 16], 8)
    cluster = cluster_of(DEVICE, 2)
    plan = plan_of(graph, [len(graph.compute_tasks)], replicas=2, gradient_codecs=("low-rank",))
    pricing = Pricer(graph, cluster, JobSpec(global_batch_size=8)).price(plan)
    payload = 4.0 * (4 * 96 + 32 + 4 * 48 + 16)
    (exchange,) = pricing.gradients
    assert (exchange.kind, exchange.payload_bytes, exchange.rounds) == ("all_reduce", payload, 2)
    assert exchange.idle_s == pytest.approx(2 * ring_all_reduce_s(payload / 2, 2, LINK, Backend("plain")))
    spans = [span for span in simulate(lower(plan), pricing, cluster).spans if span.category == "collective"]
    assert [span.duration_s for span in spans] == pytest.approx([exchange.idle_s / 2] * 4)
    assert 0 < pricing.stages[0][0].between_rounds_s < pricing.stages[0][0].action_s[Op.DECODE_GRAD]
    assert step_lower_bound_s(plan, pricing, cluster) == pytest.approx(simulate(lower(plan), pricing, cluster).step_s)
    assert pricing.stages[0][0].held_parts["error feedback"] == 4.0 * (64 * 32 + 32 + 32 * 16 + 16)


def test_saved_tensor_counts_once() -> None:
    """ReLU keeps its output and the next layer its input: the same tensor. 784-512-10 keeps input, hidden, scores, their logs."""
    graph = mlp([784, 512, 10], 64)
    assert price(graph, plan_of(graph, [4])).stages[0][0].saved_bytes == 4 * 64 * (784 + 512 + 10 + 10)


def test_inference_keeps_weights_and_what_is_still_read() -> None:
    """No gradients, no optimizer state, nothing saved: most is there while relu reads one tensor and makes another."""
    graph = mlp([784, 512, 10], 64, training=False)
    plan = plan_of(graph, [3], schedule="forward")
    pricing = price(graph, plan, kind="inference")
    held = pricing.held_bytes(plan, 0)
    assert (held, pricing.peak_bytes(plan, 0, passes_of(plan, 0)[0]) - held) == (4 * 407_050, 2 * 4 * 64 * 512)


def test_unused_stage_costs_of_a_busy_machine() -> None:
    """With measurements for busy neighbours, a plan of two ranks is priced with those of two."""
    devices = {1: DEVICE, 2: replace(DEVICE, flop_per_s=500.0)}
    cluster = replace(cluster_of(DEVICE, 2), crowded=devices)
    pricer = Pricer(CHAIN, cluster, JobSpec(global_batch_size=8))
    alone, together = pricer.price(plan_of(CHAIN, [4])), pricer.price(plan_of(CHAIN, [2, 4]))
    assert alone.stages[0][0].action_s[Op.F] == pytest.approx(0.5 + 4000 / 1000)
    assert together.stages[0][0].action_s[Op.F] == pytest.approx(0.5 + 2000 / 500)


def test_times_of_so_many_busy_ranks_hold_for_fewer() -> None:
    """Tasks that were measured with four busy ranks take as long with three, which nobody measured (a pass has 0.5 s of its own)."""
    times = tuple(TaskTime(task.name, 8, 1.0, 2.0, busy_ranks=4) for task in CHAIN.compute_tasks)
    cluster = replace(cluster_of(DEVICE, 4), crowded={1: DEVICE, 4: DEVICE})
    pricing = Pricer(CHAIN, cluster, JobSpec(global_batch_size=8), Profile(times)).price(plan_of(CHAIN, [1, 2, 4]))
    assert [row[0].action_s[Op.F] for row in pricing.stages] == [1.5, 1.5, 2.5]


@pytest.fixture(scope="module")
def frozen_job() -> Any:
    """Two linear layers of which only the second learns."""

    class Job:
        def model(self) -> nn.Module:
            """A fresh module."""
            model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
            model[0].requires_grad_(False)
            return model

        def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
            """Zeros."""
            return torch.zeros(size, 8), torch.zeros(size, dtype=torch.int64)

    return Job()


@pytest.mark.parametrize("training", [True, False])
def test_frozen_weights_are_held(frozen_job: Any, training: bool) -> None:
    """Weights that do not learn take memory: all 144 of them in inference, and beside 16 B for each that learns in training."""
    graph = trace_job(frozen_job, 4, training, "frozen")
    plan = plan_of(graph, [len(graph.compute_tasks)], schedule="gpipe" if training else "forward")
    held = price(graph, plan, kind="training" if training else "inference").stages[0][0].held_bytes
    assert held == (72 * 4 + 72 * 16 if training else 144 * 4)


def test_no_more_buffers_than_receives() -> None:
    """With one microbatch a stage receives one activation or gradient at a time: one buffer of 80 B, not eight."""
    (lower,), (upper,) = price(CHAIN, plan_of(CHAIN, [2, 4])).stages
    assert [rank.held_bytes - 20 * 16 for rank in (lower, upper)] == [80, 80]


@pytest.mark.parametrize(("codec", "payload"), [("fp16", 40), ("bf16", 40), ("int8", 20 + 4)])
def test_half_precision_does_not_shrink_twice(codec: str, payload: float) -> None:
    """20 values of a bf16 job are 40 B; a 16-bit codec changes nothing, int8 sends a byte each and the scale."""
    graph = chain(4, 40, 12_000.0, 40.0, batch_size=8, value_bytes=2.0)
    pricing = price(graph, plan_of(graph, [2, 4], activation_codecs=(codec,)), precision="bf16")
    assert pricing.boundary_bytes == (payload,)


def half_and_full() -> Iterator[tuple[str, TaskGraph]]:
    """The same network in both precisions."""
    return ((precision, mlp([6, 5, 4, 3], 2, value_bytes=size)) for precision, size in (("bf16", 2.0), ("fp32", 4.0)))


def test_half_precision_halves_what_crosses() -> None:
    """Without a codec a bf16 job sends 2 B per value and keeps 2 B per saved value."""
    half, full = (price(graph, plan_of(graph, [2, 6]), precision=precision) for precision, graph in half_and_full())
    assert half.boundary_bytes[0] == full.boundary_bytes[0] / 2 == 20
    assert half.stages[0][0].saved_bytes == full.stages[0][0].saved_bytes / 2


def test_half_precision_halves_memory_traffic() -> None:
    """On a device bound by memory the forward pass of a bf16 job takes half the time of fp32."""
    device = Device("bound by memory", float("inf"), 1e9, memory_bandwidth_bytes_per_s=100.0)
    seconds = {
        precision: price(graph, plan_of(graph, [5]), device, precision=precision).stages[0][0].action_s[Op.F]
        for precision, graph in half_and_full()
    }
    assert seconds["bf16"] == pytest.approx(seconds["fp32"] / 2)
