"""What passes of a model take within a step: all tasks together, and what begins each pass.

Operators that are timed one by one miss what they cost each other: allocation, caches that the next one finds cold, the bookkeeping of
autograd between them. Here the interpreter plays steps of the whole model on one rank, in one stage and in several, behind other work:

    in one stage    T(1) = start + tasks        in k stages    T(k) = k start + tasks

where a stage of several finds its core idle before, as it waits for its neighbours; start is what each pass takes beside its tasks. (Later
passes of a small model find their code in the caches: of 784-512-512-10 in two stages and four microbatches they took 0.20 ms where the
first took 0.38. Charging the start to first passes alone was tried: over 48 scenarios it was farther off, 7.5 against 5.7 %.)
"""

from __future__ import annotations

from itertools import pairwise
from time import monotonic, sleep
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from chinchilla_sim.graph.compress import AS_IT_IS, Variant
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import as_tuple, export_module, graph_of
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.groups import Groups
from chinchilla_sim.runtime.measurement.clocked import Clocked, idle_rank
from chinchilla_sim.runtime.measurement.format_probe import swept_median_s
from chinchilla_sim.runtime.measurement.interlude import Interlude, timed
from chinchilla_sim.runtime.record.recorder import Recorder
from chinchilla_sim.runtime.stage.batches import calibration_inputs
from chinchilla_sim.runtime.stage.passes import Passes
from chinchilla_sim.runtime.stage.stages import cut_stages
from chinchilla_sim.runtime.variant.variants import make_variant

STAGES = 3
WARM_UP = 2
STEPS = 12
FEWEST_STEPS = 4
BUDGET_S = 3.0
IDLE_S = 0.001
LEAST_SHARE = 0.2
"""Of a pass's seconds its tasks have at least so much."""

Rows = list[dict[str, Any]]


def in_context(rows: Rows, job: TrainingJob, size: int, training: bool, variant: Variant = AS_IT_IS) -> tuple[Rows, tuple[float, ...]]:
    """Rows of all tasks, scaled so that they add up to what whole passes take but for their start; and that, forward and backward.

    In inference a pass begins as it does on any device: no start is told.
    """
    if not training:
        return _scaled(rows, "forward_s", inference_seconds(job, size, variant)), ()
    whole, _ = pass_seconds(job, size, 1, variant)
    cut, stage_count = pass_seconds(job, size, STAGES, variant)
    starts = []
    for key, whole_s, cut_s in zip(("forward_s", "backward_s"), whole, cut, strict=True):
        start_s = max(0.0, (cut_s - whole_s) / (stage_count - 1)) if stage_count > 1 else 0.0
        rows = _scaled(rows, key, max(whole_s - start_s, LEAST_SHARE * whole_s))
        starts.append(start_s)
    return rows, tuple(starts)


def _scaled(rows: Rows, key: str, whole_s: float) -> Rows:
    total_s = sum(row[key] for row in rows)
    return [row | {key: row[key] * whole_s / total_s} for row in rows] if total_s else rows


def pass_seconds(job: TrainingJob, size: int, stage_count: int, variant: Variant = AS_IT_IS) -> tuple[tuple[float, float], int]:
    """Median seconds of a forward and a backward pass of one microbatch through all stages, and how many stages there are."""
    torch.manual_seed(0)
    model, cpu = job.model().train(), torch.device("cpu")
    inputs, targets = job.example_batch(size)
    names = cut_evenly(variant_of(job, model, size, True, variant)[1], stage_count)
    count = len(names)
    plan = Plan(names, ((0,),) * count, (0,), 2 * size, 2, "looped-bfs", ("none",) * count, ("none",) * (count - 1))
    stages = cut_stages(job, model, plan, tuple(range(count)), cpu, variant=variant)
    rank, interlude = idle_rank(job, plan, 0, stages, Groups(), Recorder()), Interlude()

    def before() -> None:
        interlude()
        if count > 1:
            sleep(IDLE_S)

    clocked = Clocked(rank, (Op.F, Op.B), before=before)
    begun_s = monotonic()
    for step in range(WARM_UP + STEPS):
        if step >= WARM_UP + FEWEST_STEPS and monotonic() - begun_s > BUDGET_S:
            break
        if step == WARM_UP:
            clocked.seconds.clear()
        rank.step([as_tuple(inputs)] * 2, [targets] * 2)
    return (clocked.total_s(Op.F), clocked.total_s(Op.B)), count


def inference_seconds(job: TrainingJob, size: int, variant: Variant = AS_IT_IS) -> float:
    """Median seconds of a forward pass of so many samples through the whole model, which requests wait for."""
    torch.manual_seed(0)
    model, inputs = job.model().eval(), as_tuple(job.example_batch(size)[0])
    names = tuple(task.name for task in variant_of(job, model, size, False, variant)[1].compute_tasks)
    plan = Plan((names,), ((0,),), (0,), size, 1, "forward", ("none",), ())
    (stage,) = cut_stages(job, model, plan, (0,), torch.device("cpu"), variant=variant)
    passes = Passes(stage, None)
    return swept_median_s(lambda _: timed(lambda: passes.infer(inputs)))


def variant_of(job: TrainingJob, model: nn.Module, size: int, training: bool, variant: Variant) -> tuple[GraphModule, TaskGraph]:
    """The exported model and its graph, compressed."""
    exported = export_module(model, as_tuple(job.example_batch(size)[0]))
    graph = graph_of(model, list(exported.graph.nodes), size, training, "profile")
    if variant == AS_IT_IS:
        return exported, graph
    made = make_variant(exported, graph, variant, lambda: calibration_inputs(job, model, size, torch.device("cpu")))
    return made.exported, made.graph


def cut_evenly(graph: TaskGraph, stage_count: int) -> tuple[tuple[str, ...], ...]:
    """Names of compute tasks in so many stages (fewer of a short model) of about equal flop, cut where the fewest tensors cross."""
    tasks = graph.compute_tasks
    work = [task.forward_flop + task.backward_flop + task.read_bytes + task.written_bytes for task in tasks]
    total, ends = sum(work), list[int]()
    for stage in range(1, min(stage_count, len(tasks))):
        done, best = 0.0, None
        for position in range(1, len(tasks)):
            done += work[position - 1]
            crossing = graph.live_after(graph.position[tasks[position - 1].name])
            key = len(crossing), abs(done / total - stage / stage_count)
            if position > (ends[-1] if ends else 0) and (best is None or key < best[0]):
                best = key, position
        if best:
            ends.append(best[1])
    bounds = [0, *ends, len(tasks)]
    return tuple(tuple(task.name for task in tasks[a:b]) for a, b in pairwise(bounds))
