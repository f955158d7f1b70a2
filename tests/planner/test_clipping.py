"""Clipped gradients: who takes part in the norm, and where it stands in the program."""

from dataclasses import replace
from pathlib import Path

import pytest

from chinchilla_sim.cost.compute import clipping_s
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.given import open_plan
from chinchilla_sim.graph.zoo import chain, mlp
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.setting import prepare
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.workflow import make_plan
from tests.planner.graphs import sharing
from tests.planner.pricing.test_sharing import cluster_of, plan_of

JOB = JobSpec(global_batch_size=8, clip_gradient_norm=1.0)


def test_rows_by_hand() -> None:
    """Every rank adds up the squares of its stages behind the shared sum, then all together, and updates last."""
    plan = replace(plan_of(sharing(chain(2, 8, 1.0, 4.0, 1), [[0, 1]], 8.0), 2), clips_gradients=True)
    assert lower(plan).to_csv().splitlines() == [
        "0RECV_B0,0F0,0SEND_F0,0B0,0REDUCE_SHARED0,0NORM_GRAD,0REDUCE_NORM,0OPTIM",
        "1RECV_F0,1F0,1B0,1SEND_B0,1REDUCE_SHARED0,1NORM_GRAD,1REDUCE_NORM,1OPTIM",
    ]


def test_who_holds_all_gradients_together() -> None:
    """Whole replicas hold the same gradients and add up their own stages'; shards of replicas are added up over all ranks."""
    replicas = replace(plan_of(chain(2, 8, 1.0, 4.0, 2), 2, replicas=2), clips_gradients=True)
    assert [replicas.norm_ranks(replica) for replica in (0, 1)] == [(0, 1), (2, 3)]
    assert replace(replicas, zero_stage=1).norm_ranks(1) == (0, 1, 2, 3)
    alone = replace(plan_of(chain(2, 8, 1.0, 4.0, 2), 1, replicas=2), clips_gradients=True)
    assert [action.op for action in lower(alone).actions[0]][-2:] == [Op.NORM_GRAD, Op.OPTIM]
    assert lower(replace(alone, zero_stage=1)).to_csv().splitlines()[1].endswith("0NORM_GRAD,0REDUCE_NORM,0OPTIM,0UNSHARD")


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_prices_of_a_clipped_plan(zero_stage: int) -> None:
    """Norm and scaling read what a device updates; one number of 4 bytes is added up; nothing else changes."""
    graph, cluster = mlp([64, 64, 64, 64], 8), cluster_of(4)
    cluster = replace(cluster, devices=tuple(replace(one, elementwise_bandwidth_bytes_per_s=1e9) for one in cluster.devices))
    pricer, plain = Pricer(graph, cluster, JOB), Pricer(graph, cluster, JobSpec(global_batch_size=8))
    plan = replace(plan_of(graph, 2, replicas=2), zero_stage=zero_stage)
    clipped, usual = pricer.price(pricer.completed(plan)), plain.price(plain.completed(plan))
    bytes_of = graph.trained_bytes_of(pricer.tasks_of(plan, 0)) / (2 if zero_stage else 1)
    norm_s, scaling_s = clipping_s(bytes_of, cluster.device(0, 4))
    before, behind = usual.stages[0][0].action_s, clipped.stages[0][0].action_s
    assert behind[Op.NORM_GRAD] == norm_s > 0 and behind[Op.OPTIM] - before[Op.OPTIM] == pytest.approx(scaling_s)
    assert [one.payload_bytes for one in clipped.norm] == [4.0] * (1 if zero_stage else 2) and usual.norm == ()
    assert len(clipped.norm[0].orders[0]) == (4 if zero_stage else 2)
    assert clipped.gradients == usual.gradients


def test_found_plans_clip_where_the_job_does() -> None:
    """The search sets it on every plan, and a clipped step is never shorter."""
    graph, cluster = mlp([64, 64, 64, 64], 8), cluster_of(4)
    search = SearchSpec(zero_stages=(0, 1))
    clipped, usual = (find_plans(graph, cluster, job, search, simulate) for job in (JOB, JobSpec(global_batch_size=8)))
    assert all(candidate.plan.clips_gradients for candidate in (clipped.best, *clipped.runner_ups))
    assert not usual.best.plan.clips_gradients and clipped.best.step_s >= usual.best.step_s


def test_a_plan_that_does_not_clip_is_refused(tmp_path: Path) -> None:
    """A plan file made for the same job without clipping does not answer it."""
    tables = {
        "model": {"formula": "mlp", "widths": [8, 8, 4]},
        "job": {"global_batch_size": 8, "clip_gradient_norm": 1.0},
        "cluster": {"nodes": [{"name": "n", "count": 1, "peak": "1 Gflop/s", "memory": "1 GiB"}]},
    }
    scenario = parse_scenario(tables, str(tmp_path / "s.toml"))
    best = make_plan(prepare(scenario)).best.plan
    assert open_plan(PlanFile(best, scenario), "plan.json").scenario == scenario
    with pytest.raises(ScenarioError, match=r"plan\.clips_gradients: job\.clip_gradient_norm asks for clipping"):
        open_plan(PlanFile(replace(best, clips_gradients=False), scenario), "plan.json")
