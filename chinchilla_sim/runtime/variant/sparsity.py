"""Magnitude pruning of single values: zeros in the weights of a variant, and masks that keep them zero while it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chinchilla_sim.graph.compress.sparse import sparsity_at

MASK_STEPS = 20
"""Steps between two choices of what is zero: finding the least values of a matrix takes about as long as a step of a small network."""


def thinned(weight: Tensor, sparsity: float) -> Tensor:
    """The weight with its least values, this share of them, at zero."""
    return weight * mask_of(weight, sparsity)


def mask_of(weight: Tensor, sparsity: float) -> Tensor:
    """1 for each value that stays and 0 for the share `sparsity` of least magnitude; equal ones go from the front."""
    mask = torch.ones_like(weight)
    count = int(sparsity * weight.numel())
    order = weight.detach().abs().flatten().argsort(stable=True)
    mask.view(-1)[order[:count]] = 0.0
    return mask


class Masks:
    """Keeps more and more values of some parameters at zero; replicas choose alike, because they hold the same values."""

    def __init__(self, parameters: Sequence[nn.Parameter], sparsity: float, total_steps: int) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.dim() > 1]
        self.sparsity, self.total_steps = sparsity, total_steps
        self._masks: list[Tensor] = []

    def after_step(self, step: int) -> None:
        """Zero what the optimizer has changed; `step` counts from 1. The last steps see the final share."""
        if not self._masks or step % MASK_STEPS == 0 or step == self.total_steps:
            share = sparsity_at(step, self.total_steps, self.sparsity)
            self._masks = [mask_of(parameter, share) for parameter in self.parameters]
        with torch.no_grad():
            for parameter, mask in zip(self.parameters, self._masks, strict=True):
                parameter.mul_(mask)
