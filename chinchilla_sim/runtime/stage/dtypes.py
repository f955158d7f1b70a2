"""What a job and its model compute with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chinchilla_sim.graph.trace import DTYPE_OF


def weights_dtype(model: nn.Module) -> torch.dtype:
    """What the model computes with: the type of its first parameter that is no whole number."""
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)


def cast_floating(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor at another precision, unless it holds whole numbers."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def run_dtype(precision: str) -> torch.dtype:
    """What a job of this precision computes with."""
    return DTYPE_OF[precision]
