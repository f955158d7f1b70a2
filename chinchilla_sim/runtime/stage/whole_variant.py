"""A whole variant of a model in one module: to evaluate it, or to train it on one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.fx import GraphModule

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.trace import graph_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.stage.batches import calibration_inputs
from chinchilla_sim.runtime.stage.stages import example_inputs, export_for_run
from chinchilla_sim.runtime.variant.variants import State, make_variant


@dataclass(frozen=True)
class TrainableVariant:
    """A variant in one module for batches of one size, and `expand`, which makes weights of the whole model of its own."""

    module: nn.Module
    expand: Callable[[State], State]


def trainable_variant(job: TrainingJob, model: nn.Module, size: int, device: torch.device, variant: Variant) -> TrainableVariant:
    """A model in training mode, compressed, with parameters of its own where they are not the model's."""
    exported, _ = export_for_run(model.train(), example_inputs(job, model, size, device), False, size)
    graph = graph_of(model, list(exported.graph.nodes), size, True, name="train")
    made = make_variant(exported, graph, variant, partial(calibration_inputs, job, model, size, device))
    return TrainableVariant(GraphModule(made.exported, made.exported.graph), made.expand)


def variant_module(job: TrainingJob, model: nn.Module, plan: Plan, device: torch.device, variant: Variant) -> nn.Module:
    """The whole variant of a model in one module, which takes any number of samples; RunError where torch.export cannot trace it so."""
    size = max(2, plan.microbatch_size)
    exported, dynamic = export_for_run(model.eval(), example_inputs(job, model, size, device), True, size)
    if not dynamic:
        raise RunError("torch.export traces this model for one number of samples only: its variant cannot be evaluated")
    graph = graph_of(model, list(exported.graph.nodes), size, False, name="run")
    made = make_variant(exported, graph, variant, partial(calibration_inputs, job, model, size, device)).exported
    return GraphModule(made, made.graph)
