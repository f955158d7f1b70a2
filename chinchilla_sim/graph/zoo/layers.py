"""Layers that transformers and image models share, named and shaped as PyTorch's modules of the same parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.task import Shape, TaskGraph
from chinchilla_sim.options import mistake

INDEX_BYTES = 8.0
_FUSED = "{} count as one kernel each: code that spells them out in elementwise operators moves and keeps more bytes"


class Layers:
    """A GraphBuilder that speaks of layers; every method takes and returns names of tasks, `path` names the layer's parameters."""

    def __init__(self, batch_size: int, training: bool, value_bytes: float) -> None:
        self.builder = GraphBuilder(batch_size, training, value_bytes)
        self.batch_size, self.training, self.value_bytes = batch_size, training, value_bytes

    def finish(self, output: str, formula: str, name: str) -> TaskGraph:
        """The graph whose output is `output`."""
        return self.builder.finish(output, name, source=f"formula {formula}")

    def shape(self, x: str) -> Shape:
        """Shape of a task's output."""
        return self.builder.shape(x)

    def apply(self, op: str, operands: Sequence[str], shape: Shape, path: str = "", **known: Any) -> str:
        """A task with one output."""
        return self.builder.apply(op, operands, (shape,), module=path, **known)

    def flat(self, x: str) -> str:
        """(batch, all the rest), without moving anything."""
        batch, *rest = self.shape(x)
        return self.view(x, (batch, prod(rest)), op="flatten")

    def same(self, op: str, x: str, path: str = "", attributes: Mapping[str, Any] | None = None) -> str:
        """An elementwise operator of one tensor."""
        return self.builder.apply(op, (x,), (self.shape(x),), module=path, attributes=attributes)

    def join(self, op: str, x: str, y: str, path: str = "") -> str:
        """An elementwise operator of two tensors, the second broadcast to the first."""
        return self.builder.apply(op, (x, y), (self.shape(x),), module=path)

    def view(self, x: str, shape: Shape, path: str = "", op: str = "view", attributes: Mapping[str, Any] | None = None) -> str:
        """The same memory under another shape."""
        return self.builder.apply(op, (x,), (shape,), view=True, module=path, attributes=attributes)

    def parts(self, x: str, count: int, path: str = "") -> list[str]:
        """Views of `count` equal parts of the last dimension."""
        *front, last = self.shape(x)
        part = (*front, last // count)
        return [self.builder.apply("getitem", (x,), (part,), view=True, attributes={"index": i}, module=path) for i in range(count)]

    def indices(self, op: str, shape: Shape, path: str = "") -> str:
        """Whole numbers that depend on nothing, such as positions."""
        size = INDEX_BYTES * prod(shape)
        return self.builder.apply(op, (), (shape,), output_bytes=size, floating=False, value_bytes=INDEX_BYTES, module=path)

    def ids(self, tokens: int) -> str:
        """The model's input: one index per token."""
        return self.builder.input("ids", (self.batch_size, tokens), INDEX_BYTES)

    def note_fused(self, what: str) -> None:
        """Say in the graph's notes which operators are one task each here."""
        self.builder.notes.append(_FUSED.format(what))

    def weight(self, path: str, *shape: int) -> str:
        """A trained parameter."""
        return self.builder.weight(path, shape)

    def embedding(self, indices: str, path: str, rows: int, width: int) -> str:
        """A row of the table per index."""
        return self.apply("embedding", (self.weight(f"{path}.weight", rows, width), indices), (*self.shape(indices), width), path)

    def linear(self, x: str, path: str, outputs: int, bias: bool = True, weight: str = "") -> str:
        """`x W^T (+ b)`; `weight` names another layer's table when the two are tied."""
        *front, inputs = self.shape(x)
        operands = [x, self.weight(weight or f"{path}.weight", outputs, inputs)]
        if bias:
            operands.append(self.weight(f"{path}.bias", outputs))
        return self.apply("linear", operands, (*front, outputs), path)

    def layer_norm(self, x: str, path: str, bias: bool = True) -> str:
        """Mean and variance over the last dimension."""
        width = self.shape(x)[-1]
        operands = [x, self.weight(f"{path}.weight", width), *([self.weight(f"{path}.bias", width)] if bias else [])]
        return self.apply("layer_norm", operands, self.shape(x), path)

    def rms_norm(self, x: str, path: str) -> str:
        """Root mean square over the last dimension, one task: it reads and writes its tensor once."""
        return self.apply("rms_norm", (x, self.weight(f"{path}.weight", self.shape(x)[-1])), self.shape(x), path)

    def dropout(self, x: str, probability: float, path: str = "") -> str:
        """Nothing when the model is applied or `probability` is 0."""
        return self.same("dropout", x, path, {"p": probability, "training": True}) if self.training and probability else x

    def heads(self, x: str, count: int, path: str = "") -> str:
        """(batch, tokens, width) as (batch, heads, tokens, head width), without moving anything."""
        batch, tokens, width = self.shape(x)
        return self.transpose(self.view(x, (batch, tokens, count, width // count), path), 1, 2, path)

    def transpose(self, x: str, one: int, other: int, path: str = "") -> str:
        """Two axes in each other's place, without moving anything."""
        shape = list(self.shape(x))
        shape[one], shape[other] = shape[other], shape[one]
        return self.view(x, tuple(shape), path, "transpose", {"dim0": one, "dim1": other})

    def attention(self, query: str, key: str, value: str, path: str = "", bias: str = "") -> str:
        """Attention of (batch, heads, tokens, head width) tensors, its heads then copied together to (batch, tokens, width)."""
        batch, heads, tokens, _ = self.shape(query)
        width = self.shape(value)[-1]
        operands = (query, key, value, bias) if bias else (query, key, value)
        output = self.apply("scaled_dot_product_attention", operands, (batch, heads, tokens, width), path)
        return self.apply("reshape", (self.transpose(output, 1, 2, path),), (batch, tokens, heads * width), path)

    def convolution(
        self,
        x: str,
        path: str,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
    ) -> str:
        """Two-dimensional convolution without groups."""
        inputs = self.shape(x)[1]
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        operands = [x, self.weight(f"{path}.weight", outputs, inputs, *kernel)]
        if bias:
            operands.append(self.weight(f"{path}.bias", outputs))
        return self.apply("conv2d", operands, self._image(x, outputs, kernel, stride, padding), path)

    def pool(self, op: str, x: str, kernel: int, stride: int, padding: int = 0, path: str = "") -> str:
        """Maximum or mean over windows."""
        return self.apply(op, (x,), self._image(x, self.shape(x)[1], (kernel, kernel), stride, padding), path)

    def pool_to(self, x: str, side: int, path: str = "") -> str:
        """Mean over windows that leave `side` x `side` values."""
        return self.apply("adaptive_avg_pool2d", (x,), (*self.shape(x)[:2], side, side), path)

    def batch_norm(self, x: str, path: str) -> str:
        """Statistics of the batch when training, of the buffers otherwise."""
        *operands, count = self.batch_norm_weights(path, self.shape(x)[1])
        if self.training:
            self.apply("add", (count,), (), path, output_bytes=INDEX_BYTES, floating=False, value_bytes=INDEX_BYTES)
        return self.apply("batch_norm", (x, *operands), self.shape(x), path, attributes={"training": self.training})

    def batch_norm_weights(self, path: str, width: int) -> list[str]:
        """Scale, shift, running mean and variance, and the count of batches."""
        trained = [self.weight(f"{path}.{name}", width) for name in ("weight", "bias")]
        buffers = [self.builder.weight(f"{path}.running_{name}", (width,), buffer=True) for name in ("mean", "var")]
        return [*trained, *buffers, self.builder.weight(f"{path}.num_batches_tracked", (), INDEX_BYTES, buffer=True)]

    def _image(self, x: str, channels: int, kernel: tuple[int, int], stride: int, padding: int | tuple[int, int]) -> Shape:
        batch, _, *sides = self.shape(x)
        paddings = padding if isinstance(padding, tuple) else (padding, padding)
        result = [(side + 2 * p - k) // stride + 1 for side, k, p in zip(sides, kernel, paddings, strict=True)]
        if min(result) < 1:
            raise ScenarioError([mistake("image_size", "is too small: nothing is left for the last layers", "write a larger image_size")])
        return (batch, channels, *result)
