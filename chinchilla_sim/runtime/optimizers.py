"""Optimizers of a run, and their learning rates over its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from chinchilla_sim.scenario.job import JobSpec


def make_optimizer(spec: JobSpec, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the job for some parameters."""
    if spec.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=spec.learning_rate, fused=True)
    return torch.optim.SGD(parameters, lr=spec.learning_rate, momentum=spec.momentum, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, spec: JobSpec, step: int, total_steps: int) -> None:
    """The rate of a step that counts from 0: constant, or falling linearly to 0 over `total_steps`."""
    share = max(0.0, 1.0 - step / total_steps) if total_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = spec.learning_rate * share
