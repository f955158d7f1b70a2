"""Weights that several stages train: who holds them, what travels, in which order, and plans that name them wrongly."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.coarsen import coarsen
from chinchilla_sim.graph.compress import share_weights
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS, PRESETS, chain
from chinchilla_sim.planner.action import COLLECTIVES, Action, Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import check_sharing
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.prices import NO_EXCHANGE
from chinchilla_sim.planner.pricing.sharing import shared_bytes, with_sharing
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from tests.planner.graphs import shared_sets, sharing

TINY = {"layers": 4, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 512}
TABLE_BYTES = 512 * 64 * 4.0


def cluster_of(nodes: int, devices: int = 1, bandwidth: str = "1 MB/s", **network: str) -> Cluster:
    """Equal nodes around a switch without latency."""
    tables = {
        "nodes": [{"name": "n", "count": nodes, "devices": devices, "peak": "1 Gflop/s", "memory": "16 GiB"}],
        "network": {"bandwidth": bandwidth, "latency": "0 us", "topology": "switch"} | network,
        **({"intra_node": {"bandwidth": "1 GB/s", "latency": "0 us"}} if devices > 1 else {}),
    }
    return build_cluster(ClusterSpec.model_validate(tables), "fp32", None)


def plan_of(graph: TaskGraph, ranks: int, replicas: int = 1, schedule: str = "gpipe", width: int = 1, **changes: object) -> Plan:
    """Tasks in equal stages; rank = replica * ranks + position."""
    kind = SCHEDULES[schedule]
    stages = ranks * {"line": 1, "loop": 2, "v": 2}[kind.layout]
    names = [task.name for task in graph.compute_tasks]
    ends = [round(len(names) * stage / stages) for stage in range(stages + 1)]
    plan = Plan(
        stages=tuple(tuple(names[a:b]) for a, b in pairwise(ends)),
        placement=tuple(tuple(d * ranks + kind.rank_of_stage(stage, ranks) for d in range(replicas)) for stage in range(stages)),
        slots=tuple(range(ranks * replicas * width)),
        global_batch_size=graph.batch_size,
        microbatch_count=graph.batch_size // replicas,
        schedule=schedule,
        gradient_codecs=("none",) * stages,
        activation_codecs=("none",) * (stages - 1),
        tensor_parallel_degree=width,
    )
    return with_sharing(replace(plan, **changes), graph)  # type: ignore[arg-type]


def tied(batch: int = 8, training: bool = True) -> TaskGraph:
    """A small GPT whose head is its embedding."""
    return FORMULAS["gpt"](batch_size=batch, training=training, value_bytes=4.0, **TINY)


def test_tied_head_joins_first_and_last_stage() -> None:
    """The embedding's table is in stages 0 and 3 of four: one set of weights, all its bytes."""
    graph = tied()
    plan = plan_of(graph, 4)
    assert plan.shared_stages == ((0, 3),)
    assert shared_bytes(graph, plan.stages) == {(0, 3): TABLE_BYTES}
    assert allowed_cuts(graph, training=True).count(True) > 4


def test_blocks_that_share_all_weights_join_all_stages() -> None:
    """ALBERT: each stage that runs part of a block holds that part's weights, counted once in the set of all who do."""
    graph = share_weights(tied())
    for model, ranks in ((graph, 2), (graph, 4), (coarsen(graph, 8), 2), (coarsen(graph, 8), 4)):
        plan = plan_of(model, ranks)
        held = [model.trained_bytes_of([model.tasks[model.position[name]] for name in stage]) for stage in plan.stages]
        sets = shared_bytes(model, plan.stages)
        assert plan.shared_stages == tuple(sorted(sets)) and max(map(len, sets)) >= ranks - 1
        assert sum(held) == model.total_parameter_bytes + sum((len(stages) - 1) * size for stages, size in sets.items())


def test_what_is_not_trained_is_not_exchanged() -> None:
    """Frozen weights, and all weights in inference, are copied and never summed; cuts are free all the same."""
    frozen = sharing(chain(4, 40, 1.0, 4.0, 8), [[0, 3]], 8.0, trained=False)
    assert plan_of(frozen, 2).shared_stages == ()
    inference = tied(training=False)
    assert plan_of(inference, 2, schedule="forward").shared_stages == ()
    assert allowed_cuts(inference, training=False).count(True) > 4


def test_rows_by_hand() -> None:
    """Two stages, one microbatch: the shared sum follows the backward pass and comes before the update, on both ranks."""
    graph = sharing(chain(2, 8, 1.0, 4.0, 1), [[0, 1]], 8.0)
    assert lower(plan_of(graph, 2)).to_csv().splitlines() == [
        "0RECV_B0,0F0,0SEND_F0,0B0,0REDUCE_SHARED0,0OPTIM",
        "1RECV_F0,1F0,1B0,1SEND_B0,1REDUCE_SHARED0,1OPTIM",
    ]


def test_rows_with_replicas_by_hand() -> None:
    """Replicas sum first and unpack; then stages sum what they share; the stage between is updated like any other."""
    graph = sharing(chain(3, 9, 1.0, 4.0, 2), [[0, 2]], 8.0)
    plan = plan_of(graph, 3, replicas=2, gradient_codecs=("int8",) * 3)
    tails = [
        row.split("0ENCODE_GRAD" if stage == 0 else f"{stage}ENCODE_GRAD")[1]
        for stage, row in enumerate(lower(plan).to_csv().splitlines()[:3])
    ]
    assert tails == [
        ",0REDUCE_GRAD,0DECODE_GRAD,0REDUCE_SHARED0,0OPTIM",
        ",1REDUCE_GRAD,1DECODE_GRAD,1OPTIM",
        ",2REDUCE_GRAD,2DECODE_GRAD,2REDUCE_SHARED0,2OPTIM",
    ]


def test_stages_of_one_rank_exchange_nothing_by_hand() -> None:
    """A V of two ranks has first and last stage on rank 0: no action, though both train the weight."""
    graph = sharing(chain(4, 40, 1.0, 4.0, 4), [[0, 3]], 8.0)
    plan = plan_of(graph, 2, schedule="zb-v")
    assert plan.shared_stages == ((0, 3),) and plan.sharing_ranks(0) == (0,)
    assert not [action for row in lower(plan).actions for action in row if action.op is Op.REDUCE_SHARED]
    pricing = Pricer(graph, cluster_of(2), JobSpec(global_batch_size=4)).price(plan)
    assert [exchange.payload_bytes for exchange in pricing.shared[0]] == [0.0]


def test_one_exchange_per_rank_where_a_rank_has_several_of_the_stages() -> None:
    """All four stages of a V share: ranks 0 and 1 exchange once, and both of their stages wait for it."""
    graph = sharing(chain(4, 40, 1e6, 4.0, 4), [[0, 1, 2, 3]], 1e6)
    plan = plan_of(graph, 2, schedule="zb-v")
    assert [[str(action) for action in row if action.op is Op.REDUCE_SHARED] for row in lower(plan).actions] == [
        ["0REDUCE_SHARED0"],
        ["1REDUCE_SHARED0"],
    ]
    timeline = simulate(lower(plan), Pricer(graph, cluster_of(2), JobSpec(global_batch_size=4)).price(plan), cluster_of(2))
    for rank in (0, 1):
        (end_s,) = [span.end_s for span in timeline.spans_of(rank, "collective")]
        updates = [span for span in timeline.spans_of(rank, "compute") if span.label.endswith("OPTIM")]
        assert len(updates) == 2 and all(span.start_s >= end_s for span in updates)


def test_exchanges_of_two_replicas_share_a_cable_by_hand() -> None:
    """Stage 0 of both replicas on one node, stage 1 on the other: 1 MB each over 1 MB/s takes 1 s alone, 2 s together."""
    graph, cluster = sharing(chain(2, 0, 1.0, 0.0, 2), [[0, 1]], 1e6), cluster_of(2, devices=2)
    plan = with_sharing(replace(plan_of(graph, 2, 2), placement=((0, 1), (2, 3))), graph)
    pricing = Pricer(graph, cluster, JobSpec(global_batch_size=2)).price(plan)
    assert [exchange.idle_s for exchange in pricing.shared[0]] == pytest.approx([1.0, 1.0], rel=1e-4)
    pricing = replace(pricing, gradients=(NO_EXCHANGE,) * 2)
    timeline = simulate(lower(plan), pricing, cluster)
    spans = [span for span in timeline.spans_of(0, "collective") if span.label == "0REDUCE_SHARED0"]
    assert [span.duration_s for span in spans] == pytest.approx([2.0], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "tensor", "replicas", "payload"),
    [
        ({}, 1, 2, TABLE_BYTES),
        ({"gradient_buckets": 2}, 1, 2, TABLE_BYTES),
        ({}, 2, 1, TABLE_BYTES / 2),
        ({"zero_stage": 1}, 1, 2, TABLE_BYTES / 2),
        ({"zero_stage": 2}, 2, 2, TABLE_BYTES / 4),
        ({"zero_stage": 3}, 1, 4, TABLE_BYTES / 4),
    ],
)
def test_bytes_of_a_device_by_hand(changes: dict[str, object], tensor: int, replicas: int, payload: float) -> None:
    """Tensor parallelism divides the table among the devices of a rank, ZeRO among the replicas; each sums its own part."""
    graph = tied()
    plan = plan_of(graph, 2, replicas, width=tensor, **changes)
    pricing = Pricer(graph, cluster_of(2 * replicas * tensor), JobSpec(global_batch_size=8)).price(plan)
    ((first, *others),) = pricing.shared
    assert first.payload_bytes == first.sent_bytes == payload
    assert first.orders == tuple((lane, tensor + lane) for lane in range(tensor))
    assert [one.orders[0][0] for one in others] == [2 * tensor * replica for replica in range(1, replicas)]


def test_both_stages_hold_the_weight() -> None:
    """Weights, gradients and optimizer state of the table stand in the first and in the last stage, and both update it."""
    graph = tied()
    plan, cluster, job = plan_of(graph, 2), cluster_of(2), JobSpec(global_batch_size=8, optimizer="adam")
    own = FORMULAS["gpt"](batch_size=8, training=True, value_bytes=4.0, **TINY, tied_head=False)
    ours, theirs = Pricer(graph, cluster, job).price(plan), Pricer(own, cluster, job).price(plan_of(own, 2))
    for mine, other in zip(ours.stages, theirs.stages, strict=True):
        assert mine[0].held_parts == other[0].held_parts
        assert mine[0].action_s[Op.OPTIM] == other[0].action_s[Op.OPTIM]
    total = sum(price.held_parts["optimizer state"] for (price,) in ours.stages)
    assert total == 2 * (graph.total_parameter_bytes + TABLE_BYTES)


@st.composite
def shared_plans(draw: st.DrawFn) -> Plan:
    """Any layout, with any sets of shared weights."""
    name = draw(st.sampled_from(["gpipe", "1f1b", "interleaved-1f1b", "zb-v"]))
    ranks, replicas = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    graph = chain(8, 80, 1.0, 4.0, 2 * ranks * replicas)
    graph = sharing(graph, draw(shared_sets(8)), 8.0)
    return plan_of(graph, ranks, replicas, name, zero_stage=draw(st.integers(0, 3)) if replicas > 1 else 0)


@given(shared_plans())
def test_all_ranks_issue_collectives_in_one_order(plan: Plan) -> None:
    """Law: gradients, shared sets by number, gathered weights; every member issues its set once, before any of its updates."""
    joined: dict[tuple[int, int], list[int]] = defaultdict(list)
    for rank, row in enumerate(lower(plan).actions):
        kinds = [action.op for action in row if action.op in COLLECTIVES]
        assert kinds == sorted(kinds, key=[Op.REDUCE_GRAD, Op.REDUCE_SHARED, Op.UNSHARD].index)
        numbers = [action.microbatch for action in row if action.op is Op.REDUCE_SHARED]
        assert numbers == sorted(numbers, key=lambda number: number or 0)
        for number in numbers:
            assert number is not None
            joined[number, plan.position[rank][1]].append(rank)
            at = next(index for index, a in enumerate(row) if a.op is Op.REDUCE_SHARED and a.microbatch == number)
            assert all(row.index(Action(s, Op.OPTIM)) > at for s in plan.shared_stages[number] if s in plan.position[rank][0])
    expected = {
        (number, replica): sorted(plan.sharing_ranks(number, replica))
        for number in range(len(plan.shared_stages))
        for replica in range(plan.data_parallel_degree)
        if len(plan.sharing_ranks(number, replica)) > 1
    }
    assert joined == expected
    assert mistakes_of(plan) == []


@pytest.mark.parametrize("groups", [((0,),), ((1, 0),), ((0, 4),), ((0, 1), (0, 1)), ((1, 2), (0, 1)), ((0, 0),)])
def test_sets_that_are_none_are_refused(groups: tuple[tuple[int, ...], ...]) -> None:
    """Stages out of range, out of order or alone, and sets twice or out of order."""
    plan = plan_of(chain(4, 40, 1.0, 4.0, 4), 4)
    assert [where for where, _ in mistakes_of(replace(plan, shared_stages=groups))] == ["shared_stages"]


def test_plan_that_forgets_shared_weights_is_refused() -> None:
    """A plan moved by hand must name its sets: else copies of a weight would drift apart unseen."""
    graph = tied()
    plan = plan_of(graph, 4)
    check_sharing(plan, graph, "plan.json")
    with pytest.raises(ScenarioError, match=r"plan\.shared_stages: stages that train the same weights are 0, 3, not none.*\[\[0, 3\]\]"):
        check_sharing(replace(plan, shared_stages=()), graph, "plan.json")


def test_published_size_is_exchanged() -> None:
    """GPT-2 XL in half precision has a table of 50,257 x 1,600 values (Radford et al. 2019): 160.8 MB leave each end of a pipeline."""
    preset = PRESETS["gpt2-xl"]
    graph = FORMULAS[preset.formula](batch_size=8, training=True, value_bytes=2.0, **preset.options)
    plan = plan_of(graph, 4)
    pricing = Pricer(graph, cluster_of(4), JobSpec(global_batch_size=8, precision="bf16")).price(plan)
    assert plan.shared_stages == ((0, 3),)
    assert pricing.shared[0][0].sent_bytes == 50257 * 1600 * 2
    weights = sum(price.held_parts["weights"] for (price,) in pricing.stages)
    assert weights == pytest.approx(2 * (1_557_611_200 + 50257 * 1600))


def test_search_shares_weights() -> None:
    """With two ranks asked for, a tied GPT is cut between its blocks: the runtime plays that."""
    graph, cluster, job = tied(), cluster_of(2, bandwidth="1 GB/s"), JobSpec(global_batch_size=8)
    search = SearchSpec(minimum_ranks=2, pipeline_parallel_degrees=(1, 2))
    found = find_plans(graph, cluster, job, search, simulate)
    assert any(one.plan.shared_stages for one in (found.best, *found.runner_ups))


def test_stream_sums_over_all_ranks_by_hand() -> None:
    """Two ranks of stage 0 and one of stage 1 share 8 B: one all-reduce of three, behind that of stage 0's own two."""
    graph = sharing(chain(2, 8, 1.0, 4.0, 2), [[0, 1]], 8.0)
    plan = replace(plan_of(graph, 2), placement=((0, 1), (2,)), slots=(0, 1, 2), microbatch_count=2)
    assert plan.free_replicas and mistakes_of(plan) == []
    ((exchange,),) = Pricer(graph, cluster_of(3), JobSpec(global_batch_size=2)).price(plan).shared
    assert (exchange.payload_bytes, exchange.orders) == (8.0, ((0, 1, 2),))
    tails = [[str(action) for action in row if action.op in COLLECTIVES or action.op is Op.OPTIM] for row in lower(plan).actions]
    assert tails == [["0REDUCE_GRAD", "0REDUCE_SHARED0", "0OPTIM"]] * 2 + [["1REDUCE_SHARED0", "1OPTIM"]]


@pytest.mark.parametrize("choice", [{"stage_replicas": "free"}, {"stage_tasks": "free"}])
def test_every_way_to_make_plans_names_shared_stages(choice: dict[str, str]) -> None:
    """Stages with replica counts of their own, in several pieces, or with cuts moved by the local search: sets are those of the graph."""
    graph, cluster, job = tied(), cluster_of(3, bandwidth="1 GB/s"), JobSpec(global_batch_size=8)
    search = SearchSpec.model_validate({"executable": False, "minimum_ranks": 3, **choice})
    found = find_plans(graph, cluster, job, search, simulate)
    plans = [one.plan for one in (found.best, *found.runner_ups)]
    assert all(plan == with_sharing(plan, graph) and mistakes_of(plan) == [] for plan in plans)
    assert any(plan.shared_stages for plan in plans)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.floats(1.0, 4.0))
def test_more_bandwidth_is_never_slower(ranks: int, replicas: int, factor: float) -> None:
    """Law: a tied pipeline on faster links takes no longer, and no less than one whose head has a table of its own."""
    graph = tied(batch=replicas * 4)
    own = FORMULAS["gpt"](batch_size=replicas * 4, training=True, value_bytes=4.0, **TINY, tied_head=False)
    steps = []
    for model, bandwidth in ((graph, 1.0), (graph, factor), (own, 1.0)):
        cluster = cluster_of(ranks * replicas, bandwidth=f"{bandwidth} MB/s")
        plan = plan_of(model, ranks, replicas)
        steps.append(simulate(lower(plan), Pricer(model, cluster, JobSpec(global_batch_size=replicas * 4)).price(plan), cluster).step_s)
    assert steps[1] <= steps[0] * (1 + 1e-9)
    assert steps[2] <= steps[0] * (1 + 1e-9)
