"""What torch.export cannot trace is run once and recorded: every operator that torch dispatches becomes a task.

The model runs on the meta device if it can, else on the CPU (control flow that looks at values needs real ones). The
graph then holds for inputs like the example batch: another branch of an `if` is not in it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chinchilla_sim.graph.builder import GraphBuilder


def failing_line(error: BaseException) -> str:
    """`file:line` of the user's code that raised, or ""."""
    named = [(file, line) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error)) if _is_own(file)]
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    inside = [place for place in frames if "chinchilla_sim/graph/" not in place[0]]
    place = named[-1] if named else inside[-1] if inside else None
    return f"{place[0]}:{place[1]}" if place else ""


def only_relabels(schema: Any) -> bool:
    """Whether an operator's schema says that all it returns is memory of its arguments, unchanged."""
    return bool(schema.returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def _is_own(file: str) -> bool:
    return not file.startswith("<") and "/torch/" not in file


def record_model(model: nn.Module, inputs: Sequence[Tensor], builder: GraphBuilder) -> str:
    """Run the model once and add its inputs and operators to the builder; returns the name of the output."""
    recorder = _Recorder(model, builder)
    for index, tensor in enumerate(inputs):
        recorder.name(tensor, builder.input(f"input_{index}" if index else "input", tuple(tensor.shape), tensor.element_size()))
    with recorder.watching_modules(model), recorder:
        outputs = model(*inputs)
    named = [recorder.name_of(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return next(name for name in named if name)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Turns dispatched operators into tasks; tensors are known by identity and kept alive until the end."""

    def __init__(self, model: nn.Module, builder: GraphBuilder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.builder = builder
        self._names: dict[int, tuple[Tensor, str]] = {}
        self._weights = {id(p): (name, False) for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
        self._weights |= {id(b): (name, True) for name, b in model.named_buffers()}
        self._module: list[str] = [""]

    def name(self, tensor: Tensor, name: str) -> None:
        """Remember which task made a tensor."""
        self._names[id(tensor)] = tensor, name

    def name_of(self, tensor: Tensor) -> str:
        """Task or weight that a tensor is; one that nobody made is a constant."""
        if id(tensor) in self._names:
            return self._names[id(tensor)][1]
        name, buffer = self._weights.get(id(tensor), (f"constant_{len(self._names)}", True))
        self.name(tensor, self.builder.weight(name, tuple(tensor.shape), tensor.element_size(), tensor.requires_grad, buffer))
        return self._names[id(tensor)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and add a task for it."""
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        operands = [self.name_of(tensor) for tensor in given]
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if made:
            op = str(func.overloadpacket).rpartition(".")[2].rstrip("_")
            task = self.builder.apply(
                op,
                operands,
                [tuple(tensor.shape) for tensor in made],
                view=only_relabels(func._schema),
                output_bytes=float(sum(tensor.numel() * tensor.element_size() for tensor in made)),
                floating=any(tensor.is_floating_point() for tensor in made) and op != "detach",
                module=self._module[-1],
                value_bytes=made[0].element_size(),
            )
            for tensor in made:
                self.name(tensor, task)
        return result

    @contextmanager
    def watching_modules(self, model: nn.Module) -> Any:
        """Keep the path of the module that runs."""
        hooks: list[Any] = []
        for path, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(self._entering(path)))
            hooks.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self, *_: Any) -> None:
        self._module.pop()

    def _entering(self, path: str) -> Callable[..., None]:
        return lambda *_: self._module.append(path)
