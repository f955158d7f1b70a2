"""One door to the configurations that a plan can be written as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.interchange.expressible import Exportable, Exported
from chinchilla_sim.interchange.layers import layer_starts, stages_of
from chinchilla_sim.interchange.to_deepspeed import export_deepspeed
from chinchilla_sim.interchange.to_megatron import export_megatron
from chinchilla_sim.interchange.to_torchtitan import export_torchtitan
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.sharing import with_sharing

WRITERS: Mapping[str, tuple[str, Callable[[Exportable], Exported]]] = {
    "megatron": (".sh", export_megatron),
    "torchtitan": (".toml", export_torchtitan),
    "deepspeed": (".json", export_deepspeed),
}
"""Suffix of the file and its writer, by form."""


def export_configuration(source: Exportable, form: str) -> Exported:
    """The text of one form; ScenarioError where it cannot express the plan."""
    return WRITERS[form][1](source)


def with_equal_layers(plan: Plan, graph: TaskGraph) -> Plan:
    """The plan with whole layers divided over its stages, the same number for each; ScenarioError where they do not divide."""
    layers, stages = len(layer_starts(graph)), plan.stage_count
    if not layers or layers % stages or plan.free_replicas:
        what = f"{layers} layers cannot be divided equally over {stages} stages" if layers else "the model has no line of layers"
        raise ScenarioError([Mistake("--equal-layers", what, "plan with a number of stages that divides the layers")])
    return with_sharing(replace(plan, stages=stages_of(graph, (layers // stages,) * stages)), graph)
