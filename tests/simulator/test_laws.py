"""Laws of every simulated step, over random plans of random jobs on random clusters, and an independent interpreter."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.action import COMPUTES, SENDS, Action, Op, message_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import lower, needs, passes_of
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline

TIGHT = 1 + 1e-9
CODECS = ["none", "fp16", "bf16", "int8"]


@dataclass(frozen=True)
class Case:
    """A plan with what it is simulated from."""

    graph: TaskGraph
    cluster: Cluster
    job: JobSpec
    plan: Plan

    @property
    def pricing(self) -> Pricing:
        """Prices of the plan."""
        return Pricer(self.graph, self.cluster, self.job).price(self.plan)

    def play(self) -> Timeline:
        """The simulated step."""
        return simulate(lower(self.plan), self.pricing, self.cluster)


graphs = st.one_of(
    st.builds(mlp, st.lists(st.integers(1, 300), min_size=5, max_size=7), st.just(24)),
    st.builds(chain, st.integers(4, 8), st.integers(0, 10**6), st.floats(1e6, 1e11), st.floats(0, 1e7), st.just(24)),
)


@st.composite
def clusters(draw: st.DrawFn, nodes: int, devices: int, topologies: Sequence[str], backends: Sequence[str]) -> Cluster:
    """Nodes of different speed on a network from slow to fast."""
    tables: dict[str, Any] = {
        "nodes": [
            {
                "name": f"n{index}",
                "devices": devices,
                "peak": f"{draw(st.sampled_from([10, 100, 1000]))} Gflop/s",
                "memory": "64 GiB",
                "memory_bandwidth": f"{draw(st.sampled_from([1, 30]))} GB/s",
            }
            for index in range(nodes)
        ],
        "network": {
            "bandwidth": f"{draw(st.sampled_from([10, 100, 1000, 10000]))} Mbit/s",
            "latency": f"{draw(st.sampled_from([0, 10, 1000, 20000]))} us",
            "topology": draw(st.sampled_from(topologies)),
            "backend": draw(st.sampled_from(backends)),
        },
        "intra_node": {"bandwidth": "8 Gbit/s", "latency": "5 us"},
    }
    return build_cluster(ClusterSpec.model_validate(tables), "fp32")


@st.composite
def cases(
    draw: st.DrawFn, exclusive: bool = False, training: bool | None = None, backends: Sequence[str] = ("plain", "gloo", "nccl")
) -> Case:
    """Any plan of up to 4 stages x 3 replicas; `exclusive` gives every pair of ranks a cable of its own."""
    stages, replicas = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    ranks = stages * replicas
    graph = draw(graphs)
    devices = 1 if exclusive or ranks % 2 else draw(st.sampled_from([1, 2]))
    cluster = draw(clusters(ranks // devices, devices, ["full-mesh"] if exclusive else ["switch", "ring", "full-mesh"], backends))
    trained = draw(st.booleans()) if training is None else training
    names = [task.name for task in graph.compute_tasks]
    ends = [0, *sorted(draw(st.sets(st.integers(1, len(names) - 1), min_size=stages - 1, max_size=stages - 1))), len(names)]
    order = draw(st.permutations(range(ranks)))
    plan = Plan(
        stages=tuple(tuple(names[first:end]) for first, end in pairwise(ends)),
        placement=tuple(tuple(order[stage * replicas : (stage + 1) * replicas]) for stage in range(stages)),
        slots=tuple(draw(st.permutations(range(ranks)))),
        global_batch_size=24,
        microbatch_count=draw(st.sampled_from([count for count in (1, 2, 4, 8, 12, 24) if 24 // replicas % count == 0])),
        schedule=draw(st.sampled_from(["gpipe", "1f1b"])) if trained else "forward",
        gradient_codecs=tuple(draw(st.sampled_from(CODECS)) for _ in range(stages)),
        activation_codecs=tuple(draw(st.sampled_from(CODECS)) for _ in range(stages - 1)),
        receives_in_flight=draw(st.integers(1, 8)),
    )
    assert mistakes_of(plan) == []
    optimizer = draw(st.sampled_from(["adam", "sgd"]))
    job = JobSpec(kind="training" if trained else "inference", global_batch_size=24, optimizer=optimizer)
    return Case(graph, cluster, job, plan)


laws = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


@laws
@given(cases())
def test_no_step_beats_its_lower_bound(case: Case) -> None:
    """step >= step_lower_bound_s: what the search discards unsimulated could not have won."""
    assert step_lower_bound_s(case.plan, case.pricing, case.cluster) <= case.play().step_s * TIGHT


@laws
@given(cases())
def test_no_step_is_shorter_than_its_busiest_rank(case: Case) -> None:
    """step >= compute of every rank, and that is the sum of its priced actions: nothing is lost, nothing overlaps itself."""
    timeline, pricing, program = case.play(), case.pricing, lower(case.plan)
    for rank, row in enumerate(program.actions):
        priced_s = priced_seconds(case.plan, pricing, rank, row)
        assert timeline.busy_s(rank) == pytest.approx(priced_s)
        assert priced_s <= timeline.step_s * TIGHT
        compute = timeline.spans_of(rank, "compute")
        assert all(left.end_s <= right.start_s for left, right in pairwise(compute))
    assert -1e-9 <= timeline.bubble_fraction < 1


@laws
@given(cases())
def test_everything_that_is_listed_happens(case: Case) -> None:
    """Every action of the program has exactly one span on its rank, and actions of the compute stream run in list order."""
    timeline = case.play()
    for rank, row in enumerate(lower(case.plan).actions):
        assert sorted(span.label for span in timeline.spans_of(rank)) == sorted(map(str, row))
        recorded = [span.label for span in timeline.spans if span.rank == rank and span.stream == "compute"]
        assert recorded == [str(action) for action in row if action.op in COMPUTES]


@laws
@given(cases())
def test_what_is_sent_is_received(case: Case) -> None:
    """Payload is conserved: per boundary and in all, at the same time on both sides; a ring moves its formula's bytes."""
    timeline = case.play()
    sides: dict[str, dict[object, float]] = {"send": defaultdict(float), "receive": defaultdict(float)}
    for span in timeline.spans:
        if span.stream in sides:
            sides[span.stream][(span.start_s, span.end_s, span.moved_bytes)] += 1
    assert sides["send"] == sides["receive"]
    for stage, row in enumerate(case.plan.placement):
        codec, replicas = case.plan.gradient_codecs[stage], case.plan.data_parallel_degree
        for rank in row:
            moved = sum(span.moved_bytes for span in timeline.spans_of(rank, "collective"))
            if replicas == 1 or not case.plan.training:
                assert moved == 0
            elif codec == "none":
                names = [case.graph.tasks[case.graph.position[name]] for name in case.plan.stages[stage]]
                assert moved == pytest.approx(sent_bytes("all_reduce", case.graph.parameter_bytes_of(names), replicas))


@laws
@given(cases(training=True))
def test_memory_rises_to_its_price_and_falls_back(case: Case) -> None:
    """The most that a rank holds is what the planner checked against its memory; at the end the activations are gone."""
    timeline, pricing = case.play(), case.pricing
    for replica in range(case.plan.data_parallel_degree):
        for rank, passes in zip(case.plan.pipeline(replica), passes_of(case.plan, replica), strict=True):
            held = pricing.held_bytes(case.plan, rank)
            assert timeline.peak_memory_bytes(rank) == pytest.approx(pricing.peak_bytes(case.plan, rank, passes))
            # A rank without weights holds nothing: of sums of megabytes up to 1e-8 B are left by rounding.
            assert [sample.held_bytes for sample in timeline.memory if sample.rank == rank][-1] == pytest.approx(held, abs=1e-3)


@laws
@given(cases())
def test_same_input_gives_the_same_timeline(case: Case) -> None:
    """Two simulations agree to the last bit of every span, in the same order."""
    assert json.dumps(case.play().to_dict()) == json.dumps(case.play().to_dict())


def priced_seconds(plan: Plan, pricing: Pricing, rank: int, row: tuple[Action, ...]) -> float:
    """Sum of the prices of a rank's compute actions."""
    replica, started, total = plan.position[rank][1], set(), 0.0
    for action in row:
        if action.op in COMPUTES:
            total += pricing.stages[action.stage][replica].compute_s(action.op, action.stage not in started)
            if action.op in (Op.B, Op.W):
                started.add(action.stage)
    return total


def with_links(cluster: Cluster, bandwidth: float, latency: float) -> Cluster:
    """The same cluster with faster or slower cables."""
    graph = cluster.graph.copy()
    for *_, edge in graph.edges(data=True):
        link = edge["link"]
        edge["link"] = replace(link, bandwidth_bytes_per_s=bandwidth * link.bandwidth_bytes_per_s, latency_s=latency * link.latency_s)
    return replace(cluster, graph=graph)


@laws
@given(cases(exclusive=True), st.floats(1, 20), st.floats(0, 1))
def test_better_cables_are_never_slower(case: Case, bandwidth: float, latency: float) -> None:
    """Where no two pairs of ranks share a cable, more bandwidth and less latency never make the step longer."""
    better = replace(case, cluster=with_links(case.cluster, bandwidth, latency))
    assert better.play().step_s <= case.play().step_s * TIGHT


@laws
@given(cases(exclusive=True), st.floats(1, 20))
def test_faster_devices_are_never_slower(case: Case, factor: float) -> None:
    """Without contention a step gets no longer when every device computes faster."""
    devices = tuple(replace(device, flop_per_s=factor * device.flop_per_s) for device in case.cluster.devices)
    assert replace(case, cluster=replace(case.cluster, devices=devices)).play().step_s <= case.play().step_s * TIGHT


def interpret(case: Case) -> dict[tuple[int, str], tuple[float, float]]:
    """Start and end of every compute action by recursion alone: no events, no shared links.

    A rank's clock moves with its compute actions; messages leave when sent and, under rendezvous, one latency after their
    receive was posted; then take the latency and queue for their pair's cable; a collective starts when its last member joins (one
    whose receives are posted ahead not before these are known).
    """
    plan, pricing, cluster = case.plan, case.pricing, case.cluster
    rows = lower(plan).actions
    clock, place = [0.0] * plan.rank_count, [0] * plan.rank_count
    done: dict[tuple[int, Op, int | None], float] = {}  # what a rank waits for -> when it is there
    messages: dict[tuple[int, int, int], dict[str, float]] = defaultdict(dict)  # when sent, when its receive was posted
    cable_free: dict[tuple[int, int], float] = defaultdict(float)
    joined: dict[int, list[float]] = defaultdict(list)
    spans: dict[tuple[int, str], tuple[float, float]] = {}

    def transfer(rank: int, index: int) -> None:
        action = rows[rank][index]
        replica = plan.position[rank][1]
        direction, boundary, microbatch = message_of(action)
        lower_rank, upper_rank = plan.rank_of(boundary, replica), plan.rank_of(boundary + 1, replica)
        source, target = (lower_rank, upper_rank) if direction == "F" else (upper_rank, lower_rank)
        ends = messages[(source, target, microbatch)]
        ends["sent" if action.op in SENDS else "posted"] = clock[rank]
        link = cluster.idle_link(plan.slots[source], plan.slots[target])
        if len(ends) == 2 if cluster.backend.rendezvous else action.op in SENDS:
            leaves_s = ends["sent"] + cluster.backend.message_s
            if cluster.backend.rendezvous:
                leaves_s = max(leaves_s, ends["posted"] + link.latency_s)
            start_s = max(leaves_s + link.latency_s, cable_free[(source, target)])
            wire = pricing.message_bytes(direction, boundary) * cluster.backend.header_factor
            cable_free[(source, target)] = end_s = start_s + wire / link.bandwidth_bytes_per_s
            done[(target, Op.RECV_F if direction == "F" else Op.RECV_B, microbatch)] = end_s

    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while place[rank] < len(row):
                action = row[place[rank]]
                if action.op is Op.REDUCE_GRAD:
                    joined[action.stage].append(clock[rank])
                    if len(joined[action.stage]) == plan.data_parallel_degree:
                        exchange = pricing.gradients[action.stage]
                        end_s = max(joined[action.stage]) + exchange.idle_s
                        if cluster.backend.rendezvous and exchange.algorithm == "posted":
                            # Its receives are posted when the step begins; nothing leaves before their "ready" has come.
                            slots = [plan.slots[member] for member in plan.placement[action.stage]]
                            ready_s = max(cluster.idle_link(a, b).latency_s for a, b in permutations(slots, 2))
                            end_s = max(end_s, ready_s + exchange.idle_s - cluster.backend.message_s)
                        done |= {(member, Op.REDUCE_GRAD, None): end_s for member in plan.placement[action.stage]}
                elif action.op in COMPUTES:
                    issued = {(before.op, before.microbatch) for before in row[: place[rank]]}
                    awaited = [(rank, op, action.microbatch) for op in needs(action) if (op, action.microbatch) in issued]
                    if not all(key in done for key in awaited):
                        break
                    start_s = max([clock[rank], *(done[key] for key in awaited)])
                    first = not (action.op is Op.B and any((rank, f"{action.stage}B{m}") in spans for m in range(plan.microbatch_count)))
                    clock[rank] = start_s + pricing.stages[action.stage][plan.position[rank][1]].compute_s(action.op, first)
                    spans[(rank, str(action))] = (start_s, clock[rank])
                else:
                    transfer(rank, place[rank])
                place[rank] += 1
                moved = True
    return spans


def assert_events_equal_the_recursion(case: Case) -> None:
    """Start and end of every compute action, to 1e-9."""
    expected = interpret(case)
    ours = {(span.rank, span.label): (span.start_s, span.end_s) for span in case.play().spans if span.stream == "compute"}
    assert ours.keys() == expected.keys()
    for key, times in expected.items():
        assert ours[key] == pytest.approx(times, rel=1e-9, abs=1e-15)


@settings(laws, max_examples=150)
@given(cases(exclusive=True, backends=["plain", "nccl"]))
def test_events_equal_a_plain_recursion(case: Case) -> None:
    """Without contention every compute action starts and ends when a recursion over the program says."""
    assert_events_equal_the_recursion(case)


def two_quick_messages() -> Case:
    """Two forward passes of 1 ms that are over before the receiver's "ready" has come, at 10 ms."""
    tables = {
        "nodes": [{"name": "n", "count": 2, "peak": "1 Tflop/s", "memory": "64 GiB"}],
        "network": {"bandwidth": "1 Gbit/s", "latency": "10 ms", "topology": "full-mesh", "backend": "gloo"},
    }
    plan = Plan((("task0",), ("task1",)), ((0,), (1,)), (0, 1), 24, 2, "1f1b", ("none",) * 2, ("none",))
    job = JobSpec(global_batch_size=24)
    return Case(chain(2, 0, 1.2e10, 1e6, 24), build_cluster(ClusterSpec.model_validate(tables), "fp32"), job, plan)


def quick_gather() -> Case:
    """Gradients that are gathered by three replicas before the "ready" of their receives has come, one latency after the step began."""
    tables = {
        "nodes": [{"name": "n", "count": 3, "peak": "10 Gflop/s", "memory": "64 GiB"}],
        "network": {"bandwidth": "10 Mbit/s", "latency": "1 ms", "topology": "full-mesh", "backend": "gloo"},
    }
    graph = mlp([1, 1, 1], 24)
    names = tuple(task.name for task in graph.compute_tasks)
    plan = Plan((names,), ((0, 1, 2),), (0, 1, 2), 24, 1, "gpipe", ("int8",), ())
    return Case(graph, build_cluster(ClusterSpec.model_validate(tables), "fp32"), JobSpec(global_batch_size=24), plan)


@laws
@example(two_quick_messages())
@example(quick_gather())
@given(cases(exclusive=True, backends=["gloo"]))
def test_events_equal_a_plain_recursion_under_rendezvous(case: Case) -> None:
    """The same where a message waits for its receiver's "ready"."""
    assert_events_equal_the_recursion(case)
