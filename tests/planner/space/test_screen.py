"""The screen of a whole space: every configuration once, bounds that nothing beats, an estimate that ranks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.graph.coarsen import coarsen
from chinchilla_sim.graph.zoo import bert, chain, mlp
from chinchilla_sim.planner.drafting.drafts import Drafter
from chinchilla_sim.planner.drafting.placement import placements, share_out
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.program import folds, lower
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.selection import search as search_module
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.slots import SlotChooser, usable_by_speed
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.planner.space.configuration import Configuration, Space, divisors
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.planner.space.screen import screen
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from tests.planner.graphs import shared_sets, sharing

SCHEDULE_NAMES = ("gpipe", "1f1b", "interleaved-1f1b", "zb-h1")


def cluster_of(*speeds: str, bandwidth: str = "1 GB/s", latency: str = "1 ms"):
    nodes = [{"name": f"n{index}", "peak": speed, "memory": "16 GiB"} for index, speed in enumerate(speeds)]
    network = {"bandwidth": bandwidth, "latency": latency, "topology": "switch"}
    return build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": network}), "fp32", None)


def job_of(batch: int = 8, kind: str = "training") -> JobSpec:
    return JobSpec(kind=kind, global_batch_size=batch)


def plans_of(configuration: Configuration, names: tuple[str, ...], batch: int, cuts: list[int], cluster) -> Plan:
    """One plan of a configuration with the given cuts."""
    stages = tuple(names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)], strict=True))
    line = next(placements(*configuration.split))
    schedule = SCHEDULES[configuration.schedule]
    ranks = configuration.pipeline_parallel_degree
    return Plan(
        stages=stages,
        placement=tuple(line[schedule.rank_of_stage(stage, ranks)] for stage in range(configuration.stage_count)),
        slots=tuple(sorted(usable_by_speed(cluster)[: configuration.device_count])),
        global_batch_size=batch,
        microbatch_count=configuration.microbatch_count,
        schedule=configuration.schedule,
        gradient_codecs=("none",) * len(stages),
        activation_codecs=("none",) * (len(stages) - 1),
    )


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.sampled_from([8, 64, 512]), min_size=3, max_size=6),
    speeds=st.sampled_from([("1 Gflop/s",) * 4, ("1 Gflop/s", "1 Gflop/s", "4 Gflop/s"), ("2 Gflop/s", "9 Gflop/s")]),
    kind=st.sampled_from(["training", "inference"]),
    data=st.data(),
)
def test_no_cut_of_any_configuration_beats_its_bound(widths: list[int], speeds: tuple[str, ...], kind: str, data: st.DataObject) -> None:
    """Oracle: random cuts of every configuration, simulated, against the screen's lower bound."""
    cluster, job = cluster_of(*speeds), job_of(8, kind)
    graph = mlp(widths, 8, kind == "training", 4.0)
    graph = sharing(graph, data.draw(shared_sets(len(graph.compute_tasks))), 4e5)
    pricer = Pricer(graph, cluster, job)
    cuts = allowed_cuts(graph, kind == "training")
    space = Space(job, SearchSpec(schedules=SCHEDULE_NAMES), cluster.rank_count, sum(cuts))
    screened = screen(pricer, space)
    names = tuple(task.name for task in graph.compute_tasks)
    ends = [index + 1 for index, allowed in enumerate(cuts[:-1]) if allowed]
    for row in data.draw(st.lists(st.integers(0, len(screened) - 1), min_size=1, max_size=6)):
        configuration = screened.configuration(row)
        chosen = data.draw(st.permutations(ends))[: configuration.stage_count - 1]
        plan = with_sharing(plans_of(configuration, names, 8, sorted(chosen), cluster), graph)
        timeline = simulate(lower(plan), pricer.price(plan), cluster)
        assert timeline.step_s >= screened.lower_bound_s[row] * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    codec=st.sampled_from(sorted(CODECS)),
    zero_stage=st.sampled_from([0, 1]),
    widths=st.lists(st.sampled_from([8, 64, 512]), min_size=3, max_size=5),
    data=st.data(),
)
def test_no_codec_beats_the_bound(codec: str, zero_stage: int, widths: list[int], data: st.DataObject) -> None:
    """Oracle: random cuts with every codec of gradients over a slow network, whole or divided by ZeRO, against the screen's bound."""
    cluster, job = cluster_of(*("1 Gflop/s",) * 4, bandwidth="1 MB/s", latency="1 us"), job_of(8)
    graph = mlp(widths, 8, True, 4.0)
    pricer, cuts = Pricer(graph, cluster, job), allowed_cuts(graph, True)
    search = SearchSpec(schedules=("1f1b",), gradient_codecs=(codec,), zero_stages=(zero_stage,), data_parallel_degrees=(2, 4))
    screened = screen(pricer, Space(job, search, cluster.rank_count, sum(cuts)))
    names = tuple(task.name for task in graph.compute_tasks)
    ends = [index + 1 for index, allowed in enumerate(cuts[:-1]) if allowed]
    for row in range(len(screened)):
        configuration = screened.configuration(row)
        chosen = data.draw(st.permutations(ends))[: configuration.stage_count - 1]
        plan = plans_of(configuration, names, 8, sorted(chosen), cluster)
        plan = replace(plan, gradient_codecs=(codec,) * plan.stage_count, zero_stage=zero_stage)
        pricing = pricer.price(plan)
        step_s = simulate(lower(plan), pricing, cluster).step_s
        assert step_s >= screened.lower_bound_s[row] * (1 - 1e-9)
        assert step_s >= step_lower_bound_s(plan, pricing, cluster) * (1 - 1e-9)


def test_the_screen_holds_every_configuration_once() -> None:
    """Law: rows of the screen are the configurations of the space, in number and kind."""
    cluster, job = cluster_of(*("1 Gflop/s",) * 6), job_of(12)
    graph = chain(8, 8000, 1e9, 1e3, 12, 4.0)
    search = SearchSpec(
        executable=False, schedules=SCHEDULE_NAMES, zero_stages=(0, 1), gradient_buckets=(1, 2), recompute=("none", "full"), minimum_ranks=2
    )
    space = Space(job, search, 6, 8)
    screened = screen(Pricer(graph, cluster, job), space)
    rows = [screened.configuration(row) for row in range(len(screened))]
    listed = list(space.configurations())
    assert len(set(rows)) == len(rows) == screened.screened
    assert set(rows) == set(listed)
    assert screened.device_counts().tolist() == [configuration.device_count for configuration in rows]


def test_equal_stages_take_what_the_estimate_says() -> None:
    """By hand: 8 equal tasks, no network to speak of: (m + p - 1) T / p, to a few percent in the simulation."""
    cluster, job = cluster_of(*("1 Gflop/s",) * 4, bandwidth="1000 GB/s", latency="1 us"), job_of(16)
    graph = chain(8, 8000, 1e9, 1.0, 16, 4.0)
    pricer = Pricer(graph, cluster, job)
    space = Space(job, SearchSpec(schedules=("1f1b",), data_parallel_degrees=(1,), pipeline_parallel_degrees=(4,)), 4, 8)
    screened = screen(pricer, space)
    names = tuple(task.name for task in graph.compute_tasks)
    for row in range(len(screened)):
        plan = plans_of(screened.configuration(row), names, 16, [2, 4, 6], cluster)
        step_s = simulate(lower(plan), pricer.price(plan), cluster).step_s
        assert screened.estimate_s[row] == pytest.approx(step_s, rel=0.05)
        assert screened.lower_bound_s[row] <= step_s


def test_a_large_space_gives_nearly_the_plan_of_the_whole_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: likely plans first, a few of them priced, against all of them; bound and gap are those of the space either way."""
    cluster, job = cluster_of(*("1 Gflop/s",) * 6, bandwidth="100 MB/s"), job_of(24)
    graph = chain(12, 120_000, 1e9, 1e4, 24, 4.0)
    search = SearchSpec(schedules=("1f1b", "gpipe"))
    whole = find_plans(graph, cluster, job, search, simulate)
    monkeypatch.setattr(search_module, "EXHAUSTIVE", 0)
    likely = find_plans(graph, cluster, job, search, simulate)
    assert likely.considered < whole.considered / 2
    assert whole.best.step_s <= likely.best.step_s <= whole.best.step_s * 1.02
    for found in (whole, likely):
        assert found.lower_bound_s <= whole.best.step_s
        assert found.gap == pytest.approx(found.best.step_s / found.lower_bound_s - 1)
        assert not found.truncated
    assert whole.lower_bound_s == likely.lower_bound_s
    again = find_plans(graph, cluster, job, search, simulate)
    assert again.best.plan == likely.best.plan


def test_a_search_that_is_cut_off_says_so() -> None:
    """With no time at all the first plan that was found is the answer."""
    cluster, job = cluster_of(*("1 Gflop/s",) * 4), job_of(8)
    found = find_plans(chain(4, 4000, 1e9, 1e3, 8, 4.0), cluster, job, SearchSpec(), simulate, stop=lambda: True)
    assert found.truncated
    assert found.best.step_s >= found.lower_bound_s


def test_faster_replicas_get_more_microbatches() -> None:
    """By hand: devices of 1 and 3 Gflop/s with 8 equal microbatches: 6 for the fast, 2 for the slow."""
    cluster, job = cluster_of("1 Gflop/s", "3 Gflop/s", bandwidth="1000 GB/s"), job_of(8)
    search = SearchSpec(
        executable=False, data_parallel_degrees=(2,), pipeline_parallel_degrees=(1,), microbatch_counts=(4,), minimum_ranks=2
    )
    found = find_plans(chain(4, 4000, 1e9, 1.0, 8, 4.0), cluster, job, search, simulate)
    assert found.best.plan.replica_microbatch_counts == (6, 2)


@given(st.lists(st.integers(1, 9).map(float), min_size=1, max_size=4), st.integers(0, 8))
def test_share_out_is_the_best_of_all(seconds: list[float], more: int) -> None:
    """Oracle: the last to finish is as early as in the best of all ways to share out."""
    total = len(seconds) + more
    counts = share_out(total, seconds)
    assert sum(counts) == total
    assert min(counts) >= 1

    def best(left: int, replicas: tuple[float, ...]) -> float:
        if len(replicas) == 1:
            return left * replicas[0]
        rest = len(replicas) - 1
        return min(max(count * replicas[0], best(left - count, replicas[1:])) for count in range(1, left - rest + 1))

    assert max(count * one for count, one in zip(counts, seconds, strict=True)) == pytest.approx(best(total, tuple(seconds)))


def test_folding_changes_no_step_time_where_replicas_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: three like replicas, each alone on its links but in the exchange, folded and whole."""
    from chinchilla_sim.planner import program

    cluster, job = cluster_of(*("1 Gflop/s",) * 6, bandwidth="1000 GB/s", latency="1 us"), job_of(12)
    graph = chain(4, 4000, 1e9, 1e3, 12, 4.0)
    search = SearchSpec(data_parallel_degrees=(3,), pipeline_parallel_degrees=(2,), microbatch_counts=(4,))
    whole = find_plans(graph, cluster, job, search, simulate).best
    assert not folds(whole.plan, whole.pricing)
    monkeypatch.setattr(program, "FOLDED_DEVICES", 4)
    assert folds(whole.plan, whole.pricing)
    folded = simulate(lower(whole.plan, folded=True), whole.pricing, cluster)
    assert folded.step_s == pytest.approx(whole.step_s, rel=1e-3)
    assert not folds(replace(whole.plan, replica_microbatch_counts=(4, 4, 4)), whole.pricing)


@given(st.integers(1, 5000))
def test_divisors(number: int) -> None:
    """Law: all that divide, ascending."""
    assert divisors(number) == [count for count in range(1, number + 1) if number % count == 0]


def test_nothing_allowed_is_an_empty_screen() -> None:
    """No split of so many ranks: no rows, and no error."""
    cluster, job = cluster_of("1 Gflop/s"), job_of(8)
    space = Space(job, SearchSpec(minimum_ranks=9), 1, 4)
    screened = screen(Pricer(chain(4, 4000, 1e9, 1e3, 8, 4.0), cluster, job), space)
    assert len(screened) == screened.screened == 0
    assert np.isfinite(screened.lower_bound_s).all()


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_bound_holds_where_the_host_and_kinds_of_devices_decide(schedule: Any) -> None:
    """Two V100 and two T4 with their launch times: no plan of any configuration is simulated faster than its configuration's bound."""
    nodes = [{"name": "v", "count": 2, "device": "v100-sxm2-32gb"}, {"name": "t", "count": 2, "device": "t4"}]
    spec = ClusterSpec.model_validate({"nodes": nodes, "network": {"bandwidth": "100 Gbit/s", "latency": "5 us"}})
    cluster, job = build_cluster(spec, "fp16", None), JobSpec(global_batch_size=8, precision="fp16")
    graph = coarsen(bert(batch_size=8, value_bytes=2.0, layers=4, width=256, heads=4, tokens=64, vocabulary=1000), 24)
    search = SearchSpec(executable=False, schedules=(schedule,), microbatch_counts=(2, 4, 8))
    pricer = Pricer(graph, cluster, job)
    drafter = Drafter(pricer, search, SlotChooser(cluster, []))
    screened = screen(pricer, Space(job, search, 4, sum(drafter.cutter.can_end)))
    simulated = 0
    for row in range(len(screened)):
        for plan in filter(None, drafter.plans(screened.configuration(row))):
            pricing = pricer.price(plan)
            assert screened.lower_bound_s[row] <= simulate(lower(plan), pricing, cluster).step_s, plan.describe()
            simulated += 1
    assert simulated >= 30
