"""A model's layers among its tasks: whole layers as stages, and how many layers a stage has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

from chinchilla_sim.graph.task import TaskGraph

_LAYER = re.compile(r"(?:^|\.)(?:h|layers?|blocks?)\.(\d+)(?:\.|$)")

Stages = tuple[tuple[str, ...], ...]


def layer_starts(graph: TaskGraph) -> list[int]:
    """Position of the first task of each layer; empty where the model is no line of numbered layers (an encoder and a decoder)."""
    starts: list[int] = []
    for position, task in enumerate(graph.compute_tasks):
        match = _LAYER.search(task.module)
        if match is None or int(match[1]) == len(starts) - 1:
            continue
        if int(match[1]) != len(starts):
            return []
        starts.append(position)
    return starts


def stages_of(graph: TaskGraph, counts: Sequence[int]) -> Stages:
    """Stages of so many whole layers; what stands before the first layer and behind the last one goes with them."""
    names, starts = [task.name for task in graph.compute_tasks], layer_starts(graph)
    cuts = [0, *(starts[layers] for layers in list(accumulate(counts))[:-1]), len(names)]
    return tuple(tuple(names[first:end]) for first, end in pairwise(cuts))


def counts_of(graph: TaskGraph, stages: Stages) -> tuple[int, ...]:
    """Whole layers of each stage; empty where a stage begins within a layer."""
    starts = layer_starts(graph)
    number = {position: layer for layer, position in enumerate(starts)} if starts else {}
    cuts = list(accumulate(map(len, stages)))[:-1]
    if not starts or not all(cut in number for cut in cuts):
        return ()
    return tuple(end - first for first, end in pairwise([0, *(number[cut] for cut in cuts), len(starts)]))
