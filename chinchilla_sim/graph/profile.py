"""Profile: what was measured about the tasks of a graph, beside the graph's own amounts.

Times come from `chinchilla calibrate SCENARIO` (this machine, several microbatch sizes and numbers of busy ranks)
or from a file profiled by others (one batch size, named device kinds). Between two measured microbatch sizes times
are interpolated linearly, beyond them they go on with the slope of the last two; one size alone scales in proportion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from chinchilla_sim.graph.task import NARROW, Task, TaskGraph

ANY_DEVICE = ""
ACCELERATOR = "accelerator"


@dataclass(frozen=True, slots=True)
class TaskTime:
    """Measured seconds of one task at one microbatch size.

    `device` is a kind named by the file ("accelerator", "cpu"), or "" for the only one; `busy_ranks` is how many ranks
    of this machine computed at the same time (0: not stated). `spread` is (p75 - p25) / median.
    """

    task: str
    microbatch_size: int
    forward_s: float
    backward_s: float
    device: str = ANY_DEVICE
    busy_ranks: int = 0
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a layer that a file offers (Piper): at a tensor-parallel degree, with or without recompute.

    `seconds` are forward and backward of one sample over all devices of the degree; memory is
    `stash_bytes * microbatches in flight + fixed_bytes`; the synchronizations are bytes by neighbouring task.
    """

    tensor_parallel_degree: int
    recompute: bool
    seconds: float
    parameter_bytes: float
    stash_bytes: float
    fixed_bytes: float
    forward_sync_bytes: tuple[tuple[str, float], ...] = ()
    backward_sync_bytes: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Profile:
    """Measured times and constraints by task name; empty where nothing was measured.

    `scales` are factors on a task's forward and backward seconds, wherever those are from: what runs taught, kept in a file of its own.
    `memory_bytes` is what a task occupies on its device, `colocated` puts tasks of the same class on one device,
    `variants` are choices per task, `source` says where the figures come from. Before a step a rank takes `input_s` to get its part of the
    global batch; each pass of a stage begins with `pass_start_s` (forward, backward; empty: not measured), and
    ZeRO 3 adds `sharding_s` to those of all weights (the same). `tasks` are the ones that were
    measured, where those that are planned are of a variant of that model, and `held_bytes` the parameters of that model.
    """

    times: tuple[TaskTime, ...] = ()
    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    colocated: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, tuple[Variant, ...]] = field(default_factory=dict)
    source: str = ""
    input_s: float = 0.0
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    pass_start_s: tuple[float, ...] = ()
    sharding_s: tuple[float, ...] = ()
    tasks: Mapping[str, Task] = field(default_factory=dict)
    held_bytes: float = 0.0

    @cached_property
    def _rows(self) -> dict[tuple[str, str, int], list[TaskTime]]:
        rows: dict[tuple[str, str, int], list[TaskTime]] = {}
        for row in sorted(self.times, key=lambda row: row.microbatch_size):
            rows.setdefault((row.task, row.device, row.busy_ranks), []).append(row)
        return rows

    def seconds(self, task: str, microbatch_size: int, device: str = ANY_DEVICE, busy_ranks: int = 0) -> tuple[float, float] | None:
        """Forward and backward seconds, or None where the task was not measured (on this device kind, so busy)."""
        rows = self._rows.get((task, device, busy_ranks)) or self._rows.get((task, device, 0))
        if not rows:
            return None
        return (
            _at(microbatch_size, [(row.microbatch_size, row.forward_s) for row in rows]),
            _at(microbatch_size, [(row.microbatch_size, row.backward_s) for row in rows]),
        )

    def of_variant(self, whole: TaskGraph, variant: TaskGraph) -> Profile:
        """This profile of a `whole` model for a variant of it: a task takes of what was measured what formulas say of both.

        The first of two low-rank factors stands beside the task that became two.
        """
        kernels = {kernel.name: kernel for task in whole.tasks for kernel in task.kernels}
        origin = {
            name: name.removesuffix(NARROW) for name in variant.position if name not in kernels and name.removesuffix(NARROW) in kernels
        }
        narrow = {source: name for name, source in origin.items()}
        times = [replace(row, task=narrow[row.task]) for row in self.times if row.task in narrow]
        tasks = kernels | {name: kernels[source] for name, source in origin.items()}
        return replace(self, times=(*self.times, *times), tasks=tasks, held_bytes=whole.total_parameter_bytes)

    @cached_property
    def measured_tasks(self) -> frozenset[str]:
        """Names of the tasks with at least one time."""
        return frozenset(row.task for row in self.times)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, read back by `from_dict` to an equal profile; what is empty is left out."""
        content: dict[str, Any] = {
            "times": [_without_defaults(row) for row in self.times],
            "memory_bytes": dict(self.memory_bytes),
            "colocated": dict(self.colocated),
            "variants": {task: [_without_defaults(variant) for variant in choices] for task, choices in self.variants.items()},
            "source": self.source,
            "input_s": self.input_s,
            "pass_start_s": list(self.pass_start_s),
            "sharding_s": list(self.sharding_s),
        }
        return {key: value for key, value in content.items() if value}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Profile:
        """Inverse of `to_dict`; the caller has checked the shape. ValueError where a task is measured twice under one condition."""
        times = tuple(TaskTime(**row) for row in data.get("times", ()))
        if twice := repeated_rows(times):
            raise ValueError(f"times.{twice[0]}: {times[twice[0]].task} has two times of one size, device and number of busy ranks")
        variants = {task: tuple(_variant(row) for row in rows) for task, rows in data.get("variants", {}).items()}
        memory, colocated = dict(data.get("memory_bytes", {})), dict(data.get("colocated", {}))
        return Profile(
            times, memory, colocated, variants, data.get("source", ""), data.get("input_s", 0.0),
            pass_start_s=tuple(data.get("pass_start_s", ())), sharding_s=tuple(data.get("sharding_s", ())),
        )  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was measured of tasks, or "none"."""
        content = {key: value for key, value in self.to_dict().items() if key != "source"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() if any(content.values()) else "none"


def repeated_rows(times: Sequence[TaskTime]) -> list[int]:
    """Positions of times whose task, device, number of busy ranks and microbatch size an earlier one has already."""
    seen: set[tuple[str, str, int, int]] = set()
    repeated = []
    for index, row in enumerate(times):
        condition = (row.task, row.device, row.busy_ranks, row.microbatch_size)
        repeated += [index] if condition in seen else []
        seen.add(condition)
    return repeated


def _without_defaults(row: TaskTime | Variant) -> dict[str, Any]:
    return {item.name: _listed(getattr(row, item.name)) for item in fields(row) if getattr(row, item.name) != item.default}


def _listed(value: Any) -> Any:
    return [list(pair) for pair in value] if isinstance(value, tuple) else value


def _variant(row: Mapping[str, Any]) -> Variant:
    synchronized = {key: tuple((task, size) for task, size in row.get(key, ())) for key in ("forward_sync_bytes", "backward_sync_bytes")}
    return Variant(**{**row, **synchronized})


def _at(size: int, points: list[tuple[int, float]]) -> float:
    """Piecewise linear through (size, seconds), never below 0."""
    if len(points) == 1:
        return points[0][1] * size / points[0][0]
    upper = next((index for index, point in enumerate(points) if point[0] >= size), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(0, upper - 1)], points[max(1, upper)]
    return max(0.0, y0 + (y1 - y0) * (size - x0) / (x1 - x0))
