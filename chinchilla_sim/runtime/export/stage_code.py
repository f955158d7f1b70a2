"""Stages and losses as Python text: one nn.Module each, with its operators as plain calls and its tensors by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.trace import export_module

KNOWN_GLOBALS = {"torch": torch, "device": torch.device, "inf": float("inf"), "nan": float("nan")}
UNUSED_GLOBALS = frozenset({"NoneType", "fx_pytree", "pytree"})
"""torch.fx offers these whether or not the code uses them."""
_FORGETS = re.compile(r";  (\w+ = )+None\b")
_READS = re.compile(r"^ *(\w+) = self\.(\w+)$")
_CALLS = re.compile(r"\btorch\.ops\.aten\.")


@dataclass(frozen=True)
class ModuleTensor:
    """A parameter or buffer of a module that is written out: its attribute there, and its key in the file of weights."""

    attribute: str
    key: str
    value: Tensor

    @property
    def trained(self) -> bool:
        """Whether an optimizer updates it."""
        return isinstance(self.value, nn.Parameter) and self.value.requires_grad


@dataclass(frozen=True)
class ModuleCode:
    """Text of one module: parameters of its `forward`, the lines of its body, and its tensors; `twins` are further names of some."""

    arguments: str
    lines: tuple[str, ...]
    tensors: tuple[ModuleTensor, ...]
    twins: tuple[tuple[str, str], ...]

    def uses(self, name: str) -> bool:
        """Whether the text needs `name` to be imported."""
        return any(re.search(rf"\b{name}\b", line) for line in self.lines)


def write_module(module: GraphModule, prefix: str = "") -> ModuleCode:
    """The text of an exported module; its graph is changed on the way. `prefix` stands before its tensors' keys."""
    tensors: dict[str, ModuleTensor] = {}
    twins: dict[str, str] = {}
    first: dict[int, str] = {}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        key, value = str(node.target), _value_of(module, str(node.target))
        attribute = _attribute_of(key)
        node.target = attribute
        if first.setdefault(id(value), attribute) != attribute:
            twins[attribute] = first[id(value)]
        else:
            tensors[attribute] = ModuleTensor(attribute, prefix + key, value)
    arguments, lines = _body(module)
    return ModuleCode(arguments, tuple(lines), tuple(tensors.values()), tuple(twins.items()))


def _attribute_of(key: str) -> str:
    """A name that Python allows and nn.Module does not have."""
    name = re.sub(r"\W", "_", key)
    return f"layer_{name}" if name[0].isdigit() or hasattr(nn.Module, name) or name in ("training", "_parameters", "_buffers") else name


def _value_of(module: GraphModule, target: str) -> Tensor:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise _beyond(f"calls the graph {target} as an operator (such as a region without gradients)")
    return value


def _body(module: GraphModule) -> tuple[str, list[str]]:
    """Arguments and lines; parameters are read where they are used."""
    code = module.graph.python_code("self")
    foreign = [name for name, value in code.globals.items() if name not in UNUSED_GLOBALS and KNOWN_GLOBALS.get(name) is not value]
    foreign = [name for name in foreign if name not in ("inf", "nan")]
    used = [name for name in foreign if re.search(rf"\b{re.escape(name)}\b", code.src)]
    if used:
        raise _beyond(f"uses {', '.join(used)}, which is no operator of torch's own")
    if any(_namespace(node) not in ("aten", "_operator", None) for node in module.graph.nodes):
        raise _beyond("calls an operator that is registered by another package")
    heading, *lines = [line for line in code.src.strip().splitlines() if line.strip()]
    reads: dict[str, str] = {}
    kept = []
    for line in lines:
        line = _FORGETS.sub("", line.strip())
        if match := _READS.match(line):
            reads[match[1]] = f"self.{match[2]}"
        else:
            kept.append(_CALLS.sub("aten.", re.sub(r"(?<![\w.\"'])\w+\b", lambda word: reads.get(word[0], word[0]), line)))
    arguments = heading[heading.index("(") + 1 : heading.rindex(")")]
    return ", ".join(part.partition(":")[0].strip() for part in arguments.split(",")), kept


def _namespace(node: Node) -> str | None:
    if node.op != "call_function":
        return None
    return str(getattr(node.target, "namespace", None) or getattr(node.target, "__module__", None))


class _Loss(nn.Module):
    """The job's loss of tensors alone, so that it can be exported."""

    def __init__(self, loss: Callable[[Any, Any], Tensor], restore: Callable[[Sequence[Tensor]], Any], output_count: int, shape: Any):
        super().__init__()
        self.loss, self.restore, self.output_count, self.shape = loss, restore, output_count, shape

    def forward(self, *tensors: Tensor) -> Tensor:
        """Outputs of the last stage, then targets -> mean loss."""
        targets = tree_unflatten(list(tensors[self.output_count :]), self.shape)
        return self.loss(self.restore(tensors[: self.output_count]), targets)


def export_loss(
    loss: Callable[[Any, Any], Tensor], restore: Callable[[Sequence[Tensor]], Any], outputs: Sequence[Tensor], targets: Any
) -> GraphModule:
    """The graph of a loss function, at the shapes of one microbatch; it takes and returns plain tensors."""
    leaves, shape = tree_flatten(targets)
    detached = tuple(tensor.detach() for tensor in outputs)
    try:
        exported = export_module(_Loss(loss, restore, len(detached), shape), (*detached, *leaves))
    except Exception as error:
        raise _beyond(f"has a loss that torch.export cannot trace ({str(error).strip().splitlines()[0]})") from error
    plain = Graph()
    (result,) = cast(tuple[Node], plain.graph_copy(exported.graph, {}))
    plain.output(result)
    return GraphModule(exported, plain)


def _beyond(what: str) -> ScenarioError:
    cure = "export --to torchrun, which runs the model as it is"
    return ScenarioError([Mistake("--to", f"a script of torch alone cannot hold this model: it {what}", cure)])
