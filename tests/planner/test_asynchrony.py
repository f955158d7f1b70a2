"""Local steps and late gradients as choices of a plan: rows, prices, refusals, files, and what a search makes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.cost.compute import agreement_s, difference_s
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.plan_file import PlanFile, load_plan, parse_plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.space.configuration import Space
from chinchilla_sim.planner.space.estimate import batch_of, estimates_s, lower_bounds_s
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from tests.planner.pricing.test_sharing import cluster_of, plan_of
from tests.planner.test_plan_file import TABLES

GRAPH = chain(4, 100_000, 1e8, 4.0, 8)
JOB = JobSpec(global_batch_size=8)
SYNCHRONOUS = plan_of(GRAPH, 1, replicas=2, gradient_codecs=("int8",), microbatch_count=1)
LOCAL, LATE = replace(SYNCHRONOUS, local_steps=4), replace(SYNCHRONOUS, gradient_delay=1)


def test_rows_by_hand() -> None:
    """Packing, sending and unpacking differ in their places only; local steps have a row of their own."""
    local = lower(LOCAL)
    assert local.to_csv().splitlines() == ["0F0,0B0,0OPTIM,0ENCODE_GRAD,0REDUCE_GRAD,0DECODE_GRAD,0AGREE"] * 2
    assert local.local is not None and local.local.to_csv().splitlines() == ["0F0,0B0,0OPTIM"] * 2
    assert lower(LATE).to_csv().splitlines() == ["0REDUCE_GRAD,0F0,0B0,0DECODE_GRAD,0OPTIM,0ENCODE_GRAD"] * 2
    assert lower(LATE).local is None and lower(SYNCHRONOUS).local is None
    pipelines = replace(plan_of(GRAPH, 2, replicas=2, microbatch_count=1), gradient_delay=1)
    assert lower(pipelines).to_csv().splitlines()[1] == "1RECV_F0,1REDUCE_GRAD,1F0,1B0,1SEND_B0,1OPTIM,1ENCODE_GRAD"
    looped = replace(plan_of(GRAPH, 2, replicas=2, schedule="interleaved-1f1b", microbatch_count=2), local_steps=2)
    assert (
        lower(looped).to_csv().splitlines()[0].endswith("2OPTIM,2ENCODE_GRAD,2REDUCE_GRAD,0OPTIM,0ENCODE_GRAD,0REDUCE_GRAD,2AGREE,0AGREE")
    )


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"local_steps": 4, "gradient_delay": 1}, "gradient_delay", "use one of both"),
        ({"local_steps": 4, "zero_stage": 1}, "zero_stage", "write local_steps = 1, or zero_stage = 0"),
        ({"gradient_delay": 1, "zero_stage": 3, "gradient_codecs": ("none",)}, "zero_stage", "write gradient_delay = 0"),
        ({"gradient_delay": 1, "placement": ((0,),), "slots": (0,), "microbatch_count": 2}, "gradient_delay", "two or more replicas"),
        ({"local_steps": 4, "expert_parallel_degree": 2}, "local_steps", "sum gradients in every step: write local_steps = 1"),
        ({"local_steps": 2, "schedule": "forward"}, "local_steps", "inference exchanges no gradients: write local_steps = 1"),
    ],
)
def test_contradictions_are_told_with_their_cure(changes: dict[str, Any], field: str, words: str) -> None:
    """What must exchange in every step cannot do so now and then, or late."""
    assert any(where == field and words in what for where, what in mistakes_of(replace(SYNCHRONOUS, **changes)))
    assert mistakes_of(LOCAL) == mistakes_of(LATE) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"clips_gradients": True}, "gradient clipping"),
        ({"tensor_parallel_degree": 2, "slots": (0, 1, 2, 3)}, "tensor parallelism"),
        ({"shared_stages": ((0, 1),)}, "weights shared by stages"),
    ],
)
def test_what_the_runtime_does_not_play_with_it_is_named(changes: dict[str, Any], what: str) -> None:
    """Plain replicas and pipelines are played, with any codec and buckets."""
    for plan in (LOCAL, LATE):
        assert unplayable(replace(plan, gradient_buckets=2, gradient_codecs=("low-rank",))) == []
        assert unplayable(replace(plan, **changes)) == [f"local steps or late gradients with {what}"]


def test_files_with_and_without_it(tmp_path: Path) -> None:
    """The choices read back; a file of before knows neither and exchanges in every step."""
    for plan in (LOCAL, LATE):
        file = PlanFile(plan, parse_scenario(TABLES, "two.toml"))
        file.save(tmp_path / "plan.json")
        assert load_plan(tmp_path / "plan.json").plan == plan
    data = PlanFile(SYNCHRONOUS, parse_scenario(TABLES, "two.toml")).to_dict()
    del data["plan"]["local_steps"], data["plan"]["gradient_delay"]
    assert parse_plan(data, "old.json").plan == SYNCHRONOUS
    with pytest.raises(ScenarioError, match="gradient_delay"):
        parse_plan({**data, "plan": {**data["plan"], "gradient_delay": 2}}, "odd.json")
    assert LOCAL.describe() == "2 replicas, gradients int8, 4 local steps"
    assert LATE.describe() == "2 replicas, gradients int8, gradients one step late"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prices_of_local_steps(momentum: float) -> None:
    """The exchange is that of gradients; a difference is taken before it, and the shared weights, held beside the own ones, follow it."""
    graph, cluster = mlp([64, 64, 64], 8), cluster_of(2)
    cluster = replace(cluster, devices=tuple(replace(one, elementwise_bandwidth_bytes_per_s=1e9) for one in cluster.devices))
    pricer = Pricer(graph, cluster, JobSpec(global_batch_size=8, outer_momentum=momentum))
    plan = plan_of(graph, 1, replicas=2)
    usual, local = pricer.price(plan), pricer.price(replace(plan, local_steps=4))
    (before, _), (behind, _) = usual.stages[0], local.stages[0]
    size, device = graph.trained_bytes_of(graph.tasks), cluster.device(0, 2)
    assert behind.action_s[Op.ENCODE_GRAD] - before.action_s[Op.ENCODE_GRAD] == pytest.approx(difference_s(size, device))
    assert behind.action_s[Op.AGREE] == agreement_s(size, momentum, device) == pytest.approx((7 if momentum else 4) * size / 1e9, rel=0.01)
    assert behind.held_bytes - before.held_bytes == (2 if momentum else 1) * size
    assert local.gradients == usual.gradients


def test_closed_forms_by_hand() -> None:
    """int8 over 1 MB/s: passes and update c, packing p, exchange r. A mean local step is c + (r + p) / 4, a late one max(c + p, r + ..)."""
    cluster = cluster_of(2, bandwidth="1 MB/s")
    pricer = Pricer(GRAPH, cluster, JOB)
    for plan in (SYNCHRONOUS, LOCAL, LATE):
        pricing = pricer.price(plan)
        (bound_s,), (estimate_s,) = (of(batch_of([(plan, pricing)], cluster)) for of in (lower_bounds_s, estimates_s))
        step_s = simulate(lower(plan), pricing, cluster).step_s
        assert bound_s == pytest.approx(step_s) and estimate_s == pytest.approx(step_s)
    price, exchange_s = pricer.price(LOCAL).stages[0][0].action_s, pricer.price(LOCAL).gradients[0].idle_s
    once_s = exchange_s + price[Op.ENCODE_GRAD] + price[Op.DECODE_GRAD] + price[Op.AGREE]
    assert simulate(lower(LOCAL), pricer.price(LOCAL), cluster).step_s == pytest.approx(
        price[Op.F] + price[Op.B] + price[Op.OPTIM] + once_s / 4
    )


def test_only_what_is_allowed_by_name_is_searched() -> None:
    """On a slow link 16 local steps beat a late exchange, and that one in every step; by default neither is in the space."""
    cluster, space = cluster_of(2, bandwidth="1 MB/s"), {"minimum_ranks": 2, "pipeline_parallel_degrees": (1,)}
    found = {}
    for name, allowed in {
        "default": {},
        "late": {"gradient_delays": (0, 1)},
        "local": {"local_steps": (1, 4, 16)},
        "both": {"local_steps": (1, 4, 16), "gradient_delays": (0, 1)},
    }.items():
        search = SearchSpec.model_validate(space | allowed)
        result = find_plans(GRAPH, cluster, JOB, search, simulate)
        found[name] = result.best
        assert result.lower_bound_s <= result.best.step_s and not unplayable(result.best.plan)
    assert not found["default"].plan.asynchronous and found["late"].plan.gradient_delay == 1
    assert found["local"].plan.local_steps == found["both"].plan.local_steps == 16
    steps = [found[name].step_s for name in ("default", "late", "local", "both")]
    assert steps[0] > steps[1] > steps[2] == steps[3]


def test_contradictions_are_not_in_the_space() -> None:
    """Neither local steps with late gradients, nor either with ZeRO, nor any of them on one rank; all else is."""
    search = SearchSpec(local_steps=(1, 4), gradient_delays=(0, 1), zero_stages=(0, 1))
    shardings = list(Space(JOB, search, 2, 4).shardings())
    assert {(one.local_steps, one.gradient_delay, one.zero_stage) for one in shardings} == {(1, 0, 0), (1, 0, 1), (4, 0, 0), (1, 1, 0)}
    assert [one for one in shardings if one.suits(1)] == [one for one in shardings if not one.asynchronous and not one.zero_stage]
