"""Passes of one stage: forward, backward, and the two halves of a split backward pass, for each microbatch.

A microbatch goes through the segments of the stage in parts. Within a part autograd does everything; between two parts
tensors are cut off from it, so that a part's backward pass can be run alone: because the part runs its forward pass again
first, or because the gradients of its bucket leave while the other parts go on (only behind the stage's last backward pass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from chinchilla_sim.runtime.stage.deferred import Entry, compute_weight_gradients
from chinchilla_sim.runtime.stage.stages import Segment, Stage

Loss = Callable[[tuple[Tensor, ...]], Tensor]
"""From the last stage's outputs to this microbatch's share of the global mean loss."""
Leave = Callable[[int], None]
"""What happens when the gradients of a bucket are complete."""


@dataclass(slots=True)
class _Part:
    """Segments that run together; `ends` is None while they wait to be computed again.

    `ends` are where autograd goes on from each output (None: it has no gradient): outputs themselves may be freed meanwhile.
    """

    segments: Sequence[Segment]
    inputs: tuple[Tensor, ...]
    ends: list[GradientEdge | None] | None
    needs_gradient: tuple[bool, ...]
    loss: Loss | None = None
    random_state: Tensor | None = None

    @property
    def again(self) -> bool:
        return any(segment.again for segment in self.segments)

    def compute(self) -> tuple[Tensor, ...]:
        tensors = self.inputs
        for segment in self.segments:
            tensors = segment.module(*tensors)
        return (self.loss(tensors),) if self.loss else tensors

    def compute_and_keep(self) -> tuple[Tensor, ...]:
        """The outputs, with all that their backward pass needs kept."""
        outputs = self.compute()
        self.ends = [get_gradient_edge(tensor) if tensor.requires_grad else None for tensor in outputs]
        return outputs

    def compute_again(self) -> None:
        """Once more, with the random numbers of the first time."""
        present = None
        if self.random_state is not None:
            present = torch.get_rng_state()
            torch.set_rng_state(self.random_state)
        self.compute_and_keep()
        if present is not None:
            torch.set_rng_state(present)


class Passes:
    """The passes of one stage; activations are kept by microbatch until its backward pass."""

    def __init__(self, stage: Stage, last_backward: int | None) -> None:
        self.stage, self.last_backward = stage, last_backward
        self._whole = self._parts_of(by_bucket=False)
        self._by_bucket = self._parts_of(by_bucket=True)
        self._parts: dict[int, list[_Part]] = {}
        self._deferred: dict[int, list[tuple[int, list[Entry]]]] = {}

    def _parts_of(self, by_bucket: bool) -> list[list[Segment]]:
        parts: list[list[Segment]] = []
        for segment in self.stage.segments:
            before = parts[-1][-1] if parts else None
            if before is None or segment.again or before.again or (by_bucket and segment.bucket != before.bucket):
                parts.append([])
            parts[-1].append(segment)
        return parts

    def infer(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs without anything kept."""
        with torch.no_grad():
            return self.stage(*inputs)

    def forward(self, microbatch: int, inputs: tuple[Tensor, ...], loss: Loss | None) -> tuple[Tensor, ...]:
        """Outputs of the stage, or its share of the loss."""
        parts, tensors = [], inputs
        chosen = self._by_bucket if microbatch == self.last_backward else self._whole
        for index, segments in enumerate(chosen):
            end = index == len(chosen) - 1
            joined = loss if end and not segments[-1].again else None
            part = _Part(segments, _leaves(tensors, segments[0].input_needs_gradient), None, self._needs(segments, end), joined)
            tensors = self._run(part)
            parts.append(part)
        if loss and parts[-1].loss is None:
            floating = tuple(tensor.is_floating_point() for tensor in tensors)
            parts[-1].needs_gradient = floating
            part = _Part((), _leaves(tensors, floating), None, (True,), loss)
            tensors = part.compute_and_keep()
            parts.append(part)
        self._parts[microbatch] = parts
        return tensors

    def _needs(self, segments: Sequence[Segment], end: bool) -> tuple[bool, ...]:
        if end and self.stage.last:
            return (True,)
        return self.stage.output_needs_gradient if end else segments[-1].output_needs_gradient

    @staticmethod
    def _run(part: _Part) -> tuple[Tensor, ...]:
        if not part.again:
            return part.compute_and_keep()
        if any(segment.random for segment in part.segments):
            part.random_state = torch.get_rng_state()
        with torch.no_grad():
            return part.compute()

    def backward(self, microbatch: int, gradients: Sequence[Tensor] | None, leave: Leave) -> list[Tensor]:
        """Gradients of the inputs that have one; None stands for the loss's own gradient."""
        return self._run_back(microbatch, gradients, leave, split=False)

    def input_gradients(self, microbatch: int, gradients: Sequence[Tensor] | None) -> list[Tensor]:
        """The same, with the gradients of weights left for `weight_gradients`."""
        return self._run_back(microbatch, gradients, lambda _: None, split=True)

    def weight_gradients(self, microbatch: int, leave: Leave) -> None:
        """What `input_gradients` has left of a microbatch; buckets leave if it is the last one."""
        pending = self._deferred.pop(microbatch)
        for index, (bucket, entries) in enumerate(pending):
            compute_weight_gradients(entries)
            if microbatch == self.last_backward and (index == len(pending) - 1 or pending[index + 1][0] != bucket):
                leave(bucket)

    def _run_back(self, microbatch: int, gradients: Sequence[Tensor] | None, leave: Leave, split: bool) -> list[Tensor]:
        parts = self._parts.pop(microbatch)
        deferred = self._deferred.setdefault(microbatch, []) if split else []
        while parts:
            part = parts.pop()
            if part.again:
                part.compute_again()
            assert part.ends is not None
            wanted = [end for end, needed in zip(part.ends, part.needs_gradient, strict=True) if needed]
            pairs = [(end, gradient) for end, gradient in zip(wanted, [None] if gradients is None else gradients, strict=True) if end]
            if pairs:
                torch.autograd.backward([end for end, _ in pairs], [gradient for _, gradient in pairs])
            gradients = [_gradient_of(tensor) for tensor in part.inputs if tensor.requires_grad]
            bucket = part.segments[0].bucket if part.segments else self.stage.bucket_count - 1
            entries = self.stage.tape.take()
            if split:
                deferred.append((bucket, entries))
                continue
            compute_weight_gradients(entries)  # of a whole pass in a schedule that splits others
            if microbatch == self.last_backward and (not parts or parts[-1].segments[-1].bucket != bucket):
                leave(bucket)
        return list(gradients or ())


def _leaves(tensors: Sequence[Tensor], needs_gradient: Sequence[bool]) -> tuple[Tensor, ...]:
    """The tensors cut off from what made them."""
    return tuple(tensor.detach().requires_grad_(needed) for tensor, needed in zip(tensors, needs_gradient, strict=True))


def _gradient_of(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def last_backward_of(actions: Sequence[Any], stage: int) -> int | None:
    """Microbatch of the stage's last backward pass (B or W) in a rank's actions."""
    return next((action.microbatch for action in reversed(actions) if action.stage == stage and action.op in ("B", "W")), None)
