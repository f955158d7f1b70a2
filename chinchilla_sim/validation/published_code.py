"""What a row's code makes of the graph of fused kernels: what it keeps for the backward pass depends on who wrote the kernels.

    fused loss   the package flash-attn brings its own cross-entropy, whose log-probabilities stay on chip
    compiled     torch.compile's partitioner makes norms, activations and products of elements again from what their own backward
                 passes keep anyway, so their outputs are not kept for the matrix products behind them
    eager        RMSNorm spelled out computes in fp32 and keeps its input and its normalized input as such

Seconds stay those of fused kernels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from chinchilla_sim.cost.memory import FP32_BYTES
from chinchilla_sim.graph.task import FUSED_LOSS, LOSS_OP, Task, TaskGraph

CODES = (("fused loss", r"flash[- _]?att"), ("compiled", r"torch\.?compile\b"), ("eager", r"\beager\b"))
"""What the column `other_config` says where it says it."""
MADE_AGAIN = ("rms_norm", "layer_norm", "silu", "gelu", "mul")


def codes_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """What is known of a row's code.

    >>> codes_of({"other_config": "FSDP; torch.compile; flash attention"}), codes_of({"other_config": "thunder sdpa+torchcompile_cat"})
    (('fused loss', 'compiled'), ())
    """
    text = row["other_config"].lower()
    return tuple(code for code, pattern in CODES if re.search(pattern, text))


def as_coded(graph: TaskGraph, codes: tuple[str, ...]) -> TaskGraph:
    """The graph whose tasks keep what this code keeps."""
    again = {task.name for task in graph.tasks if task.op in MADE_AGAIN} if "compiled" in codes else set()
    return replace(graph, tasks=tuple(_coded(task, codes, again, graph.value_bytes) for task in graph.tasks)) if codes else graph


def _coded(task: Task, codes: tuple[str, ...], again: set[str], value_bytes: float) -> Task:
    if task.op == LOSS_OP and "fused loss" in codes:
        task = replace(task, attributes=(*task.attributes, FUSED_LOSS))
    if task.op == "rms_norm" and "eager" in codes and value_bytes < FP32_BYTES:
        return replace(task, saved=(), saved_bytes=task.saved_bytes + 2 * FP32_BYTES / value_bytes * task.output_bytes)
    return replace(task, saved=tuple(name for name in task.saved if name not in again))
