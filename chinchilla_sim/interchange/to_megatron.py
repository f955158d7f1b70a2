"""A plan as the command line of Megatron-LM's pretrain_gpt.py, and back by `megatron`."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.interchange.expressible import (
    EQUAL,
    Exportable,
    Exported,
    codec_mistakes,
    common_mistakes,
    refuse,
    replicas_first,
    slot_notes,
)

FORM = "Megatron-LM"
SCHEDULES = ("1f1b", "interleaved-1f1b")
HEAD = """#!/bin/bash
# {summary}
# Made by `chinchilla export`. On every node: TORCHRUN_ARGS="--node-rank N --master-addr HOST" bash {name} DATA AND TOKENIZER ARGUMENTS
torchrun --nnodes {nodes} --nproc-per-node {devices} ${{TORCHRUN_ARGS:-}} pretrain_gpt.py \\
"""

Options = Iterator[tuple[str, object]]


def export_megatron(source: Exportable) -> Exported:
    """A shell script; ScenarioError tells all that Megatron-LM's arguments cannot say."""
    plan = source.plan
    formula, shape = source.shape()
    refuse([*common_mistakes(source), *_mistakes(source, formula)], FORM)
    options = (
        dict(_model(formula, shape, plan.tensor_parallel_degree)) | dict(_division(source)) | dict(_memory(source)) | dict(_job(source))
    )
    lines = [
        f"    --{key}{'' if value is True else f' {value}'} \\"
        for key, value in options.items()
        if value is not None and value is not False
    ]
    devices = min(source.devices_per_node, len(plan.slots))
    head = HEAD.format(summary=plan.describe(), nodes=source.node_count, devices=devices, name="FILE")
    return Exported("\n".join([head.rstrip("\n"), *lines, '    "$@"']) + "\n", (*_notes(source, formula),))


def _mistakes(source: Exportable, formula: str) -> Iterator[Mistake]:
    plan = source.plan
    if not formula:
        yield Mistake("model", "is none of the formulas gpt, llama and mixture_of_experts", "export --to torchrun, or deepspeed")
    if plan.pipeline_parallel_degree > 1 and plan.schedule not in SCHEDULES:
        yield Mistake("plan.schedule", f"is {plan.schedule}", f'plan with search.schedules = ["{SCHEDULES[0]}"]')
    elif plan.schedule not in SCHEDULES and plan.microbatch_count > 1:
        yield Mistake(
            "plan.schedule", f"is {plan.schedule} with {plan.microbatch_count} microbatches", 'plan with search.schedules = ["1f1b"]'
        )
    if plan.zero_stage > 1:
        yield Mistake(
            "plan.zero_stage", f"is {plan.zero_stage}", "plan with search.zero_stages = [0, 1], or export --to deepspeed or torchtitan"
        )
    if replicas_first(plan) is None:
        yield Mistake("plan.placement", "orders ranks neither by replicas nor by stages", "plan for equal devices")
    if len(plan.slots) % min(source.devices_per_node, len(plan.slots)):
        what = f"fills nodes of {source.devices_per_node} devices unequally with {len(plan.slots)}"
        yield Mistake("plan.slots", what, "plan with a multiple of a node's devices")
    yield from codec_mistakes(plan)
    yield from _layer_mistakes(source)


def _layer_mistakes(source: Exportable) -> Iterator[Mistake]:
    plan, counts = source.plan, source.layer_counts()
    if plan.stage_count == 1:
        return
    if not counts:
        yield Mistake("plan.stages", "begin within a layer", EQUAL)
    elif min(counts) < 1 or len(set(counts[1:-1])) > 1 or (plan.stages_per_rank > 1 and len(set(counts)) > 1):
        yield Mistake("plan.stages", f"have {'/'.join(map(str, counts))} layers", EQUAL)


def _model(formula: str, shape: dict[str, Any], tensor: int) -> Options:
    yield "num-layers", shape["layers"]
    yield "hidden-size", shape["width"]
    yield "ffn-hidden-size", shape["inner_width"] or 4 * shape["width"]
    yield "num-attention-heads", shape["heads"]
    yield "seq-length", shape["tokens"]
    yield "max-position-embeddings", shape.get("positions") or shape["tokens"]
    yield "vocab-size", shape["vocabulary"]
    yield "make-vocab-size-divisible-by", _padding(shape["vocabulary"], tensor)
    yield "untie-embeddings-and-output-weights", not shape["tied_head"]
    if formula == "gpt":
        yield "hidden-dropout", shape["dropout"]
        return
    yield from {"swiglu": True, "normalization": "RMSNorm", "position-embedding-type": "rope", "disable-bias-linear": True}.items()
    yield from {"hidden-dropout": 0.0, "attention-dropout": 0.0}.items()
    groups = shape["key_value_heads"] or shape["heads"]
    yield "group-query-attention", groups != shape["heads"]
    yield "num-query-groups", groups if groups != shape["heads"] else None
    yield "kv-channels", shape["head_width"]
    if formula == "mixture_of_experts":
        yield "num-experts", shape["experts"]
        yield "moe-router-topk", shape["active_experts"]


def _padding(vocabulary: int, tensor: int) -> int:
    """The largest power of two up to Megatron-LM's 128 that leaves the vocabulary as it is."""
    multiple = 128
    while multiple > 1 and vocabulary % (multiple * tensor):
        multiple //= 2
    return multiple


def _division(source: Exportable) -> Options:
    plan = source.plan
    yield "tensor-model-parallel-size", plan.tensor_parallel_degree
    yield "pipeline-model-parallel-size", plan.pipeline_parallel_degree
    yield "context-parallel-size", plan.context_parallel_degree if plan.context_parallel_degree > 1 else None
    yield "expert-model-parallel-size", plan.expert_parallel_degree if plan.expert_parallel_degree > 1 else None
    yield "sequence-parallel", plan.sequence_parallel
    counts = source.layer_counts()
    if plan.stages_per_rank > 1:
        yield "num-layers-per-virtual-pipeline-stage", counts[0]
    elif len(set(counts)) > 1:
        # Whoever is not named shares what is left equally.
        first = counts[0] if len(set(counts[1:])) == 1 or counts[0] != counts[1] else None
        last = counts[-1] if len(counts) > 2 and counts[-1] != counts[-2] else None
        yield "decoder-first-pipeline-num-layers", first
        yield "decoder-last-pipeline-num-layers", last
    yield "use-tp-pp-dp-mapping", replicas_first(plan) is False
    yield "micro-batch-size", plan.microbatch_size
    yield "global-batch-size", plan.global_batch_size


def _memory(source: Exportable) -> Options:
    plan = source.plan
    yield "use-distributed-optimizer", plan.zero_stage == 1
    if source.kind != "none":
        yield "recompute-granularity", source.kind
    if source.kind == "full":
        yield "recompute-method", "uniform"
        yield "recompute-num-layers", 1
    if plan.buckets_leave_early and plan.exchange_degree > 1:
        yield "overlap-grad-reduce", True
        values = source.graph.parameter_count / (plan.tensor_parallel_degree * plan.pipeline_parallel_degree)
        yield "ddp-bucket-size", ceil(values / plan.gradient_buckets)


def _job(source: Exportable) -> Options:
    job = source.file.scenario.job
    yield "train-iters", job.total_steps
    yield "optimizer", job.optimizer
    yield "sgd-momentum", job.momentum if job.optimizer == "sgd" else None
    yield "lr", job.learning_rate
    yield "lr-decay-style", job.learning_rate_schedule
    yield "lr-warmup-iters", job.warmup_steps or None
    yield "clip-grad", job.clip_gradient_norm or 0.0
    yield "seed", job.seed or None
    yield job.precision, job.precision != "fp32"


def _notes(source: Exportable, formula: str) -> Iterator[str]:
    plan, scenario = source.plan, source.file.scenario
    yield "data and tokenizer are not part of a plan: give --data-path, --tokenizer-type and theirs behind the script"
    if scenario.job.total_steps is None:
        yield "the number of steps follows from the data: add --train-iters"
    if scenario.job.seed < 1:
        yield "Megatron-LM takes no seed of 0, and uses its own"
    if formula == "mixture_of_experts":
        yield "how tokens reach their experts is Megatron-LM's choice: see --moe-token-dispatcher-type and --moe-grouped-gemm"
    yield from slot_notes(plan)
