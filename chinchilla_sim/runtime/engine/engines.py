"""Which engine plays a plan: our interpreter, or torch.distributed.pipelining where that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.plan import Plan

Engine = Literal["chinchilla", "torch"]
ENGINES: tuple[Engine, ...] = ("chinchilla", "torch")

TORCH_SCHEDULES: Mapping[str, str] = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "looped-bfs": "ScheduleLoopedBFS",
    "interleaved-1f1b": "ScheduleInterleaved1F1B",
    "zb-h1": "ScheduleInterleavedZeroBubble",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}
"""Ours by name, and the class of torch.distributed.pipelining that plays the same rows."""

_BEYOND_TORCH: Mapping[str, Callable[[Plan], bool]] = {
    "forward passes alone": lambda plan: not plan.training,
    "codecs": lambda plan: not {*plan.gradient_codecs, *plan.activation_codecs} <= {"none"},
    "stages with replica counts of their own": lambda plan: plan.free_replicas,
    "unequal microbatch counts": lambda plan: bool(plan.replica_microbatch_counts),
    "gradient buckets that leave during the backward pass": lambda plan: plan.gradient_buckets > 1,
    "ZeRO": lambda plan: plan.zero_stage > 0,
    "local steps and late gradients": lambda plan: plan.asynchronous,
    "recompute": lambda plan: not {*plan.recompute} <= {"none"},
    "weights shared by stages": lambda plan: bool(plan.shared_stages),
    "tensor, context and expert parallelism": lambda plan: plan.group_width * plan.expert_parallel_degree > 1,
    "priorities of messages": lambda plan: plan.activation_priority is not None,
    "1f1b with fewer microbatches than stages": lambda plan: plan.schedule == "1f1b" and plan.microbatch_count < plan.stage_count,
}


def check_engine(plan: Plan, engine: Engine) -> None:
    """ScenarioError where an engine cannot play a plan; ours plays what `planner/executable.py` says."""
    if engine == "chinchilla":
        return
    cure = "run it without --engine torch, or leave it out when planning"
    refused = [what for what, asked in _BEYOND_TORCH.items() if asked(plan)]
    refused += [f"schedule {plan.schedule}"] if plan.training and plan.schedule not in TORCH_SCHEDULES else []
    if refused:
        raise ScenarioError([Mistake("--engine", f"torch's pipelining does not play {what}", cure) for what in refused])


def plan_of_plain_stages(plan: Plan) -> Plan:
    """The plan to cut stages by for torch, which splits backward passes itself, on operators as they are."""
    return replace(plan, schedule="gpipe", order=())
