"""Optimizers of a run, and their learning rates over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import nn

from chinchilla_sim.scenario.job import JobSpec


def make_optimizer(spec: JobSpec, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the job for some parameters."""
    if spec.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=spec.learning_rate, fused=True)
    return torch.optim.SGD(parameters, lr=spec.learning_rate, momentum=spec.momentum, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, spec: JobSpec, step: int, total_steps: int) -> None:
    """The rate of a step that counts from 0."""
    share = rate_share(spec, step, total_steps)
    for group in optimizer.param_groups:
        group["lr"] = spec.learning_rate * share


def rate_share(spec: JobSpec, step: int, total_steps: int) -> float:
    """Share of the learning rate in a step: rising linearly over the warm-up, then constant or falling to 0 at `total_steps`."""
    warmup = spec.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if spec.learning_rate_schedule == "constant" or not total_steps:
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 1.0 - done if spec.learning_rate_schedule == "linear" else (1.0 + cos(pi * done)) / 2
