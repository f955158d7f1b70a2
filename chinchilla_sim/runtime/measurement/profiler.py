"""Measure every task of a job on this machine: forward and backward seconds at several microbatch sizes, medians.

Each rank runs the exported model operator by operator on real tensors while the other ranks do the same, because
busy neighbours share memory bandwidth. As in `probe`, each timed call comes behind other work. Operators with
equal shapes and arguments are measured once, and all times scaled to what whole passes take (`whole_passes`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from chinchilla_sim.graph.compress import AS_IT_IS, Variant
from chinchilla_sim.graph.contract import TrainingJob, factory_of, load_job
from chinchilla_sim.graph.profile import Profile, TaskTime
from chinchilla_sim.graph.task import LOSS_OP, Task
from chinchilla_sim.graph.trace import as_tuple
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.launching.threads import keep_to_own_cores
from chinchilla_sim.runtime.measurement.interlude import Interlude
from chinchilla_sim.runtime.measurement.probe import crowds
from chinchilla_sim.runtime.measurement.sharded_passes import sharding_seconds
from chinchilla_sim.runtime.measurement.whole_passes import in_context, variant_of
from chinchilla_sim.runtime.stage.batches import global_batches
from chinchilla_sim.runtime.worker import prepare_process
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.schema import Scenario

WARM_UP = 3
MEASUREMENTS = 15
FEWEST_MEASUREMENTS = 5
TASK_BUDGET_S = 0.5
SIZES = 4


def measure_tasks(scenario: Scenario, rank_count: int) -> Profile:
    """Times of all tasks of a scenario's model with 1 .. `rank_count` busy ranks."""
    with TemporaryDirectory(prefix="chinchilla-profile-") as folder:
        Path(folder, "scenario.json").write_text(json.dumps(scenario.to_dict()))
        launch_ranks("chinchilla_sim.runtime.measurement.profiler", [folder], rank_count, Path(folder))
        records = [json.loads(Path(folder, f"profile{rank}.json").read_text()) for rank in range(rank_count)]
    times = []
    for count in crowds(rank_count):
        for rows in zip(*(record[str(count)] for record in records[:count]), strict=True):
            forward_s, backward_s, spread = (median(row[key] for row in rows) for key in ("forward_s", "backward_s", "spread"))
            times.append(TaskTime(rows[0]["task"], rows[0]["size"], forward_s, backward_s, busy_ranks=count, spread=spread))
    input_s = median(record["input_s"] for record in records)
    starts = tuple(median(column) for column in zip(*(record["pass_start_s"] for record in records), strict=True))
    source = f"measured here, torch {torch.__version__}"
    sharding = tuple(median(column) for column in zip(*(record.get("sharding_s", ()) for record in records[:2]), strict=True))
    return Profile(tuple(times), source=source, input_s=input_s, pass_start_s=starts, sharding_s=sharding)


def microbatch_sizes(global_batch_size: int) -> list[int]:
    """The whole batch and up to three halvings: times between them are interpolated.

    >>> microbatch_sizes(64), microbatch_sizes(6)
    ([8, 16, 32, 64], [3, 6])
    """
    sizes = [global_batch_size]
    while len(sizes) < SIZES and sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sorted(sizes)


# What follows runs in every rank.


def _measure_rank(folder: Path) -> None:
    prepare_process()
    dist.init_process_group("gloo", timeout=timedelta(seconds=1200))
    rank, rank_count = dist.get_rank(), dist.get_world_size()
    scenario = parse_scenario(json.loads((folder / "scenario.json").read_text()), "scenario.json")
    job = load_job(*factory_of(scenario), to_run=True)
    training, variant = scenario.job.kind == "training", Variant(**scenario.model.compression.changes)
    record: dict[int | str, Any] = {"input_s": input_seconds(job, scenario)}
    for count in crowds(rank_count):
        dist.barrier()
        if rank < count:
            keep_to_own_cores(rank, count)
            sizes = microbatch_sizes(scenario.job.global_batch_size)
            measured = [in_context(profile_tasks(job, size, training, variant), job, size, training, variant) for size in sizes]
            record[count] = [row for rows, _ in measured for row in rows]
            record["pass_start_s"] = [median(column) for column in zip(*(start for _, start in measured), strict=True)]
    if training and rank_count > 1:
        record["sharding_s"] = sharding_seconds(job, microbatch_sizes(scenario.job.global_batch_size)[0], rank, variant)
    (folder / f"profile{rank}.json").write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def input_seconds(job: TrainingJob, scenario: Scenario) -> float:
    """Median seconds in which a rank gets its part of a global batch."""
    spec = scenario.job
    batches = global_batches(job.batches("train" if spec.kind == "training" else "validation", spec.seed, 0), spec.global_batch_size)
    interlude, seconds = Interlude(), list[float]()
    for _ in range(WARM_UP + MEASUREMENTS):
        interlude()
        start_s = monotonic()
        batch = next(batches, None)
        if batch is None:
            break
        for leaf in tree_leaves(batch):
            leaf[: spec.global_batch_size].to("cpu")
        seconds.append(monotonic() - start_s)
    return median(seconds[1:] or seconds or [0.0])


def profile_tasks(job: TrainingJob, size: int, training: bool, variant: Variant = AS_IT_IS) -> list[dict[str, Any]]:
    """One row per task: its name, the microbatch size, forward and backward seconds and their spread."""
    torch.manual_seed(0)
    model = job.model().train(training)
    inputs, targets = job.example_batch(size)
    exported, graph = variant_of(job, model, size, training, variant)
    profiler = _Profiler(exported, {task.name: task for task in graph.tasks})
    outputs = profiler.run(*as_tuple(inputs))
    rows = [{"task": name, "size": size} | times for name, times in profiler.times.items()]
    if training:
        rows.append({"task": LOSS_OP, "size": size} | _times(lambda result: job.loss(result, targets), [outputs], [True]))
    return rows


class _Profiler(Interpreter):
    """Runs an exported model and times every task on the way."""

    def __init__(self, module: GraphModule, tasks: dict[str, Task]) -> None:
        super().__init__(module)
        self.tasks = tasks
        self.times: dict[str, dict[str, float]] = {}
        self._known: dict[Any, dict[str, float]] = {}

    def run_node(self, node: Node) -> Any:
        """The node's result, without gradient; its times are kept."""
        task = self.tasks.get(node.name) if node.op == "call_function" else None
        with torch.no_grad():
            if task is None:
                return super().run_node(node)
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            wants = self._wants_gradient(node) if task.needs_gradient else ()
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            shapes = tuple((tuple(tensor.shape), tensor.dtype, tensor.stride()) for tensor in tensors)
            key = (str(node.target), wants, task.attributes, task.shapes, shapes)
            if key not in self._known:
                leaves, structure = tree_flatten((args, kwargs))
                in_place = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
                tracked = wants or (False,) * len(leaves)
                self._known[key] = _times(lambda *flat: _call(node.target, flat, structure), leaves, tracked, in_place)
            self.times[node.name] = self._known[key]
            return super().run_node(node)

    def _wants_gradient(self, node: Node) -> tuple[bool, ...]:
        """For each leaf of the arguments whether the backward pass computes its gradient."""
        wants = []
        for leaf in tree_leaves((node.args, node.kwargs)):
            if not isinstance(leaf, Node):
                wants.append(False)
            elif leaf.op == "get_attr":
                wants.append(bool(getattr(self.env[leaf], "requires_grad", False)))
            else:
                wants.append(leaf.name in self.tasks and self.tasks[leaf.name].needs_gradient)
        return tuple(wants)


def _call(target: Any, flat: Sequence[Any], structure: Any) -> Any:
    args, kwargs = tree_unflatten(list(flat), structure)
    return target(*args, **kwargs)


def _times(function: Callable[..., Any], leaves: Sequence[Any], wants_gradient: Sequence[bool], in_place: bool = False) -> dict[str, float]:
    """Median seconds of the forward call and of its backward pass, and the larger spread of the two."""
    interlude = Interlude()
    forward: list[float] = []
    backward: list[float] = []
    with torch.enable_grad():
        begun_s = monotonic()
        for index in range(WARM_UP + MEASUREMENTS):
            if len(forward) >= FEWEST_MEASUREMENTS and monotonic() - begun_s > TASK_BUDGET_S:
                break
            fresh = [_leaf(value, wanted, in_place) for value, wanted in zip(leaves, wants_gradient, strict=True)]
            interlude()
            start_s = monotonic()
            result = function(*fresh)
            forward_s, backward_s = monotonic() - start_s, 0.0
            tracked = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
            if tracked:
                gradients = [torch.ones_like(leaf) for leaf in tracked]
                interlude()
                start_s = monotonic()
                torch.autograd.backward(tracked, gradients)
                backward_s = monotonic() - start_s
            if index >= WARM_UP:
                forward.append(forward_s)
                backward.append(backward_s)
    return {"forward_s": median(forward), "backward_s": median(backward), "spread": max(_spread(forward), _spread(backward))}


def _leaf(value: Any, needs_gradient: bool, in_place: bool) -> Any:
    """A fresh leaf of the same memory, or a copy that an operator in place may overwrite."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    tensor = value.detach()
    tensor = tensor.requires_grad_() if needs_gradient else tensor
    return tensor.clone() if in_place else tensor


def _spread(times: Sequence[float]) -> float:
    low, _, high = quantiles(times, n=4)
    return (high - low) / median(times) if median(times) else 0.0


if __name__ == "__main__":
    _measure_rank(Path(sys.argv[1]))
