"""A plan as a job file (TOML) of torchtitan, for Llama: its degrees, its stages by name, and its schedule.

Job files have these keys since torchtitan 0.1 of 2025. Sizes of models stand in torchtitan's code; those of Llama 3 have names there.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
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
from chinchilla_sim.interchange.toml_text import write_toml

FORM = "torchtitan"
SCHEDULES = {
    "gpipe": "GPipe", "1f1b": "1F1B", "interleaved-1f1b": "Interleaved1F1B", "looped-bfs": "LoopedBFS",
    "interleaved-zb": "InterleavedZeroBubble",
    "zb-v": "ZBVZeroBubble", "dualpipe-v": "DualPipeV",
}  # fmt: skip
FLAVORS = {
    "8B": (32, 4096, 32, 8, 14336, 128256), "70B": (80, 8192, 64, 8, 28672, 128256), "405B": (126, 16384, 128, 8, 53248, 128256),
}  # fmt: skip
"""Layers, width, heads, key-value heads, inner width and vocabulary of Llama 3.1 (Grattafiori et al. 2024, table 3)."""


def export_torchtitan(source: Exportable) -> Exported:
    """The job file; ScenarioError tells all that it cannot say."""
    formula, shape = source.shape()
    refuse([*common_mistakes(source), *_mistakes(source, formula)], FORM)
    flavor, notes = _flavor(shape), [*_notes(source)]
    if not flavor:
        groups = shape["key_value_heads"] or shape["heads"]
        sizes = f"dim={shape['width']}, n_layers={shape['layers']}, n_heads={shape['heads']}, n_kv_heads={groups}"
        notes.insert(
            0, f"no flavor of torchtitan has these sizes: add one to its llama3 ({sizes}, vocabulary {shape['vocabulary']}) and name it"
        )
    tables = {"model": {"name": "llama3", "flavor": flavor or "ADD-A-FLAVOR"}, **_job(source, shape), **_division(source)}
    heading = [source.plan.describe(), "Made by `chinchilla export` for torchtitan's job files of 2025.", *notes]
    return Exported(write_toml(tables, {}, heading), tuple(notes))


def _flavor(shape: dict[str, Any]) -> str:
    keys = ("layers", "width", "heads", "key_value_heads", "inner_width", "vocabulary")
    sizes = tuple(shape[key] for key in keys)
    return next((name for name, known in FLAVORS.items() if known == sizes and not shape["tied_head"]), "")


def _job(source: Exportable, shape: dict[str, Any]) -> dict[str, Any]:
    plan, job = source.plan, source.file.scenario.job
    training: dict[str, Any] = {
        "local_batch_size": plan.microbatch_size * (plan.microbatch_count if plan.pipeline_parallel_degree > 1 else 1),
        "global_batch_size": plan.global_batch_size,
        "seq_len": shape["tokens"],
        "mixed_precision_param": "bfloat16" if job.precision == "bf16" else "float32",
    }
    if job.clip_gradient_norm is not None:
        training["max_norm"] = job.clip_gradient_norm
    if job.total_steps:
        training["steps"] = job.total_steps
    rate: dict[str, Any] = {"warmup_steps": job.warmup_steps}
    if job.learning_rate_schedule != "constant":
        rate["decay_type"] = job.learning_rate_schedule
    return {
        "optimizer": {"name": "AdamW", "lr": job.learning_rate},
        "lr_scheduler": rate,
        "training": training,
        "activation_checkpoint": {"mode": source.kind},
    }


def _division(source: Exportable) -> dict[str, Any]:
    plan = source.plan
    replicas = plan.data_parallel_degree
    sharded = plan.zero_stage == 3
    table: dict[str, Any] = {
        "data_parallel_replicate_degree": 1 if sharded else replicas,
        "data_parallel_shard_degree": replicas if sharded else 1,
        "tensor_parallel_degree": plan.tensor_parallel_degree,
        "context_parallel_degree": plan.context_parallel_degree,
        "pipeline_parallel_degree": plan.pipeline_parallel_degree,
    }
    if plan.pipeline_parallel_degree > 1:
        table |= {
            "pipeline_parallel_schedule": SCHEDULES[plan.schedule],
            "pipeline_parallel_microbatch_size": plan.microbatch_size,
            "module_fqns_per_model_part": [*_stage_names(source.layer_counts())],
        }
    return {"parallelism": table}


def _stage_names(counts: tuple[int, ...]) -> Iterator[list[str]]:
    """Modules of each stage by torchtitan's names."""
    for stage, (first, end) in enumerate(pairwise([0, *accumulate(counts)])):
        layers = [f"layers.{layer}" for layer in range(first, end)]
        is_last = stage == len(counts) - 1
        yield [*(["tok_embeddings"] if stage == 0 else []), *layers, *(["norm", "output"] if is_last else [])]


def _mistakes(source: Exportable, formula: str) -> Iterator[Mistake]:
    plan, job = source.plan, source.file.scenario.job
    if formula != "llama":
        yield Mistake("model", "is not formula llama", "export --to torchrun, megatron or deepspeed")
    if plan.zero_stage in (1, 2):
        yield Mistake("plan.zero_stage", f"is {plan.zero_stage}", "plan with search.zero_stages = [0, 3], or export --to deepspeed")
    if plan.tensor_parallel_degree > 1 and not plan.sequence_parallel:
        yield Mistake("plan.sequence_parallel", "is false with tensor parallelism", "plan with search.sequence_parallel = true")
    if plan.expert_parallel_degree > 1:
        yield Mistake("plan.expert_parallel_degree", f"is {plan.expert_parallel_degree}", "export --to megatron")
    if job.optimizer != "adam":
        yield Mistake("job.optimizer", f"is {job.optimizer}", 'write optimizer = "adam"')
    if job.precision == "fp16":
        yield Mistake("job.precision", "is fp16", 'write precision = "bf16"')
    if plan.pipeline_parallel_degree > 1:
        if plan.schedule not in SCHEDULES:
            yield Mistake("plan.schedule", f"is {plan.schedule}", f"plan with search.schedules of {', '.join(SCHEDULES)}")
        if not source.layer_counts():
            yield Mistake("plan.stages", "begin within a layer", EQUAL)
    elif plan.schedule != "1f1b" and plan.microbatch_count > 1:
        yield Mistake(
            "plan.schedule", f"is {plan.schedule} with {plan.microbatch_count} microbatches", 'plan with search.schedules = ["1f1b"]'
        )
    yield from codec_mistakes(plan)


def _notes(source: Exportable) -> Iterator[str]:
    plan, job = source.plan, source.file.scenario.job
    devices = min(source.devices_per_node, len(plan.slots))
    yield f"start with torchrun --nnodes {source.node_count} --nproc-per-node {devices}; name the dataset and tokenizer"
    if job.total_steps is None:
        yield "the number of steps follows from the data: set training.steps"
    if job.learning_rate_schedule == "constant":
        yield "the scenario keeps its learning rate, and torchtitan lets it fall by default: see lr_scheduler"
    yield f"the seed ({job.seed}) is set where your version of torchtitan has it"
    if job.clip_gradient_norm is None:
        yield "the scenario does not clip gradients, and torchtitan clips at training.max_norm = 1.0 by default"
    if plan.pipeline_parallel_degree > 1 and plan.data_parallel_degree > 1 and replicas_first(plan) is not True:
        yield "torchtitan makes neighbouring devices replicas of a stage; in the plan they are placed otherwise"
    if plan.gradient_buckets > 1:
        yield f"gradients leave in buckets of torchtitan's own making, not {plan.gradient_buckets}"
    if source.kind == "selective":
        yield "torchtitan's selective recompute keeps other operators' outputs than attention's alone"
    yield from slot_notes(plan)
