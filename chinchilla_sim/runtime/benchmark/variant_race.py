"""A model and its compressed variants in one process, in turns: `python -m chinchilla_sim.runtime.benchmark.variant_race FOLDER`.

In every round each of them makes some forward passes of the same batch, each behind a sweep of the core's cache, so that whatever else
the machine does meets all alike; the first do not count (farther caches hold what the others left). A job that evaluates gets to see each
variant; before that the model may be trained, and a variant trained on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_sim.graph.compress import AS_IT_IS, Variant
from chinchilla_sim.graph.contract import TrainingJob, factory_of, load_job
from chinchilla_sim.graph.trace import as_tuple, export_module, graph_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.measurement.format_probe import SWEPT_VALUES
from chinchilla_sim.runtime.rank.optimizers import make_optimizer, set_learning_rate
from chinchilla_sim.runtime.stage.batches import calibration_inputs, global_batches
from chinchilla_sim.runtime.stage.passes import Passes
from chinchilla_sim.runtime.stage.stages import Stage, cut_stages
from chinchilla_sim.runtime.stage.whole_variant import trainable_variant, variant_module
from chinchilla_sim.runtime.variant.number_formats import packed_linear_bytes
from chinchilla_sim.runtime.variant.sparsity import Masks
from chinchilla_sim.runtime.variant.variants import make_variant
from chinchilla_sim.runtime.worker import prepare_process
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.validation.variants import MeasuredVariant

WARM_UP, TURN = 2, 5
FEWEST_ROUNDS, MOST_ROUNDS = 8, 60
BUDGET_S = 20.0
CPU = torch.device("cpu")


def race_variants(scenario: Scenario, variants: Sequence[CompressionSpec], train: bool) -> list[MeasuredVariant]:
    """What this machine measured of each variant on one rank; with `train` the model is trained for job.epochs first."""
    with tempfile.TemporaryDirectory(prefix="chinchilla-variants-") as name:
        folder = Path(name)
        orders = {"scenario": scenario.to_dict(), "variants": [variant.model_dump() for variant in variants], "train": train}
        (folder / "orders.json").write_text(json.dumps(orders))
        launch_ranks("chinchilla_sim.runtime.benchmark.variant_race", [name], 1, folder)
        records = json.loads((folder / "variants.json").read_text())
    return [MeasuredVariant(tuple(record["forward_s"]), record["parameter_bytes"], record["metrics"]) for record in records]


# What follows runs in the rank.


@dataclass
class _Entry:
    variant: Variant
    stage: Stage
    metrics: dict[str, float]


def _race(folder: Path) -> None:
    prepare_process()
    orders = json.loads((folder / "orders.json").read_text())
    scenario = parse_scenario(orders["scenario"], "orders.json")
    job = load_job(*factory_of(scenario), to_run=True)
    model = _model(job, scenario)
    trained = orders["train"] or scenario.model.weights is not None
    if orders["train"]:
        _train(job, scenario, model, AS_IT_IS, scenario.job.epochs)
    entries = [_enter(job, scenario, model, CompressionSpec(**spec), trained) for spec in orders["variants"]]
    seconds = _take_turns([entry.stage for entry in entries], as_tuple(_batch(job, scenario)))
    records = [
        {"forward_s": own, "parameter_bytes": stored_bytes(entry.stage), "metrics": entry.metrics}
        for entry, own in zip(entries, seconds, strict=True)
    ]
    (folder / "variants.json").write_text(json.dumps(records))


def _model(job: TrainingJob, scenario: Scenario) -> nn.Module:
    torch.manual_seed(scenario.job.seed)
    model: nn.Module = job.model()
    if scenario.model.weights:
        model.load_state_dict(torch.load(scenario.model.weights, weights_only=True))
    return model


def _enter(job: TrainingJob, scenario: Scenario, model: nn.Module, spec: CompressionSpec, trained: bool) -> _Entry:
    """A variant, trained on where it asks for that, with its metrics."""
    variant, own = Variant(**spec.changes), _copy(job, model)
    if trained and spec.fine_tune_epochs:
        _train(job, scenario, own, variant, spec.fine_tune_epochs)
    plan = _plan(job, own, scenario.job.global_batch_size, variant)
    (stage,) = cut_stages(job, own, plan, (0,), CPU, variant=variant)
    evaluate = getattr(job, "evaluate", None) if trained else None
    if evaluate is None:
        return _Entry(variant, stage, {})
    metrics: dict[str, float] = evaluate(own if variant == AS_IT_IS else variant_module(job, own, plan, CPU, variant))
    return _Entry(variant, stage, metrics)


def _copy(job: TrainingJob, model: nn.Module) -> nn.Module:
    own: nn.Module = job.model()
    own.load_state_dict(model.state_dict())
    return own


def _plan(job: TrainingJob, model: nn.Module, size: int, variant: Variant) -> Plan:
    """The whole variant in one stage of one rank."""
    exported = export_module(model.eval(), as_tuple(job.example_batch(size)[0]))
    graph = graph_of(model, list(exported.graph.nodes), size, False, "race")
    graph = make_variant(exported, graph, variant, partial(calibration_inputs, job, model, size, CPU)).graph
    names = tuple(task.name for task in graph.compute_tasks)
    return Plan((names,), ((0,),), (0,), size, 1, "forward", ("none",), ())


def _batch(job: TrainingJob, scenario: Scenario) -> Any:
    """The first validation batch, or what the job gives as an example where that has too few samples."""
    size = scenario.job.global_batch_size
    batches = global_batches(job.batches("validation", scenario.job.seed, 0), size)
    return next(batches, job.example_batch(size))[0]


def _take_turns(stages: Sequence[Stage], inputs: tuple[Tensor, ...]) -> list[list[float]]:
    """Median seconds of a forward pass of every stage in every round."""
    passes, sweep = [Passes(stage, None) for stage in stages], torch.zeros(SWEPT_VALUES)
    seconds: list[list[float]] = [[] for _ in stages]
    begun_s = monotonic()
    while len(seconds[-1]) < MOST_ROUNDS and (len(seconds[-1]) < FEWEST_ROUNDS or monotonic() - begun_s < BUDGET_S):
        for one, own in zip(passes, seconds, strict=True):
            times = []
            for _ in range(WARM_UP + TURN):
                sweep.add_(1.0)
                start_s = monotonic()
                one.infer(inputs)
                times.append(monotonic() - start_s)
            own.append(median(times[WARM_UP:]))
    return [own[1:] for own in seconds]


def stored_bytes(stage: Stage) -> float:
    """Bytes of all parameters of a stage as they lie in memory, packed ones too."""
    total, seen = 0.0, set[int]()
    for module in (inner for segment in stage.segments for inner in segment.module.modules()):
        for value in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
            if isinstance(value, Tensor) and value.data_ptr() not in seen:
                seen.add(value.data_ptr())
                total += value.numel() * value.element_size()
            elif isinstance(value, torch.ScriptObject) and id(value) not in seen:
                seen.add(id(value))
                total += packed_linear_bytes(value)
    return total


def _train(job: TrainingJob, scenario: Scenario, model: nn.Module, variant: Variant, epochs: int) -> None:
    """Train a variant of a model for some epochs; its weights become the model's."""
    spec = scenario.job
    made = trainable_variant(job, model, spec.global_batch_size, CPU, variant)
    parameters = [parameter for parameter in made.module.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(spec, parameters)
    per_epoch = sum(1 for _ in global_batches(job.batches("train", spec.seed, 0), spec.global_batch_size))
    masks = Masks(parameters, variant.sparsity, per_epoch * epochs) if variant.sparsity else None
    step = 0
    for epoch in range(epochs):
        for inputs, targets in global_batches(job.batches("train", spec.seed, epoch), spec.global_batch_size):
            set_learning_rate(optimizer, spec, step, per_epoch * epochs)
            optimizer.zero_grad()
            job.loss(made.module(*as_tuple(inputs)), targets).backward()
            optimizer.step()
            step += 1
            if masks:
                masks.after_step(step)
    state: Mapping[str, Tensor] = made.expand({name: tensor.detach() for name, tensor in made.module.state_dict().items()})
    model.load_state_dict(dict(model.state_dict()) | dict(state))


if __name__ == "__main__":
    _race(Path(sys.argv[1]))
