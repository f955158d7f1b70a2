"""Plans whose stages have replica counts of their own: one stream of microbatches, dealt out at every stage."""

import json
from collections import Counter
from dataclasses import replace
from itertools import accumulate
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.action import PASSES, RECEIVES, SENDS, Action, Op, message_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile, parse_plan
from chinchilla_sim.planner.program import lower, needs, passes_of, under_way
from chinchilla_sim.scenario.load import parse_scenario


def stream(replicas: list[int], count: int, schedule: str = "1f1b", **changes: Any) -> Plan:
    """One task per stage, ranks stage by stage, one sample per microbatch."""
    ends = list(accumulate(replicas))
    plan = Plan(
        stages=tuple((f"task{stage}",) for stage in range(len(replicas))),
        placement=tuple(tuple(range(end - width, end)) for end, width in zip(ends, replicas, strict=True)),
        slots=tuple(range(ends[-1])),
        global_batch_size=count,
        microbatch_count=count,
        schedule=schedule,
        gradient_codecs=("none",) * len(replicas),
        activation_codecs=("none",) * (len(replicas) - 1),
    )
    return replace(plan, **changes)


@st.composite
def streams(draw: st.DrawFn) -> Plan:
    """2 to 5 stages of 1 to 6 replicas, not all equal, and up to 20 microbatches more than are needed."""
    replicas = draw(st.lists(st.integers(1, 6), min_size=2, max_size=5).filter(lambda widths: len(set(widths)) > 1))
    count = max(replicas) + draw(st.integers(0, 20))
    schedule = draw(st.sampled_from(["1f1b", "gpipe", "forward"]))
    return stream(replicas, count, schedule, receives_in_flight=draw(st.integers(1, 8)))


@given(streams())
def test_every_pass_occurs_once_on_the_rank_that_the_stream_deals_it_to(plan: Plan) -> None:
    """Microbatch j of stage s runs on rank j mod r_s of the stage, forward and (in training) backward."""
    assert mistakes_of(plan) == []
    found = Counter((action, rank) for rank, row in enumerate(lower(plan).actions) for action in row if action.op in PASSES)
    ops = (Op.F, Op.B) if plan.training else (Op.F,)
    assert found == Counter(
        (Action(stage, op, microbatch), row[microbatch % len(row)])
        for stage, row in enumerate(plan.placement)
        for op in ops
        for microbatch in range(plan.microbatch_count)
    )


@given(streams())
def test_messages_go_between_the_ranks_of_their_microbatch(plan: Plan) -> None:
    """Every message over a boundary has one send and one receive, on the two ranks that run its microbatch."""
    ends: Counter[tuple[str, int, int, bool]] = Counter()
    for rank, row in enumerate(lower(plan).actions):
        for action in row:
            if action.op in SENDS | RECEIVES:
                direction, boundary, microbatch = message_of(action)
                sends = action.op in SENDS
                assert rank == plan.rank_of(boundary + (sends != (direction == "F")), microbatch)
                ends[direction, boundary, microbatch, sends] += 1
    boundaries, directions = plan.stage_count - 1, 2 if plan.training else 1
    assert set(ends.values()) == {1} and len(ends) == 2 * directions * boundaries * plan.microbatch_count


@given(streams())
def test_no_program_deadlocks(plan: Plan) -> None:
    """Whatever the counts, played in order and with messages awaited where they are needed every rank comes to its end."""
    rows, at = lower(plan).actions, [0] * plan.rank_count
    sent: set[tuple[str, int, int]] = set()
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(rows):
            while at[rank] < len(row):
                action = row[at[rank]]
                awaited = [Action(action.stage, op, action.microbatch) for op in needs(action) if op in RECEIVES]
                if any(one in row and message_of(one) not in sent for one in awaited):
                    break
                if action.op in SENDS:
                    sent.add(message_of(action))
                at[rank] += 1
                moved = True
    assert at == [len(row) for row in rows]


@given(streams())
def test_ranks_hold_as_many_microbatches_as_fill_the_stream(plan: Plan) -> None:
    """1F1B: ceil(ranks from this stage on / replicas of this stage), or all of a rank's; GPipe all of a rank's."""
    counts = [len(row) for row in plan.placement]
    for rank, passes in zip(plan.pipeline(0), passes_of(plan, 0), strict=True):
        (stage,), place = plan.position[rank]
        held = list(accumulate({Op.F: 1, Op.B: -1}[action.op] for action in passes))
        limit = ceil(sum(counts[stage:]) / counts[stage]) if plan.schedule == "1f1b" else plan.microbatch_count
        assert max(held) == min(limit, plan.share_of(stage, place))


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 5))
def test_equal_counts_are_the_ordinary_1f1b(stages: int, replicas: int, stage: int) -> None:
    """With r replicas everywhere the rule for one stream is 1F1B's: as many microbatches as stages are left."""
    assert under_way([replicas] * stages, stage % stages) == stages - stage % stages


def test_one_heavy_stage_by_hand() -> None:
    """Two stages of 1/2 replicas, four microbatches: stage 0 has three under way and sends left and right in turn."""
    plan = stream([1, 2], 4)
    assert [" ".join(map(str, row)) for row in passes_of(plan, 0)] == [
        "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3",
        "1F0 1B0 1F2 1B2",
        "1F1 1B1 1F3 1B3",
    ]
    assert [" ".join(str(a) for a in row if a.op.endswith("GRAD") or a.op is Op.OPTIM) for row in lower(plan).actions] == [
        "0OPTIM",
        "1ENCODE_GRAD 1REDUCE_GRAD 1OPTIM",
        "1ENCODE_GRAD 1REDUCE_GRAD 1OPTIM",
    ]


def test_properties_follow_from_the_rows() -> None:
    """One stream is one pipeline of all ranks; exchanges are as wide as their stage; shares differ by one at most."""
    plan = stream([1, 3, 2], 8)
    assert plan.free_replicas and (plan.data_parallel_degree, plan.pipeline_parallel_degree, plan.microbatch_size) == (1, 3, 1)
    assert [plan.exchange_degree_of(stage) for stage in range(3)] == [1, 3, 2] and plan.exchange_degree == 3
    assert [plan.share_of(1, place) for place in range(3)] == [3, 3, 2]
    assert plan.pipeline(0) == (0, 1, 2, 3, 4, 5) and plan.rank_of(1, 5) == 3
    assert plan.describe() == "3 stages of 1/3/2 replicas, 8 microbatches of 1, 1f1b"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schedule": "zb-h1"}, "schedule"),
        ({"schedule": "looped-bfs"}, "schedule"),
        ({"schedule": "custom", "order": ("0F0",)}, "schedule"),
        ({"order": ("0F0 0B0",)}, "order"),
        ({"replica_microbatch_counts": (4,)}, "replica_microbatch_counts"),
        ({"zero_stage": 3}, "zero_stage"),
        ({"expert_parallel_degree": 2}, "expert_parallel_degree"),
        ({"placement": ((0,), (0, 1)), "slots": (0, 1)}, "placement"),
        ({"microbatch_count": 1}, "microbatch_count"),
        ({"microbatch_count": 3}, "microbatch_count"),
    ],
)
def test_what_a_stream_cannot_be_combined_with_is_refused(changes: dict[str, Any], field: str) -> None:
    """Schedules without a rule for streams, shared ranks, gathering in every pass and idle replicas are named by their field."""
    assert field in [where for where, _ in mistakes_of(stream([1, 2], 4, **changes))]


def test_plan_file_reads_back() -> None:
    """JSON keeps rows of unequal length."""
    scenario = parse_scenario(
        {
            "model": {"formula": "mlp", "widths": [8, 8, 8]},
            "job": {"global_batch_size": 4},
            "cluster": {
                "nodes": [{"name": "n", "count": 3, "peak": "1 Gflop/s", "memory": "1 GiB"}],
                "network": {"bandwidth": "1 Gbit/s", "latency": "1 us"},
            },
        },
        "test",
    )
    file = PlanFile(stream([1, 2], 4), scenario)
    assert parse_plan(json.loads(json.dumps(file.to_dict())), "test").plan == file.plan
    with pytest.raises(ScenarioError, match="zb-h1"):
        parse_plan(json.loads(json.dumps(PlanFile(stream([1, 2], 4, "zb-h1"), scenario).to_dict())), "test")
