"""The whole program on one page: scenario -> graph and cluster -> plan -> simulation -> run -> comparison."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from chinchilla_sim.accuracy import rule_of
from chinchilla_sim.cluster.build import this_machine_ranks
from chinchilla_sim.cluster.calibration import Calibration, save_calibration
from chinchilla_sim.cluster.other_load import OtherLoad, load_warning
from chinchilla_sim.errors import Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.given import serve_plan, simulate_plan
from chinchilla_sim.graph.coarsen import coarsen, expand
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.accuracy_rule import AccuracyRule
from chinchilla_sim.planner.explanation.alternative import search_instead
from chinchilla_sim.planner.explanation.codec_map import CodecCell, CodecMap, codec_cell, with_bandwidth
from chinchilla_sim.planner.explanation.explain import explain_choice
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import folds, lower
from chinchilla_sim.planner.selection.candidate import Candidate, SearchResult
from chinchilla_sim.planner.selection.front import front_of, spread
from chinchilla_sim.planner.selection.judge import Progress, Stop
from chinchilla_sim.planner.selection.limits import within_limits
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.selection.served_search import find_served_plans
from chinchilla_sim.planner.serving import load_of
from chinchilla_sim.running import judge_run, simulate_fully
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import Setting, build_graph, find_calibration, prepare, profile_path
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.simulator.requests import simulate_requests

if TYPE_CHECKING:
    from chinchilla_sim.report.study import Study
    from chinchilla_sim.validation.compare import Measurement

logger = logging.getLogger(__name__)

PLANNED_TASKS = 64


def calibrate(rank_count: int) -> tuple[Calibration, Path]:
    """Measure this machine with up to `rank_count` busy ranks, and what links that it emulates take of it; store the result."""
    from chinchilla_sim.runtime.emulated.namespaces import why_unavailable
    from chinchilla_sim.runtime.measurement.emulation import measure_emulation
    from chinchilla_sim.runtime.measurement.probe import measure_machine

    others = OtherLoad()
    calibration = measure_machine(rank_count)
    other_cores = others.cores()
    calibration = replace(calibration, other_cores=None if other_cores is None else round(other_cores, 3))
    if why_unavailable() is None:
        calibration = replace(calibration, emulation=measure_emulation())
    return calibration, save_calibration(calibration)


def ensure_calibration(scenario: Scenario) -> tuple[str, ...]:
    """Calibrate this machine if the scenario runs on it and no calibration holds; returns what there is to say."""
    ranks = this_machine_ranks(scenario.cluster)
    if not ranks:
        return ()
    found, _ = find_calibration(ranks)
    if found:
        return ()
    calibration, path = calibrate(ranks)
    return calibration_notes(calibration, path)


def calibration_notes(calibration: Calibration, path: Path) -> tuple[str, ...]:
    """What there is to say of a fresh calibration."""
    doubt = load_warning(calibration.other_cores, "were busy with other programs while this machine was measured")
    return (f"measured this machine; calibration of {calibration.date} stored in {path}", *([doubt] if doubt else []))


def profile_scenario(scenario: Scenario) -> tuple[Profile, Path]:
    """Measure every task of a scenario's model on this machine and store the times for `prepare`."""
    from chinchilla_sim.runtime.measurement.profiler import measure_tasks

    graph, _ = build_graph(scenario)
    profile = measure_tasks(scenario, this_machine_ranks(scenario.cluster))
    path = profile_path(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(profile.to_dict(), indent=1))
    partial.replace(path)
    return profile, path


def make_plan(
    setting: Setting,
    progress: Progress | None = None,
    time_limit_s: float | None = None,
    front: bool = False,
    accuracy: AccuracyRule | None = None,
    stop: Stop | None = None,
) -> SearchResult:
    """The best plan of a setting, with the runners-up: found on a coarse graph where the model is large, told in its own tasks.

    After `time_limit_s` seconds, or when `stop` says so, the best plan so far is taken and the result is `truncated`. With `front` the
    result has the Pareto front of the simulated plans; of a large model at most `front.SHOWN` of it, which are simulated again in the
    model's own tasks. `accuracy` is the rule of the scenario where it is not to be looked up.
    """
    scenario, accuracy = setting.scenario, accuracy or rule_of(setting)
    stop = _within(time_limit_s, stop)
    coarse = coarsen(setting.graph, PLANNED_TASKS)
    job, search = scenario.job, scenario.search
    if coarse is not setting.graph:
        logger.info("planned in %d groups of tasks", len(coarse.compute_tasks))
    if load_of(job):
        found = find_served_plans(
            coarse, setting.cluster, job, search, simulate, simulate_requests, progress, setting.profile, stop, front, accuracy
        )
    else:
        found = find_plans(coarse, setting.cluster, job, search, simulate, progress, setting.profile, stop, None, front, accuracy)
    logger.info("configurations: %d; plans priced: %d, simulated: %d, not fitting: %d", *_counts(found))
    if coarse is setting.graph:
        return found if front else replace(found, front=())
    listed = (found.best, *found.runner_ups)
    own = {id(candidate): _in_own_tasks(setting, coarse, candidate) for candidate in listed}
    refined = within_limits(found.limits, list(own.values()))
    refined.sort(key=lambda candidate: candidate.objective)
    one_rank = _in_own_tasks(setting, coarse, found.one_rank) if found.one_rank else None
    best = refined[0]
    members = [point.candidate for point in spread(found.front, found.best)] if front else []
    shown = [own.get(id(member)) or _in_own_tasks(setting, coarse, member) for member in members]
    return replace(
        found,
        best=best,
        runner_ups=tuple(refined[1:]),
        front=front_of([*own.values(), *shown], setting.cluster, job, search, best) if front else (),
        one_rank=one_rank,
        lower_bound_s=min(found.lower_bound_s, best.step_s),
        lower_bound=min(found.lower_bound, best.objective),
    )


def _counts(found: SearchResult) -> tuple[int, int, int, int]:
    return found.screened, found.considered, found.simulated, found.infeasible


def _within(time_limit_s: float | None, stop: Stop | None) -> Stop | None:
    """Whether a time that begins now is over, or `stop` says so."""
    if time_limit_s is None:
        return stop
    until_s = monotonic() + time_limit_s
    return lambda: monotonic() > until_s or (stop is not None and stop())


def make_best_plan(
    setting: Setting,
    progress: Progress | None = None,
    time_limit_s: float | None = None,
    front: bool = False,
    stop: Stop | None = None,
) -> tuple[Setting, SearchResult]:
    """The best plan over all variants of the model that [search] allows, with the setting of the variant that it is for.

    The `front` is that of all variants together. A variant whose plans do not fit is left out; NoFeasiblePlanError is the model's own
    where none fits.
    """
    variants = setting.scenario.search.variants
    if not variants:
        return setting, make_plan(setting, progress, time_limit_s, front, stop=stop)
    own, accuracy = setting.scenario.model.compression, rule_of(setting)
    share_s = None if time_limit_s is None else time_limit_s / (len(variants) + 1)
    found: list[tuple[Setting, SearchResult]] = []
    refusals: list[NoFeasiblePlanError] = []
    for variant in _distinct((own, *variants)):
        if found and stop and stop():
            found = [(one, replace(search, truncated=True)) for one, search in found]
            break
        model = setting.scenario.model.model_copy(update={"compression": variant})
        chosen = setting if variant == own else prepare(setting.scenario.model_copy(update={"model": model}), setting.calibration)
        try:
            rule = accuracy and accuracy.of_variant(variant)
            found.append((chosen, _named(make_plan(chosen, progress, share_s, front, rule, stop), variant.describe())))
        except NoFeasiblePlanError as refusal:
            refusals.append(refusal)
    if not found:
        raise refusals[0]
    return _best_variant(found)


def _distinct(variants: Sequence[CompressionSpec]) -> list[CompressionSpec]:
    """Variants that differ in what is done to the model; how they are trained on changes no plan."""
    first: dict[str, CompressionSpec] = {}
    for variant in variants:
        first.setdefault(str(variant.changes), variant)
    return list(first.values())


def _named(search: SearchResult, variant: str) -> SearchResult:
    best, *others = (replace(candidate, variant=variant) for candidate in (search.best, *search.runner_ups))
    one_rank = search.one_rank and replace(search.one_rank, variant=variant)
    named = [best if one.candidate is search.best else replace(one.candidate, variant=variant) for one in search.front]
    front = tuple(replace(point, candidate=candidate) for point, candidate in zip(search.front, named, strict=True))
    return replace(search, best=best, runner_ups=tuple(others), one_rank=one_rank, front=front)


def _best_variant(found: Sequence[tuple[Setting, SearchResult]]) -> tuple[Setting, SearchResult]:
    """The best of all, with the best of the other variants among its rivals, and the bound of the whole space."""
    chosen, search = min(found, key=lambda pair: pair[1].best.objective)
    results = [result for _, result in found]
    rivals = [*search.runner_ups, *(result.best for result in results if result is not search)]
    rivals.sort(key=lambda candidate: candidate.objective)
    counts = {
        name: sum(getattr(result, name) for result in results)
        for name in ("considered", "simulated", "infeasible", "beyond", "screened", "overloaded")
    }
    members = [point.candidate for result in results for point in result.front]
    return chosen, replace(
        search,
        runner_ups=tuple(rivals[: chosen.scenario.search.runner_ups]),
        lower_bound_s=min(result.lower_bound_s for result in results),
        lower_bound=min(result.lower_bound for result in results),
        truncated=any(result.truncated for result in results),
        front=front_of(members, chosen.cluster, chosen.scenario.job, chosen.scenario.search, search.best),
        **counts,
    )


def plan_instead(setting: Setting, text: str, progress: Progress | None = None) -> Candidate:
    """The best plan of another configuration ("dp=8,pp=1"); NoFeasiblePlanError says what it lacks, and by how much."""
    search = search_instead(setting.scenario.search, text)
    scenario = setting.scenario.model_copy(update={"search": search})
    return make_plan(replace(setting, scenario=scenario), progress).best


def _in_own_tasks(setting: Setting, coarse: TaskGraph, candidate: Candidate) -> Candidate:
    """A plan of groups as the same plan of the model's own tasks."""
    plan = replace(candidate.plan, stages=tuple(expand(stage, coarse) for stage in candidate.plan.stages))
    pricing = Pricer(setting.graph, setting.cluster, setting.scenario.job, setting.profile).price(plan)
    timeline = simulate(lower(plan, folds(plan, pricing)), pricing, setting.cluster)
    # USD and joule grow with the step as it does itself.
    objective = candidate.objective * (timeline.step_s / candidate.step_s if candidate.step_s else 1.0)
    serving = serve_plan(setting, plan)
    if serving and setting.scenario.search.objective == "latency":
        objective = serving.p95_s
    return replace(candidate, plan=plan, pricing=pricing, timeline=timeline, objective=objective, serving=serving)


def map_codecs(
    scenario: Scenario, bandwidths: Sequence[float], batches: Sequence[int], progress: Progress | None = None, stop: Stop | None = None
) -> CodecMap:
    """The fastest codec of gradients for every bandwidth (bytes per second) and global batch size, on the best data-parallel plan.

    When `stop` says so the map ends with the last batch that is whole.
    """
    if scenario.job.kind != "training":
        raise ScenarioError([Mistake("job.kind", "inference exchanges no gradients", 'write job.kind = "training"')])
    rows, across, down = list[tuple[CodecCell, ...]](), sorted(set(bandwidths)), sorted(set(batches))
    for batch in down:
        setting = prepare(scenario.model_copy(update={"job": scenario.job.model_copy(update={"global_batch_size": batch})}))
        graph, job, row = coarsen(setting.graph, PLANNED_TASKS), setting.scenario.job, list[CodecCell]()
        for bandwidth in across:
            if stop and stop() and (rows or row):
                whole = rows or [tuple(row)]
                return CodecMap(scenario.name, tuple(across)[: len(whole[0])], tuple(down)[: len(whole)], tuple(whole))
            if progress:
                progress(len(rows) * len(across) + len(row), len(down) * len(across))
            cluster = with_bandwidth(setting.cluster, bandwidth)
            row.append(CodecCell(bandwidth, batch, codec_cell(graph, cluster, job, scenario.search, simulate, setting.profile)))
        rows.append(tuple(row))
    return CodecMap(scenario.name, tuple(across), tuple(down), tuple(rows))


def plan_file(setting: Setting, search: SearchResult) -> PlanFile:
    """The chosen plan as it is written to plan.json."""
    return PlanFile(search.best.plan, setting.scenario, setting.hashes, search.best.step_s)


def study_of(setting: Setting, search: SearchResult, measurement: Measurement | None = None) -> Study:
    """Everything that a report shows."""
    from chinchilla_sim.report.study import Study

    comparison = judge_run(setting, simulate_fully(setting, search.best.plan), measurement) if measurement else None
    parts = setting.scenario, setting.graph, setting.cluster, search, explain_choice(search), measurement, comparison, setting.notes
    return Study(*parts)


def thorough_study(setting: Setting, search: SearchResult, measurement: Measurement | None = None) -> Study:
    """The same with the causes of idle time, and with the step for other inputs, which are simulated one by one."""
    from chinchilla_sim.simulator.sensitivity import explain_step

    plan, job = search.best.plan, setting.scenario.job
    caused = simulate_plan(setting, plan_file(setting, search)).timeline
    sensitivity = explain_step(setting.graph, setting.cluster, job, plan, setting.profile)
    return replace(study_of(setting, search, measurement), caused=caused, sensitivity=sensitivity)
