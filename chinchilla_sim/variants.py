"""Compressed variants of a scenario's model, simulated and then measured on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.compress.sparse import stored_bytes
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.running import check_runnable, run_for_real
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import CALIBRATION_VARIABLE, find_calibration, prepare
from chinchilla_sim.units import format_seconds
from chinchilla_sim.validation.spread import Played, SpreadVariant
from chinchilla_sim.validation.variants import SimulatedVariant, VariantCheck, check_variants
from chinchilla_sim.workflow import calibrate, calibration_notes, make_plan

ANSWERED_BATCHES = 400
"""Batches that a variant answers over several ranks."""


def ensure_formats(ranks: int = 1) -> tuple[str, ...]:
    """Calibrate this machine if no calibration holds for so many ranks, with linear layers in all formats; returns what there is to say."""
    found, _ = find_calibration(ranks)
    if found and found.device(1).linear:
        return ()
    if os.environ.get(CALIBRATION_VARIABLE):
        return (f"${CALIBRATION_VARIABLE} names a calibration without number formats: they are simulated as smaller, not as faster",)
    calibration, path = calibrate(max(ranks, *found.devices) if found else ranks)
    return calibration_notes(calibration, path)


def compare_variants(scenario: Scenario, train: bool) -> VariantCheck:
    """Every variant of [search], and the model as it is, on one rank of this machine."""
    from chinchilla_sim.runtime.benchmark.variant_race import race_variants

    alone = _alone(scenario)
    check_runnable(alone)
    variants = _variants(scenario)
    simulated = [_simulate(alone, variant) for variant in variants]
    return check_variants(alone.job.global_batch_size, simulated, race_variants(alone, variants, train))


def spread_variants(scenario: Scenario, ranks: Sequence[int], told: Callable[[str], None]) -> Iterator[SpreadVariant]:
    """Every variant that [search] names, and the model itself, trained for job.epochs and then answering, over each number of ranks."""
    variants = dict.fromkeys(variant.changes_only for variant in _variants(scenario))
    for count in ranks:
        with tempfile.TemporaryDirectory(prefix="chinchilla-spread-") as folder:
            # The model itself comes first: a variant that is not trained answers with its weights.
            weights = Path(folder, "0", "training", "weights.pt")
            for number, variant in enumerate(variants):
                yield _spread(scenario, variant, count, Path(folder, str(number)), weights, told)


def _spread(
    scenario: Scenario, variant: CompressionSpec, ranks: int, folder: Path, weights: Path, told: Callable[[str], None]
) -> SpreadVariant:
    """One of them; `weights` are the model's own."""
    name, trained = variant.describe(), None
    if variant.quantize != "bf16":
        trained = _play(_over(scenario, variant, ranks, kind="training"), folder / "training", None)
        told(f"{name}, trained over {ranks} ranks: {trained.plan}, {format_seconds(trained.measured_s)} a step")
        weights = folder / "training" / "weights.pt"
    answering = _over(scenario, variant, ranks, kind="inference")
    answering = answering.model_copy(update={"model": answering.model.model_copy(update={"weights": str(weights)})})
    answers = _play(answering, folder / "answering", ANSWERED_BATCHES)
    told(f"{name}, answering over {ranks} ranks: {answers.plan}, {format_seconds(answers.measured_s)} a batch")
    return SpreadVariant(name, ranks, trained, answers)


def _over(scenario: Scenario, variant: CompressionSpec, ranks: int, **changes: Any) -> Scenario:
    """A variant's training or inference as fast as so many ranks of this machine can."""
    changes |= {"arrivals_per_s": None, "concurrency": None}
    return scenario.model_copy(
        update={
            "job": scenario.job.model_copy(update=changes),
            "model": scenario.model.model_copy(update={"compression": variant}),
            "cluster": ClusterSpec(kind="this-machine", ranks=ranks),
            "search": scenario.search.model_copy(update={"variants": (), "minimum_ranks": ranks, "objective": "step_time"}),
        }
    )


def _play(scenario: Scenario, folder: Path, steps: int | None) -> Played:
    """The best plan of a scenario, run."""
    folder.mkdir(parents=True)
    setting = prepare(scenario)
    best = make_plan(setting).best
    measurement = run_for_real(PlanFile(best.plan, setting.scenario, setting.hashes, best.step_s), folder, steps)
    return Played(best.plan.describe(), best.step_s, measurement.median_step_s, dict(measurement.metrics))


def _alone(scenario: Scenario) -> Scenario:
    """One forward pass on one rank of this machine; in fp32, the precision that variants are relative to."""
    if scenario.job.precision != "fp32":
        raise ScenarioError([Mistake("job.precision", "variants are compared with the model in fp32", 'write precision = "fp32"')])
    job = scenario.job.model_copy(update={"kind": "inference", "arrivals_per_s": None, "concurrency": None, "clip_gradient_norm": None})
    model = scenario.model.model_copy(update={"compression": CompressionSpec()})
    return scenario.model_copy(update={"job": job, "model": model, "cluster": ClusterSpec(kind="this-machine", ranks=1)})


def _variants(scenario: Scenario) -> Sequence[CompressionSpec]:
    found = tuple(dict.fromkeys((CompressionSpec(), scenario.model.compression, *scenario.search.variants)))
    if len(found) == 1:
        cure = 'write for example variants = [{ prune = 0.5 }, { quantize = "int8" }]'
        raise ScenarioError([Mistake("search.variants", "names no variant to compare the model with", cure)])
    return found


def _simulate(scenario: Scenario, variant: CompressionSpec) -> SimulatedVariant:
    setting = prepare(scenario.model_copy(update={"model": scenario.model.model_copy(update={"compression": variant})}))
    graph, size = setting.graph, scenario.job.global_batch_size
    names = tuple(task.name for task in graph.compute_tasks)
    plan = Plan((names,), ((0,),), (0,), size, 1, "forward", ("none",), ())
    price = Pricer(graph, setting.cluster, scenario.job, setting.profile).price(plan).stages[0][0]
    return SimulatedVariant(
        _name(variant), graph.forward_flop, graph.total_parameter_bytes, stored_bytes(graph, variant.sparsity), price.compute_s(Op.F)
    )


def _name(variant: CompressionSpec) -> str:
    tuned = f", {variant.fine_tune_epochs} epochs more" if variant.fine_tune_epochs else ""
    return f"{variant.describe()}{tuned}"
