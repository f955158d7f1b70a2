"""Cut a model into the stages of a plan, on the run's own device.

The model is exported again where it runs, at the plan's microbatch size: a trace on the meta device bakes in its
device. Stage s takes the tensors that cross the boundary before it and returns those that cross the one behind it;
a tensor that a later stage needs passes through the stages between (a skip connection across several stages).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_unflatten

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.task import LOSS_OP, Task, TaskGraph
from chinchilla_sim.graph.trace import as_tuple, export_module, graph_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.codecs import TensorSpec


@dataclass(frozen=True)
class Stage:
    """One stage of a model: `module(*inputs) -> tuple of outputs`.

    `*_specs` describe the tensors of the boundaries, `*_needs_gradient` says which of them have a gradient. The
    last stage's outputs are the leaves of the model's; `restore` gives them the model's own structure.
    """

    module: GraphModule
    input_specs: tuple[TensorSpec, ...]
    input_needs_gradient: tuple[bool, ...]
    output_specs: tuple[TensorSpec, ...]
    output_needs_gradient: tuple[bool, ...]
    restore: Callable[[Sequence[Tensor]], Any]


def cut_stage(job: TrainingJob, model: nn.Module, plan: Plan, stage: int, device: torch.device) -> Stage:
    """The stage of `model` (in training mode for training plans) that the plan puts on one pipeline position."""
    inputs, _ = job.example_batch(plan.microbatch_size)
    inputs = tuple(tensor.to(device) for tensor in as_tuple(inputs))
    exported = export_module(model.train(plan.training), inputs)
    graph = graph_of(model, list(exported.graph.nodes), plan.microbatch_size, plan.training, name="run")
    _check(plan, graph)
    nodes = {(str(node.target) if node.op == "placeholder" else node.name): node for node in exported.graph.nodes}
    before = _crossing(graph, plan, stage - 1) if stage else [task for task in graph.tasks if task.op == "input"]
    last = stage == plan.stage_count - 1
    behind = [] if last else _crossing(graph, plan, stage)
    names = [name for name in plan.stages[stage] if name != LOSS_OP]
    module = _extract(exported, nodes, [task.name for task in before], names, None if last else [task.name for task in behind])
    return Stage(
        module=module,
        input_specs=tuple(_spec(nodes[task.name]) for task in before),
        input_needs_gradient=tuple(task.needs_gradient for task in before),
        output_specs=tuple(_spec(nodes[task.name]) for task in behind),
        output_needs_gradient=tuple(task.needs_gradient for task in behind),
        restore=_restorer(exported),
    )


def _restorer(exported: GraphModule) -> Callable[[Sequence[Tensor]], Any]:
    structure = exported.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    return lambda leaves: tree_unflatten(list(leaves), structure)


def _check(plan: Plan, graph: TaskGraph) -> None:
    ours, theirs = [task.name for task in graph.compute_tasks], [name for stage in plan.stages for name in stage]
    if ours != theirs:
        differing = sorted(set(ours) ^ set(theirs))[:5] or ["their order"]
        raise RunError(f"the model traced here has other tasks than the plan ({', '.join(differing)}): plan again on this machine")


def _crossing(graph: TaskGraph, plan: Plan, stage: int) -> list[Task]:
    return graph.live_after(graph.position[plan.stages[stage][-1]])


def _spec(node: Node) -> TensorSpec:
    value = node.meta["val"]
    return TensorSpec(tuple(int(n) for n in value.shape), value.dtype)


def _extract(
    exported: GraphModule, nodes: dict[str, Node], inputs: Sequence[str], names: Sequence[str], outputs: Sequence[str] | None
) -> GraphModule:
    """A module of its own from some nodes of the exported graph; `outputs` None returns what the model returns."""
    graph, copied = Graph(), {}
    for name in inputs:
        copied[nodes[name]] = graph.placeholder(nodes[name].name)

    def copy_of(node: Node) -> Node:
        if node not in copied:
            if node.op != "get_attr":
                raise RunError(f"{node.name} is needed in a stage that does not receive it")
            copied[node] = graph.node_copy(node)
        return copied[node]

    for name in names:
        copied[nodes[name]] = graph.node_copy(nodes[name], copy_of)
    if outputs is None:
        result: Any = next(node for node in exported.graph.nodes if node.op == "output").args[0]
        graph.output(torch.fx.map_arg(result, copy_of))
    else:
        graph.output(tuple(copied[nodes[name]] for name in outputs))
    return GraphModule(exported, graph)


def stage_parameters(stage: Stage) -> list[nn.Parameter]:
    """Trainable parameters of a stage, in a fixed order."""
    return [parameter for parameter in stage.module.parameters() if parameter.requires_grad]


def stage_state(stage: Stage) -> dict[str, Tensor]:
    """Parameters and buffers of a stage by the model's own names."""
    return {name: tensor.detach() for name, tensor in stage.module.state_dict(keep_vars=True).items()}
