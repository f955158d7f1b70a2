"""The accuracy table and the rule of a search: what is measured, what it lets pass, and what a plan's steps to accuracy are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.accuracy import paired_interval
from chinchilla_sim.errors import NoFeasiblePlanError, ScenarioError
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.accuracy import AS_IT_IS, AccuracyTable, Protocol, ShortRun, changes_of
from chinchilla_sim.planner.accuracy_rule import AccuracyRule, published, safe_codecs
from chinchilla_sim.planner.explanation.explain import explain_choice
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.selection.candidate import SearchResult
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate

PLAIN = CompressionSpec()
STEPS = 100
BATCH = 64
RATE = 0.03


def run_of(change: str, seed: int, accuracy: float, rate: float) -> ShortRun:
    """A run whose accuracy rises in a straight line, `rate` per step, up to its last value."""
    steps = tuple(range(0, STEPS + 1, 5))
    return ShortRun(change, seed, steps, {"validation_accuracy": tuple(min(accuracy, rate * step) for step in steps)})


def table_of(lost: Mapping[str, Sequence[float]], slower: Mapping[str, float] | None = None) -> AccuracyTable:
    """Three seeds that reach 0.9 in 30 steps as they are; `lost` of it by change, with the rise so many times slower."""
    runs = [run_of(AS_IT_IS, seed, 0.9, RATE) for seed in range(3)]
    for change, drops in lost.items():
        runs += [run_of(change, seed, 0.9 - drop, RATE / (slower or {}).get(change, 1.0)) for seed, drop in enumerate(drops)]
    return AccuracyTable({"graph": "x"}, Protocol(STEPS), tuple(runs), "2026-11-28")


def two_nodes(bandwidth: str = "20 Mbit/s") -> Cluster:
    """Two slowly joined nodes."""
    nodes = [{"name": f"n{index}", "peak": "100 Gflop/s", "memory": "64 GiB"} for index in range(2)]
    network = {"bandwidth": bandwidth, "latency": "100 us", "backend": "plain"}
    return build_cluster(ClusterSpec.model_validate({"nodes": nodes, "network": network}), "fp32")


def search(
    table: AccuracyTable | None,
    job: Mapping[str, Any] | None = None,
    variant: CompressionSpec = PLAIN,
    bandwidth: str = "20 Mbit/s",
    **allowed: Any,
) -> SearchResult:
    """The best two-rank plan of a small network under a rule."""
    spec = SearchSpec.model_validate({"minimum_ranks": 2, "pipeline_parallel_degrees": [1], **allowed})
    described = JobSpec(global_batch_size=BATCH, **(job or {}))
    rule = AccuracyRule(described, spec, variant, table)
    return find_plans(mlp([784, 512, 10], BATCH), two_nodes(bandwidth), described, spec, simulate, accuracy=rule)


def codecs_of(result: SearchResult) -> set[str]:
    """Codecs of gradients of the best plan."""
    return set(result.best.plan.gradient_codecs)


def test_the_floor_keeps_to_the_upper_end_of_the_interval() -> None:
    """int8 loses less on average than the floor, but may lose more: it is not taken until the floor allows the worst."""
    drops = [0.001, 0.004, 0.007]
    table, high = table_of({"gradients: int8": drops, "gradients: top-k": [0.2] * 3}), paired_interval(drops).high
    assert paired_interval(drops).estimate < 0.005 < high
    assert codecs_of(search(table, max_accuracy_drop=0.005)) <= {"fp16", "bf16"}
    assert codecs_of(search(table, max_accuracy_drop=high)) == {"int8"}
    assert codecs_of(search(table, max_accuracy_drop=0.5)) == {"top-k"}


def test_without_a_table_only_what_is_published_as_safe_is_taken() -> None:
    """And the result says what was not measured, what was left out, and what to do."""
    result = search(None, max_accuracy_drop=0.01)
    assert codecs_of(result) <= {"fp16", "bf16"} and safe_codecs() == ["fp16", "bf16"]
    words = explain_choice(result)[-1]
    assert "not measured here: of lossy codecs only fp16 and bf16" in words
    assert "run chinchilla calibrate --accuracy SCENARIO" in words
    assert "gradients: one-bit (not measured; published: -17.7 % on resnet50)" in words


def test_a_measured_record_outweighs_a_published_one() -> None:
    """fp16 that was measured to lose too much is not taken because others found it safe."""
    table = table_of({"gradients: fp16": [0.1, 0.1, 0.1]})
    assert codecs_of(search(table, max_accuracy_drop=0.01)) == {"bf16"}


def test_a_floor_allows_all_codecs_that_are_not_listed_otherwise() -> None:
    """Lists are full with a floor and hold none alone without; what a scenario lists stays."""
    assert len(SearchSpec(max_accuracy_drop=0.01).gradient_codecs) == 7 and SearchSpec().gradient_codecs == ("none",)
    assert SearchSpec(max_accuracy_drop=0.01).activation_codecs == ("none", "fp16", "bf16", "int8")
    assert SearchSpec.model_validate({"max_accuracy_drop": 0.01, "gradient_codecs": ["int8"]}).gradient_codecs == ("int8",)


def test_an_unreachable_floor_says_what_would_do() -> None:
    """Two ranks must exchange by int8, which loses too much: the answer names the drop, and a floor that would do, and it does."""
    table = table_of({"gradients: int8": [0.02, 0.021, 0.022]})
    allowed = {"gradient_codecs": ["int8"], "minimum_ranks": 2}
    with pytest.raises(
        NoFeasiblePlanError, match=r"with gradients: int8 the accuracy may drop by 2\.35 %, more than the 0\.50 % allowed"
    ) as refused:
        search(table, max_accuracy_drop=0.005, **allowed)
    enough = float(refused.value.cure.split("max_accuracy_drop = ")[1].split(",")[0])
    assert codecs_of(search(table, max_accuracy_drop=enough, **allowed)) == {"int8"}
    with pytest.raises(NoFeasiblePlanError, match="nobody has measured gradients: int8"):
        search(None, max_accuracy_drop=0.005, **allowed)


def test_time_to_accuracy_is_step_times_steps() -> None:
    """A codec that halves the step does not win where it takes three times the steps; every figure of the candidates multiplies."""
    lost = {"gradients: int8": [0.0] * 3, "gradients: top-k": [0.0] * 3}
    codecs = {"gradient_codecs": ["none", "int8", "top-k"], "objective": "time_to_accuracy"}
    job = {"target_accuracy": 0.3}
    slow = search(table_of(lost, {"gradients: top-k": 3.0}), job, bandwidth="5 Gbit/s", **codecs)
    fast = search(table_of(lost, {"gradients: top-k": 1.1}), job, bandwidth="5 Gbit/s", **codecs)
    assert codecs_of(slow) == {"int8"} and codecs_of(fast) == {"top-k"}
    assert fast.best.step_s < slow.best.step_s
    for result, steps in ((slow, 10.0), (fast, 11.0)):
        forecast = result.best.forecast
        assert forecast and forecast.steps == pytest.approx(steps)
        assert result.best.objective == pytest.approx(result.best.step_s * steps)
        assert result.lower_bound <= result.best.objective


def test_the_bound_of_time_to_accuracy_holds_for_every_plan() -> None:
    """No simulated plan is below the search's lower bound, and the best is the least of all allowed codecs taken one by one."""
    factors = {"gradients: fp16": 1.5, "gradients: int8": 2.0, "gradients: top-k": 0.9, "gradients: one-bit": 1.2}
    table, job = table_of(dict.fromkeys(factors, (0.0, 0.0, 0.0)), factors), {"target_accuracy": 0.5}
    codecs = ["none", *(name.removeprefix("gradients: ") for name in factors)]
    whole = search(table, job, objective="time_to_accuracy", gradient_codecs=codecs)
    singles = [search(table, job, objective="time_to_accuracy", gradient_codecs=[codec]) for codec in codecs]
    assert whole.best.objective == pytest.approx(min(one.best.objective for one in singles))
    assert all(whole.lower_bound <= one.best.objective * (1 + 1e-9) for one in singles)


def test_a_codec_that_misses_the_target_is_left_out() -> None:
    """One seed of three that does not arrive is enough, and the result says so."""
    table = table_of({"gradients: top-k": [0.0, 0.0, 0.2], "gradients: int8": [0.0] * 3})
    result = search(table, {"target_accuracy": 0.8}, objective="time_to_accuracy", gradient_codecs=["none", "int8", "top-k", "low-rank"])
    assert codecs_of(result) == {"int8"}
    assert (
        "left out: gradients: top-k (does not reach the target); gradients: low-rank (not measured to the target)"
        in explain_choice(result)[-1]
    )
    assert table.reached("gradients: top-k", table.target_of(JobSpec(global_batch_size=1, target_accuracy=0.8))) == 2


def test_time_to_accuracy_without_a_table_names_the_cure() -> None:
    """Also where the runs do not reach the target, or do not evaluate what it is stated in."""
    with pytest.raises(ScenarioError, match=r"search\.objective: .*nothing was measured.*; run chinchilla calibrate --accuracy"):
        search(None, objective="time_to_accuracy")
    with pytest.raises(ScenarioError, match=r"job\.target_accuracy: cannot be told: 100 steps .* --steps 400"):
        search(table_of({}), {"target_accuracy": 0.95}, objective="time_to_accuracy")
    with pytest.raises(ScenarioError, match="needs runs that evaluate validation_loss"):
        search(table_of({}), {"target_loss": 0.1}, objective="time_to_accuracy")


def test_changes_of_two_kinds_add_up_seed_by_seed() -> None:
    """Drops that cancel within every seed have no interval, which sums of two intervals would have; ratios multiply."""
    one, other = "gradients: int8", "activations: int8"
    table = table_of({one: [0.0, 0.01, 0.02], other: [0.02, 0.01, 0.0]}, {one: 2.0, other: 1.5})
    drop = table.drop([one, other])
    assert drop and (drop.estimate, drop.low, drop.high) == pytest.approx((0.02, 0.02, 0.02))
    ratio = table.steps_ratio([one, other], table.target_of(JobSpec(global_batch_size=1, target_accuracy=0.3)))
    assert ratio and ratio.estimate == pytest.approx(3.0)
    assert table.drop([one, "gradients: top-k"]) is None


def test_the_worst_of_several_codecs_of_one_kind_counts() -> None:
    """Each was measured on all stages: a plan that has both in some stages is judged as if it had the worse one in all."""
    table = table_of({"gradients: int8": [0.03] * 3, "gradients: fp16": [0.01] * 3}, {"gradients: int8": 2.0})
    rule = AccuracyRule(JobSpec(global_batch_size=1, target_accuracy=0.3), SearchSpec(), PLAIN, table)
    both, worse = rule.forecast_of(("gradients: fp16", "gradients: int8")), rule.forecast_of(("gradients: int8",))
    assert replace(both, changes=()) == replace(worse, changes=())


def test_changes_are_those_that_a_plan_makes() -> None:
    """Codecs count where something travels: between replicas, and between stages on different ranks."""
    plan = Plan((("a",), ("b",)), ((0,), (1,)), (0, 1), 4, 1, "1f1b", ("int8", "int8"), ("fp16",))
    assert changes_of(plan, PLAIN) == ("activations: fp16",)
    assert changes_of(replace(plan, placement=((0, 2), (1, 3)), slots=(0, 1, 2, 3)), CompressionSpec(prune=0.5)) == (
        "variant: pruned 50 %",
        "gradients: int8",
        "activations: fp16",
    )
    assert changes_of(replace(plan, placement=((0,), (0,)), slots=(0,)), PLAIN) == ()
    replicas = replace(plan, placement=((0, 2), (1, 3)), slots=(0, 1, 2, 3), gradient_codecs=("none",) * 2, activation_codecs=("none",))
    assert changes_of(replace(replicas, local_steps=16), PLAIN) == ("local_steps: 16",)
    assert changes_of(replace(replicas, gradient_delay=1), PLAIN) == ("gradient_delay: 1",)
    assert changes_of(replace(plan, activation_codecs=("none",), local_steps=16, gradient_delay=1), PLAIN) == ()


def test_a_variant_is_judged_as_a_change_of_the_model() -> None:
    """Its drop and that of codecs add up; one that is not measured is refused under a floor."""
    variant = CompressionSpec(prune=0.5)
    table = table_of({"variant: pruned 50 %": [0.004] * 3, "gradients: int8": [0.004] * 3, "gradients: fp16": [0.0] * 3})
    codecs = ["none", "fp16", "int8"]
    assert codecs_of(search(table, variant=variant, max_accuracy_drop=0.005, gradient_codecs=codecs)) == {"fp16"}
    assert codecs_of(search(table, variant=variant, max_accuracy_drop=0.009, gradient_codecs=codecs)) == {"int8"}
    with pytest.raises(NoFeasiblePlanError, match="nobody has measured variant: pruned 90 %"):
        search(table, variant=CompressionSpec(prune=0.9), max_accuracy_drop=0.005, gradient_codecs=["none"])


def test_the_default_target_is_what_the_run_as_it_is_reaches_near_its_end() -> None:
    """The mean of the last fifth of its evaluations, which every such run reaches itself; of the loss where that is known."""
    table = replace(table_of({}), runs=(run_of(AS_IT_IS, 0, 0.9, 0.01),))
    target = table.target_of(JobSpec(global_batch_size=1))
    assert (target.metric, target.value) == ("validation_accuracy", None)
    assert target.value_of(table.by_change[AS_IT_IS][0]) == pytest.approx((0.8 + 0.85 + 3 * 0.9) / 5)
    steps = table.plain_steps(target)
    assert steps is not None and 85 < steps < 90
    falling = ShortRun(AS_IT_IS, 0, (0, 50, 100), {"validation_accuracy": (0.1, 0.5, 0.6), "validation_loss": (2.0, 1.0, 0.5)})
    assert not replace(table, runs=(falling,)).target_of(JobSpec(global_batch_size=1)).rising


def test_published_records_name_their_source() -> None:
    """Every codec has one; those that lost more than 0.5 % somewhere are not safe."""
    assert set(published()) == {"fp16", "bf16", "int8", "one-bit", "top-k", "low-rank"}
    for record in published().values():
        assert record["source"]
        assert not record["safe"] or min(record.get("changes", {"none": 0.0}).values()) > -0.005


def test_forecasts_are_those_of_the_simulated_plan() -> None:
    """Without a floor nothing is refused, and what is known of the chosen codecs is told."""
    table = table_of({"gradients: int8": [0.01, 0.02, 0.03]})
    result = search(table, {"target_accuracy": 0.3}, gradient_codecs=["int8"])
    forecast = result.best.forecast
    assert forecast and forecast.changes == ("gradients: int8",) and forecast.drop and forecast.drop.estimate == pytest.approx(0.02)
    assert isfinite(forecast.steps or inf)
    plan, job = result.best.plan, JobSpec(global_batch_size=BATCH)
    pricing = Pricer(mlp([784, 512, 10], BATCH), two_nodes(), job).price(plan)
    assert simulate(lower(plan), pricing, two_nodes()).step_s == pytest.approx(result.best.step_s)
    assert "accuracy changes by -2.00 % (-4.48 to +0.48 %)" in explain_choice(result)[-1]


def test_what_is_only_published_is_not_told_as_measured() -> None:
    """fp16 passes by its record beside a table without it; with int8 measured, their sum counts what int8 loses."""
    table = table_of({"gradients: int8": [0.0] * 3, "activations: int8": [0.002] * 3})
    result = search(table, max_accuracy_drop=0.01, gradient_codecs=["fp16"])
    assert result.best.forecast and result.best.forecast.drop is None
    assert "what that does to accuracy was not measured here" in explain_choice(result)[-1]
    rule = AccuracyRule(JobSpec(global_batch_size=1), SearchSpec(max_accuracy_drop=0.01), PLAIN, table)
    assert rule.allows(("gradients: fp16", "activations: int8"))
    drop = rule.forecast_of(("gradients: fp16", "activations: int8")).drop
    assert drop and drop.estimate == pytest.approx(0.002)


SELDOM: dict[str, Any] = {"gradient_codecs": ["none"], "local_steps": [1, 4, 16], "gradient_delays": [0, 1]}


def test_local_steps_and_late_gradients_are_judged_as_codecs_are() -> None:
    """Of 4 and 16 local steps and late gradients the fastest is taken that keeps to the floor; without one 16 local steps."""
    table = table_of({"local_steps: 4": [0.002] * 3, "local_steps: 16": [0.02] * 3, "gradient_delay: 1": [0.001] * 3})
    chosen = [search(table, max_accuracy_drop=floor, **SELDOM).best for floor in (0.0, 0.0015, 0.01, 0.05)]
    assert [(one.plan.local_steps, one.plan.gradient_delay) for one in chosen] == [(1, 0), (1, 1), (4, 0), (16, 0)]
    assert chosen[2].forecast and chosen[2].forecast.changes == ("local_steps: 4",)
    assert search(table, **SELDOM).best.plan == chosen[3].plan


def test_unmeasured_local_steps_are_left_out_and_told() -> None:
    """With no table, or with one of other numbers; where nothing else is allowed the answer says what to measure or allow."""
    for table in (None, table_of({"local_steps: 4": [0.2] * 3})):
        result = search(table, max_accuracy_drop=0.01, **SELDOM)
        assert not result.best.plan.asynchronous
        words = explain_choice(result)[-1]
        assert "local_steps: 16 (not measured); gradient_delay: 1 (not measured)" in words
        assert ("local_steps: 4 (drop up to 20.00 %)" if table else "local_steps: 4 (not measured)") in words
    with pytest.raises(NoFeasiblePlanError, match="nobody has measured local_steps: 8") as refused:
        search(None, max_accuracy_drop=0.01, gradient_codecs=["none"], local_steps=[8])
    assert refused.value.cure == "run chinchilla calibrate --accuracy SCENARIO, or allow 1 in search.local_steps"
    with pytest.raises(NoFeasiblePlanError, match="gradient_delay: 1 the accuracy may drop by 3") as dropping:
        search(table_of({"gradient_delay: 1": [0.03] * 3}), max_accuracy_drop=0.01, gradient_codecs=["none"], gradient_delays=[1])
    assert dropping.value.cure.endswith("or allow 0 in search.gradient_delays")


def test_a_codec_and_local_steps_add_up() -> None:
    """Each keeps to the floor, both together do not: one of them is taken."""
    table = table_of({"local_steps: 4": [0.004] * 3, "gradients: int8": [0.003] * 3})
    allowed = {"gradient_codecs": ["none", "int8"], "local_steps": [1, 4]}
    found = {floor: search(table, max_accuracy_drop=floor, **allowed).best.plan for floor in (0.0035, 0.0055, 0.0075)}
    assert {floor: (plan.local_steps, plan.gradient_codecs[0]) for floor, plan in found.items()} == {
        0.0035: (1, "int8"),
        0.0055: (4, "none"),
        0.0075: (4, "int8"),
    }


def test_time_to_accuracy_counts_the_steps_of_rare_exchanges() -> None:
    """The best of all is the least of all allowed choices taken one by one; no step time makes up for five times the steps."""
    slower = {"local_steps: 4": 1.2, "local_steps: 16": 5.0, "gradient_delay: 1": 0.9}
    table, job = table_of(dict.fromkeys(slower, (0.0, 0.0, 0.0)), slower), {"target_accuracy": 0.5}
    timed: dict[str, Any] = {"objective": "time_to_accuracy", "gradient_codecs": ["none"]}
    whole = search(table, job, **timed | SELDOM)
    choices = [*({"local_steps": [steps]} for steps in (1, 4, 16)), {"gradient_delays": [1]}]
    singles = [search(table, job, **timed | choice) for choice in choices]
    assert whole.best.objective == min(one.best.objective for one in singles) and whole.best.plan.local_steps == 4
    assert all(whole.lower_bound <= one.best.objective * (1 + 1e-9) for one in singles)
    alone = AccuracyRule(JobSpec(global_batch_size=1, **job), SearchSpec.model_validate(timed | SELDOM), PLAIN, table)
    assert alone.least_steps == pytest.approx(0.9 * 0.5 / RATE)
