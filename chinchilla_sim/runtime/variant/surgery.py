"""An exported module under the knife: its weights by name, and nodes that fetch them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node


def tensor_of(module: nn.Module, name: str) -> Any:
    """A weight by name, cut off from autograd, or what else is kept under the name."""
    value = value_of(module, name)
    return value.detach() if isinstance(value, Tensor) else value


def value_of(module: nn.Module, name: str) -> Any:
    """What the module keeps under a name; AttributeError where there is nothing."""
    path, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(path), attribute)


def has(module: nn.Module, name: str) -> bool:
    """Whether the module keeps something under a name."""
    try:
        tensor_of(module, name)
    except AttributeError:
        return False
    return True


def put(module: nn.Module, name: str, value: Any, like: str = "") -> None:
    """Make `value` the module's weight of this name; the modules on its path are made where there are none.

    Where a parameter is replaced, or the weight `like` is one, it becomes one that is trained or frozen as that.
    """
    known = like or name
    before = value_of(module, known) if has(module, known) else None
    path, _, attribute = name.rpartition(".")
    for part in path.split(".") if path else ():
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(before, nn.Parameter):
        value = nn.Parameter(value, requires_grad=before.requires_grad and value.is_floating_point())
    setattr(module, attribute, value)


def fetch(graph: Graph, name: str) -> Node:
    """A node that reads a weight, which may be put there later."""
    return graph.create_node("get_attr", name)


def is_linear(user: Node, weight: Node) -> bool:
    """Whether a node is a linear layer with this weight."""
    return user.target is torch.ops.aten.linear.default and user.args[1] is weight


def beside(path: str, other: str) -> str:
    """The name of a layer's other weight."""
    return f"{path.rpartition('.')[0]}.{other.rpartition('.')[2]}".lstrip(".")
