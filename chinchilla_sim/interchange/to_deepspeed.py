"""A plan as a DeepSpeed JSON, and back by `deepspeed`: replicas, microbatches, ZeRO, precision, optimizer. It says nothing of the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import ceil
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.interchange.expressible import Exportable, Exported, codec_mistakes, common_mistakes, refuse, slot_notes

FORM = "DeepSpeed"
SCHEDULERS = {"linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}


def export_deepspeed(source: Exportable) -> Exported:
    """The JSON; ScenarioError tells all that it cannot say."""
    plan, job = source.plan, source.file.scenario.job
    refuse([*common_mistakes(source), *_mistakes(source)], FORM)
    table: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.microbatch_size,
        "gradient_accumulation_steps": plan.microbatch_count,
    }
    if job.precision != "fp32":
        table[job.precision] = {"enabled": True}
    if job.clip_gradient_norm is not None:
        table["gradient_clipping"] = job.clip_gradient_norm
    momentum = {"momentum": job.momentum} if job.optimizer == "sgd" else {}
    table["optimizer"] = {"type": {"adam": "Adam", "sgd": "SGD"}[job.optimizer], "params": {"lr": job.learning_rate, **momentum}}
    table |= _schedule(source) | _sharding(source)
    return Exported(json.dumps(table, indent=2) + "\n", tuple(_notes(source)))


def _schedule(source: Exportable) -> dict[str, Any]:
    job = source.file.scenario.job
    if job.learning_rate_schedule == "constant" and not job.warmup_steps:
        return {}
    params: dict[str, Any] = {"warmup_num_steps": job.warmup_steps}
    if job.learning_rate_schedule == "constant":
        return {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": job.learning_rate, **params}}}
    steps = {"total_num_steps": job.total_steps} if job.total_steps else {}
    rate = {"warmup_max_lr": job.learning_rate} if job.learning_rate_schedule == "linear" else {}
    return {"scheduler": {"type": SCHEDULERS[job.learning_rate_schedule], "params": {**steps, **rate, **params}}}


def _sharding(source: Exportable) -> dict[str, Any]:
    plan = source.plan
    zero: dict[str, Any] = {"stage": plan.zero_stage}
    if plan.zero_stage:
        zero["overlap_comm"] = plan.buckets_leave_early
        if plan.buckets_leave_early:
            zero["reduce_bucket_size"] = ceil(source.graph.parameter_count / plan.gradient_buckets)
    codec = plan.gradient_codecs[0]
    return {"zero_optimization": zero} | ({"communication_data_type": codec} if codec != "none" and plan.exchange_degree > 1 else {})


def _mistakes(source: Exportable) -> Iterator[Mistake]:
    plan = source.plan
    degrees = {"pipeline": plan.pipeline_parallel_degree, "tensor": plan.tensor_parallel_degree, "context": plan.context_parallel_degree,
               "expert": plan.expert_parallel_degree}  # fmt: skip
    for name, degree in degrees.items():
        if degree > 1:
            cure = f"plan with search.{name}_parallel_degrees = [1], or export --to megatron"
            yield Mistake(f"plan.{name}_parallel_degree", f"is {degree}", cure)
    if plan.pipeline_parallel_degree == 1 and plan.schedule != "1f1b" and plan.microbatch_count > 1:
        yield Mistake(
            "plan.schedule", f"is {plan.schedule} with {plan.microbatch_count} microbatches", 'plan with search.schedules = ["1f1b"]'
        )
    yield from codec_mistakes(plan, frozenset({"none", "fp16", "bf16"}))


def _notes(source: Exportable) -> Iterator[str]:
    plan, job = source.plan, source.file.scenario.job
    devices = min(source.devices_per_node, len(plan.slots))
    yield f"start {plan.data_parallel_degree} processes, {source.node_count} nodes of {devices}; the model is your program's"
    if source.kind != "none":
        yield f"{source.kind} recompute is turned on in the program (gradient_checkpointing_enable() of Hugging Face), not here"
    if plan.buckets_leave_early and not plan.zero_stage:
        yield "gradients that leave in buckets during the backward pass need ZeRO in DeepSpeed: without it they leave behind it"
    if job.total_steps:
        yield f"the program stops after {job.total_steps} steps, not this file"
    elif job.learning_rate_schedule != "constant":
        yield "the number of steps follows from the data: add scheduler.params.total_num_steps"
    yield f"the seed ({job.seed}) is set in the program"
    yield from slot_notes(plan)
