"""Trace a PyTorch model on the meta device (no memory for weights) into a TaskGraph through torch.export."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.operators import FIRST_OPERAND, FLOP_OF, SAVES_NOTHING, SAVES_OUTPUT, forward_flop
from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph, with_loss


def trace_job(job: TrainingJob, batch_size: int, training: bool, name: str) -> TaskGraph:
    """Graph of one batch of the job's model, with its loss when training; raises ScenarioError where export fails."""
    try:
        with torch.device("meta"):
            model = job.model()
            inputs, _ = job.example_batch(batch_size)
        model = model.to("meta").train(training)
        inputs = tuple(tensor.to("meta") for tensor in as_tuple(inputs))
        nodes = list(export_module(model, inputs).graph.nodes)
    except ScenarioError:
        raise
    except Exception as error:
        raise ScenarioError(
            [Mistake("model.factory", f"torch.export cannot trace the model: {error}", "see the operator and line named above")]
        ) from error
    return graph_of(model, nodes, batch_size, training, name)


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """The contract's inputs as positional arguments: one tensor or a tuple of them."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def export_module(model: nn.Module, inputs: Any) -> GraphModule:
    """The exported model: operators in topological order, parameters as `get_attr` nodes that share the model's storage."""
    exported = torch.export.export(model, as_tuple(inputs), strict=False)
    module = exported.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def task_nodes(nodes: list[Node]) -> Iterator[Node]:
    """The nodes that become tasks."""
    return (node for node in nodes if node.op == "call_function")


def graph_of(model: nn.Module, nodes: list[Node], batch_size: int, training: bool, name: str) -> TaskGraph:
    """The task graph of exported nodes."""
    trainable = {key for key, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    canonical = _canonical_names(model)
    reader = _Reader({key: canonical[key] for key in trainable})
    tasks = [reader.task(node) for node in nodes if node.op in ("placeholder", "call_function")]
    edges = [
        (reader.name_of[parent], reader.name_of[node])
        for node in task_nodes(nodes)
        for parent in node.all_input_nodes
        if parent in reader.name_of
    ]
    parameters = {
        key: float(parameter.numel() * parameter.element_size())
        for key, parameter in model.named_parameters()
        if canonical[key] in reader.used
    }
    all_tasks, all_edges = tuple(tasks), tuple(dict.fromkeys(edges))
    if training:
        output = next(node for node in nodes if node.op == "output")
        all_tasks, all_edges = with_loss(all_tasks, all_edges, reader.name_of[output.all_input_nodes[0]])
    return TaskGraph(name, batch_size, all_tasks, all_edges, parameters, source=f"torch.export, torch {torch.__version__}")


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter -> its first name, so that a tied weight counts once."""
    first: dict[int, str] = {}
    return {key: first.setdefault(id(parameter), key) for key, parameter in model.named_parameters(remove_duplicate=False)}


class _Reader:
    """Turns fx nodes into tasks, remembering which of them need a gradient."""

    def __init__(self, parameter_names: dict[str, str]) -> None:
        self.parameter_names = parameter_names
        self.name_of: dict[Node, str] = {}
        self.used: set[str] = set()
        self._needs_gradient: set[Node] = set()

    def task(self, node: Node) -> Task:
        self.name_of[node] = str(node.target) if node.op == "placeholder" else node.name
        size = float(_bytes(node))
        if node.op == "placeholder":
            return Task(self.name_of[node], INPUT_OP, output_bytes=size, needs_gradient=False, launch_count=0)
        parents = node.all_input_nodes
        parameters = [parent for parent in parents if parent.op == "get_attr" and str(parent.target) in self.parameter_names]
        needing = [parent for parent in parents if parent in self._needs_gradient]
        if (parameters or needing) and _is_floating(node):
            self._needs_gradient.add(node)
        names = tuple(self.parameter_names[str(parent.target)] for parent in parameters)
        self.used.update(names)
        op = _op_name(node)
        if _is_view(node):
            return Task(self.name_of[node], op, output_bytes=size, needs_gradient=node in self._needs_gradient, launch_count=0)
        return self._computing_task(node, op, size, names, parameters, needing)

    def _computing_task(
        self, node: Node, op: str, size: float, names: tuple[str, ...], parameters: list[Node], needing: list[Node]
    ) -> Task:
        parents = node.all_input_nodes
        tensors = [argument for argument in node.args if isinstance(argument, Node)]
        flop = forward_flop(op, [_shape(argument) for argument in tensors], _shape(node))
        operands = tensors[FIRST_OPERAND.get(op, 0) :][: 3 if "attention" in op else 2] if op in FLOP_OF else []
        per_operand = flop * (2 / 3 if len(operands) == 3 else 1)
        read = float(sum(_bytes(parent) for parent in parents))
        backward = node in self._needs_gradient
        written_back = float(sum(_bytes(parent) for parent in {*needing, *parameters}))
        return Task(
            name=self.name_of[node],
            op=op,
            forward_flop=flop,
            input_gradient_flop=per_operand * sum(operand in needing for operand in operands),
            weight_gradient_flop=per_operand * sum(operand in parameters for operand in operands),
            output_bytes=size,
            read_bytes=read,
            written_bytes=size,
            backward_read_bytes=_backward_read_bytes(node, op, operands, parameters, needing) if backward else 0.0,
            backward_written_bytes=written_back if backward else 0.0,
            parameters=names,
            saved=self._saved(node, op) if backward else (),
            needs_gradient=backward,
        )

    def _saved(self, node: Node, op: str) -> tuple[str, ...]:
        if op in SAVES_NOTHING:
            return ()
        kept = [node] if op in SAVES_OUTPUT else node.all_input_nodes
        return tuple(self.name_of[parent] for parent in kept if parent in self.name_of)


def _backward_read_bytes(node: Node, op: str, operands: list[Node], parameters: list[Node], needing: list[Node]) -> float:
    """The output's gradient, plus for a product each operand whose partner needs a gradient, else what was saved."""
    size = float(_bytes(node))
    if operands:
        wanting = {*needing, *parameters}
        return size + sum(_bytes(operand) for operand in operands if any(other in wanting for other in operands if other is not operand))
    if op in SAVES_NOTHING:
        return size
    return 2 * size if op in SAVES_OUTPUT else size + sum(_bytes(parent) for parent in node.all_input_nodes)


def _value(node: Node) -> Any:
    return node.meta.get("val")


def _tensors(node: Node) -> list[torch.Tensor]:
    value = _value(node)
    return [item for item in (value if isinstance(value, tuple | list) else (value,)) if isinstance(item, torch.Tensor)]


def _bytes(node: Node) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(node))


def _shape(node: Node) -> tuple[int, ...]:
    tensors = _tensors(node)
    return tuple(int(n) for n in tensors[0].shape) if tensors else ()


def _is_floating(node: Node) -> bool:
    return any(tensor.is_floating_point() for tensor in _tensors(node))


def _op_name(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    # The underscore of an operator that works in place does not change what it costs.
    return str(packet).rpartition(".")[2].rstrip("_") if packet is not None else getattr(node.target, "__name__", str(node.target))


def _is_view(node: Node) -> bool:
    """Whether the operator only relabels memory (or is a `getitem`)."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return bool(schema.returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
