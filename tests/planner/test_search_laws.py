"""Laws of the whole search, over random jobs, clusters and wide spaces: its bounds hold, its plans are sound, its prices are fresh."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import NoFeasiblePlanError
from chinchilla_sim.graph.coarsen import coarsen
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import bert, chain, gpt, mlp
from chinchilla_sim.planner.drafting.free_space import FreeSpace
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import CUSTOM, Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import Pricing
from chinchilla_sim.planner.program import Program, folds, lower, passes_of
from chinchilla_sim.planner.selection.improve import Budget
from chinchilla_sim.planner.selection.judge import Judge
from chinchilla_sim.planner.selection.search import PlanSearch
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.planner.space.configuration import Sharding
from chinchilla_sim.planner.space.screen import Screener, screen
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline

TIGHT = 1 - 1e-9
ALIKE = ({"device": "a100-sxm-80gb"}, {"peak": "1 Tflop/s", "memory": "64 GiB", "memory_bandwidth": "50 GB/s"})
"""Devices that all nodes of a cluster have."""
MIXED = (
    {"device": "h100-sxm-80gb"},
    {"device": "v100-sxm2-16gb"},
    {"device": "t4"},
    {"peak": "20 Tflop/s", "memory": "300 MB", "memory_bandwidth": "20 GB/s"},
    {"peak": "100 Gflop/s", "memory": "8 GiB", "overlap_slowdown": 0.2, "communication_per_megabyte": "0.7 ms"},
)
LISTS: dict[str, tuple[Any, ...]] = {
    "schedules": ("gpipe", "1f1b", "looped-bfs", "interleaved-1f1b", "zb-h1", "zb-h2", "interleaved-zb", "zb-1p", "zb-v"),
    "zero_stages": (0, 1, 2, 3),
    "recompute": ("none", "selective", "full"),
    "gradient_buckets": (1, 3),
    "gradient_codecs": ("none", "bf16", "int8", "top-k", "low-rank"),
    "activation_codecs": ("none", "bf16", "int8"),
    "activation_priorities": (4.0,),
    "tensor_parallel_degrees": (1, 2),
    "local_steps": (1, 4),
    "gradient_delays": (0, 1),
}


def parts_of(values: tuple[Any, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One or two values of a list of [search]."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(tuple)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """One to three nodes of one or two devices, alike or mixed, at a switch, in racks or around a ring."""
    devices = draw(st.sampled_from([*((one,) for one in ALIKE), MIXED]))
    widths = draw(st.lists(st.integers(1, 2), min_size=1, max_size=3))
    prices = {"price": "2 USD/h", "power": "300 W"}
    nodes = [{"name": f"n{i}", "devices": width, **prices, **draw(st.sampled_from(devices))} for i, width in enumerate(widths)]
    network = {"bandwidth": draw(st.sampled_from(["100 Mbit/s", "10 Gbit/s"])), "latency": draw(st.sampled_from(["2 us", "1 ms"]))}
    network |= {"backend": draw(st.sampled_from(["plain", "gloo", "nccl"])), "topology": draw(st.sampled_from(["switch", "tree", "ring"]))}
    tables = {"nodes": nodes, "network": network, "intra_node": draw(st.sampled_from([{"link": "nvlink-3"}, None]))}
    return build_cluster(ClusterSpec.model_validate(tables), "fp32")


def graphs(training: bool) -> st.SearchStrategy[TaskGraph]:
    """Chains, perceptrons of uneven layers, and transformers whose head is tied to their embedding."""
    small = {"layers": 2, "width": 128, "heads": 4, "vocabulary": 4000, "batch_size": 8, "training": training}
    layers = st.lists(st.sampled_from([8, 512, 6000]), min_size=4, max_size=6)
    return st.one_of(
        st.builds(
            chain, st.integers(2, 6), st.sampled_from([0, 10**6]), st.sampled_from([1e9, 1e12]), st.sampled_from([1e3, 1e7]), st.just(8)
        ),
        layers.map(lambda widths: mlp(widths, 8, training)),
        st.sampled_from([64, 256]).map(lambda tokens: coarsen(gpt(tokens=tokens, positions=256, **small), 8)),
        st.sampled_from([64, 256]).map(lambda tokens: coarsen(bert(tokens=tokens, **small), 8)),
    )


@st.composite
def questions(draw: st.DrawFn) -> tuple[TaskGraph, Cluster, JobSpec, SearchSpec]:
    """A job on a cluster, and a space wider than the runtime can play."""
    training = draw(st.sampled_from([True, True, False]))
    allowed = {key: draw(parts_of(values)) for key, values in LISTS.items() if draw(st.booleans())}
    allowed |= {"executable": False, "objective": draw(st.sampled_from(["step_time", "cost", "energy"]))}
    allowed["stage_tasks"] = draw(st.sampled_from(["contiguous", "free"]))
    if {"gpipe", "1f1b"} & {*allowed.get("schedules", ("1f1b",))}:
        allowed["stage_replicas"] = draw(st.sampled_from(["equal", "equal", "free"]))
    if draw(st.booleans()):
        allowed = {"gradient_codecs": draw(parts_of(("none", "int8"))), "activation_codecs": draw(parts_of(("none", "int8")))}
    job = JobSpec(global_batch_size=8, kind="training" if training else "inference", optimizer=draw(st.sampled_from(["sgd", "adam"])))
    return draw(graphs(training)), draw(clusters()), job, SearchSpec(**allowed)


@dataclass
class Inquiry:
    """A search that notes every plan it simulates, with its prices and step."""

    pricer: Pricer
    search: SearchSpec
    budget: int = 1500
    seen: list[tuple[Plan, Pricing, float]] = field(default_factory=list)

    def simulate(self, program: Program, pricing: Pricing, cluster: Cluster) -> Timeline:
        """The engine, noted."""
        timeline = simulate(program, pricing, cluster)
        self.seen.append((program.plan, pricing, timeline.step_s))
        return timeline

    def run(self) -> PlanSearch:
        """Search; what it found is in `seen`. The bound and the best objective stay with the judge."""
        searching = PlanSearch(self.pricer, self.search, Judge(self.pricer, self.search, self.simulate))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("chinchilla_sim.planner.selection.search.Budget", lambda: Budget(self.budget))
            try:
                searching.run(front=True)
            except NoFeasiblePlanError:
                assert not np.isfinite(searching.judge.least)
        return searching


def row_of(plan: Plan) -> tuple[object, ...]:
    """The configuration of a plan, but for its schedule and what its stages compute again."""
    axes = (plan.tensor_parallel_degree, plan.sequence_parallel, plan.context_parallel_degree, plan.expert_parallel_degree)
    sharding = Sharding(*axes, plan.zero_stage, "none", plan.gradient_buckets, plan.local_steps, plan.gradient_delay)
    count = plan.global_batch_size // plan.microbatch_size // plan.data_parallel_degree
    return plan.data_parallel_degree, plan.pipeline_parallel_degree, count, sharding


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(questions())
def test_no_plan_beats_the_bounds_and_all_are_sound(question: tuple[TaskGraph, Cluster, JobSpec, SearchSpec]) -> None:
    """Every simulated plan takes its own bound at least, that of its configuration and so that of the space; it contradicts itself
    nowhere, and priced and simulated afresh it needs no more memory than there is and takes the same step."""
    graph, cluster, job, allowed = question
    inquiry = Inquiry(Pricer(graph, cluster, job), allowed)
    searching = inquiry.run()
    screened = screen(inquiry.pricer, searching.space)
    bounds: dict[tuple[object, ...], list[tuple[str, float]]] = {}
    for row, bound_s in enumerate(screened.lower_bound_s.tolist()):
        one = screened.configuration(row)
        key = (*one.split, one.microbatch_count, replace(one.sharding, recompute="none"))
        bounds.setdefault(key, []).append((one.schedule, bound_s))
    for number, (plan, pricing, step_s) in enumerate(inquiry.seen):
        assert mistakes_of(plan) == []
        assert not (allowed.executable and unplayable(plan))
        assert step_s >= step_lower_bound_s(plan, pricing, cluster) * TIGHT
        if plan.free_replicas:
            least_s = FreeSpace(inquiry.pricer, searching.space).least_s(len(plan.slots), plan.microbatch_count)
        elif len(plan.slots) > 1:
            rows = bounds[row_of(plan)]
            least_s = min(bound_s for schedule, bound_s in rows if plan.schedule in (schedule, CUSTOM) or len(rows) == 1)
        else:
            least_s = 0.0
        assert step_s >= least_s * TIGHT
        if number % 8 == 0:
            check_afresh(Pricer(graph, cluster, job), plan, pricing, step_s)
    if np.isfinite(searching.judge.least):
        assert searching.judge.least >= searching.judge.lower_bound * TIGHT


def check_afresh(pricer: Pricer, plan: Plan, pricing: Pricing, step_s: float) -> None:
    """Prices that were kept from other plans are this plan's own."""
    cluster, fresh = pricer.cluster, pricer.price(plan)
    assert fresh == pricing
    assert simulate(lower(plan, folds(plan, fresh)), fresh, cluster).step_s == step_s
    for replica in range(plan.data_parallel_degree):
        for rank, passes in zip(plan.pipeline(replica), passes_of(plan, replica), strict=True):
            assert fresh.peak_bytes(plan, rank, passes) <= cluster.device(plan.slots_of(rank)[0]).usable_memory_bytes


def search_of(graph: TaskGraph, cluster: Cluster, **allowed: Any) -> tuple[list[tuple[Plan, Pricing, float]], float]:
    """All plans that a search simulates, and the least bound of its screen."""
    job = JobSpec(global_batch_size=graph.batch_size)
    inquiry = Inquiry(Pricer(graph, cluster, job), SearchSpec(executable=False, **allowed), budget=20_000)
    searching = inquiry.run()
    return inquiry.seen, float(screen(inquiry.pricer, searching.space).lower_bound_s.min(initial=np.inf))


def cluster_of(*nodes: dict[str, Any], bandwidth: str = "1 Gbit/s") -> Cluster:
    """Nodes of 100 Gflop/s at a switch, unless they say otherwise."""
    usual = {"peak": "100 Gflop/s", "memory": "64 GiB", "price": "1 USD/h"}
    tables = {
        "nodes": [{"name": f"n{i}", **usual, **node} for i, node in enumerate(nodes)],
        "network": {"bandwidth": bandwidth, "latency": "0 s"},
    }
    return build_cluster(ClusterSpec.model_validate(tables), "fp32")


@pytest.mark.parametrize(("schedule", "tasks"), [("looped-bfs", "contiguous"), ("zb-v", "contiguous"), ("1f1b", "free")])
def test_gradients_travel_while_another_stage_computes(schedule: str, tasks: str) -> None:
    """15 ms of work and 16 ms of gradients per rank overlap where a rank has several stages: a bound must not add them."""
    allowed = {"schedules": (schedule,), "stage_tasks": tasks, "data_parallel_degrees": (2,), "pipeline_parallel_degrees": (2,)}
    seen, least_s = search_of(chain(8, 10**6, 6e9, 1e3, 8), cluster_of(*[{}] * 4), microbatch_counts=(2, 4), minimum_ranks=4, **allowed)
    assert min(step_s for _, _, step_s in seen) >= least_s
    assert least_s >= (0.029 if tasks == schedule else 0.0159)


def test_each_stage_may_have_the_codec_that_suits_it() -> None:
    """One matrix shrinks most as factors of low rank, a long row of weights by top-k: both together send less than either codec alone."""
    graph = mlp([2000, 2000, 1, 100_000], 2)
    allowed = {"data_parallel_degrees": (2,), "pipeline_parallel_degrees": (2,), "microbatch_counts": (1,)}
    seen, least_s = search_of(graph, cluster_of(*[{}] * 4, bandwidth="100 kbit/s"), gradient_codecs=("low-rank", "top-k"), **allowed)
    best, _, step_s = min((row for row in seen if len(row[0].slots) > 1), key=lambda row: row[2])
    assert set(best.gradient_codecs) == {"low-rank", "top-k"}
    assert step_s >= least_s


def test_heaviest_task_counts_on_the_kind_that_suits_it() -> None:
    """Of products and of large sums each is fast on one of two kinds of device: no kind's own heaviest task is a bound for both."""
    fast = ({"peak": "10 Tflop/s", "memory_bandwidth": "1 GB/s"}, {"peak": "10 Gflop/s", "memory_bandwidth": "1 TB/s"})
    graph, cluster = bert(layers=1, width=256, heads=4, tokens=256, vocabulary=256, batch_size=8), cluster_of(*fast)
    pricer, allowed = Pricer(graph, cluster, JobSpec(global_batch_size=8)), SearchSpec()
    screener = Screener(pricer, PlanSearch(pricer, allowed, Judge(pricer, allowed, simulate)).space)
    task_s = [[sum(pricer.task_s(task, 8, cluster.device(slot), 2)[:2]) for task in graph.compute_tasks] for slot in (0, 1)]
    heaviest_s = screener._whole(Sharding(), 8, 2, 2).heaviest_s
    assert heaviest_s == pytest.approx(max(map(min, *task_s))) and heaviest_s < min(map(max, task_s))


def test_replicas_that_meet_in_every_pass_have_equal_counts() -> None:
    """Faster replicas get more microbatches, but not with ZeRO 3, where all gather at once, nor where a schedule cannot draw them."""
    for allowed in ({"zero_stages": (3,)}, {"schedules": ("interleaved-zb",), "pipeline_parallel_degrees": (2,)}):
        seen, _ = search_of(chain(4, 10**4, 1e10, 1e3, 12), cluster_of({"peak": "1 Tflop/s"}, {"peak": "1 Tflop/s"}, {}, {}), **allowed)
        assert seen and not any(mistakes_of(plan) for plan, _, _ in seen)
        assert not any(plan.replica_microbatch_counts for plan, _, _ in seen if plan.zero_stage == 3)


def test_streams_are_not_scattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan whose stages have replica counts of their own does not become one of several pieces per rank; the equal plan does."""
    pricer = Pricer(chain(5, 10, 3e9, 10, 12), cluster_of({}, {}, {}), JobSpec(global_batch_size=12))
    allowed = SearchSpec(executable=False, stage_tasks="free", stage_replicas="free")
    searching = PlanSearch(pricer, allowed, Judge(pricer, allowed, simulate))
    stream = next(plan for plan in FreeSpace(pricer, searching.space).plans() if plan.stage_count == 2)
    monkeypatch.setattr("chinchilla_sim.planner.drafting.drafts.scatter", lambda _cutter, whole, _counts: [whole])
    assert list(searching.drafter.scattered(stream)) == []
    assert list(searching.drafter.scattered(replace(stream, placement=((0,), (1,)), slots=(0, 1))))


@pytest.mark.parametrize("schedule", ["zb-h1", "looped-bfs"])
def test_local_search_keeps_to_the_schedules_that_are_allowed(schedule: str) -> None:
    """One microbatch goes by 1f1b, several only by what [search] lists, whatever a local search changes."""
    seen, _ = search_of(chain(4, 10, 1e9, 1e6, 8), cluster_of({}, {}), schedules=(schedule,), minimum_ranks=2, data_parallel_degrees=(1,))
    assert {plan.schedule for plan, _, _ in seen if plan.microbatch_count > 1 and plan.pipeline_parallel_degree > 1} == {schedule}
    assert {plan.schedule for plan, _, _ in seen if plan.microbatch_count == 1} == {"1f1b"}


def test_tasks_that_hold_nothing_are_cut_for_several_stages_per_rank() -> None:
    """Without weights and activations a rank's memory is no matter of shares; each stage may have all of it."""
    seen, _ = search_of(chain(5, 0, 1e9, 0.0, 8), cluster_of({}, {}), schedules=("looped-bfs",), data_parallel_degrees=(1,))
    assert any(plan.stage_count == 4 for plan, _, _ in seen)
