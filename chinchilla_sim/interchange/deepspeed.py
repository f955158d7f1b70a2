"""A DeepSpeed JSON as [job] and [search]: it says how replicas train, and nothing of the model.

train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x replicas
overlap_comm with reduce_bucket_size                                                        gradient_buckets
communication_data_type                                                                     gradient_codecs, where the job is in fp32
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chinchilla_sim.interchange.keys import Keys, Parts

FORM = "DeepSpeed JSON"
MARKS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "zero_optimization", "bf16", "fp16",
    "gradient_clipping", "zero_allow_untested_optimizer", "steps_per_print",
)  # fmt: skip
AUTO = "auto"
OPTIMIZERS = {"adam": "adam", "adamw": "adam", "sgd": "sgd"}
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
DEFAULT_BUCKET_VALUES = 500_000_000
HAS_VALUES = ("zero_optimization.offload_optimizer", "zero_optimization.offload_param")
CHANGES_PLAN = ("pipeline", "tensor_parallel", "sequence_parallel_size", "compression_training", "curriculum_learning", "elasticity")


def is_deepspeed(table: Mapping[str, Any]) -> bool:
    """Whether this looks like a DeepSpeed configuration."""
    return any(key in table for key in MARKS)


def read_deepspeed(table: Mapping[str, Any], source: str, replicas: int | None = None, alone: bool = True) -> tuple[Parts, Keys]:
    """What the file says; `alone` where it decides the whole plan: DeepSpeed without Megatron only has replicas."""
    keys = Keys(source, {})
    flat = dict(_flatten(table))
    keys.values = {key: value for key, value in flat.items() if value != AUTO}
    if unsaid := sorted(key for key, value in flat.items() if value == AUTO):
        keys.warnings.append(f'"auto" in {", ".join(unsaid)}: the program that trains fills it in; say it with --set')
    found = _read_batch(keys, replicas)
    _read_training(keys)
    if alone:
        keys.say("search.pipeline_parallel_degrees", [1], "one stage")
        keys.say("search.tensor_parallel_degrees", [1], "no tensor parallelism")
        keys.say("search.schedules", ["1f1b"], "one microbatch after the other")
    _read_sharding(keys, found)
    for key in HAS_VALUES:
        offloaded = [inner for inner in keys.values if inner == key or inner.startswith(f"{key}.")]
        if offloaded and keys.values.get(f"{key}.device", "cpu") != "none":
            keys.used |= set(offloaded)
            keys.warnings.append(f"{key} is not expressed: everything counts as held in the devices' memory")
    for key in CHANGES_PLAN:
        inner = [one for one in keys.values if one.split(".")[0] == key]
        if inner:
            keys.used |= set(inner)
            keys.warnings.append(f"{key} cannot be expressed: the plan counts without it")
    return Parts(source, FORM, keys.said, keys.ignored(), tuple(keys.warnings), found if alone else None), keys


def _flatten(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _read_batch(keys: Keys, replicas: int | None) -> int | None:
    """Batch and microbatches; returns the replicas, if they are known."""
    total, size = keys.whole("train_batch_size"), keys.whole("train_micro_batch_size_per_gpu")
    count = keys.whole("gradient_accumulation_steps")
    if total and size and count:
        replicas = _replicas(keys, total, size * count, replicas)
    elif total and size and not replicas:
        keys.warnings.append("train_micro_batch_size_per_gpu without gradient_accumulation_steps leaves the replicas open: add --count N")
    if replicas and not total and size:
        total = size * (count or 1) * replicas
    if replicas and total and not count:
        count = max(1, total // ((size or total // replicas or 1) * replicas))
    if replicas and total and count and total % (count * replicas):
        what = f"{total} samples do not divide into {count} microbatches of {replicas} replicas"
        keys.wrong("train_batch_size", what, f"write a multiple of {count * replicas}")
    keys.say("job.global_batch_size", total, "train_batch_size" if "train_batch_size" in keys.values else "micro batch x steps x replicas")
    keys.say("search.data_parallel_degrees", replicas and [replicas], "train_batch_size / (micro batch x accumulation steps)")
    keys.say("search.microbatch_counts", count and [count], "gradient_accumulation_steps")
    return replicas


def _replicas(keys: Keys, total: int, samples: int, stated: int | None) -> int | None:
    """Replicas that the three numbers give."""
    found, rest = divmod(total, samples)
    if rest:
        what = f"{total} is no multiple of train_micro_batch_size_per_gpu x gradient_accumulation_steps = {samples}"
        keys.wrong("train_batch_size", what, f"write {samples * max(1, found)}")
    elif stated and stated != found:
        what = f"{total} samples in microbatches and steps of {samples} are {found} replicas, and there are {stated}"
        keys.wrong("train_batch_size", what, f"write {samples * stated}, or use {found} devices")
    return found or None


def _read_training(keys: Keys) -> None:
    half = [name for name in ("bf16", "fp16") if keys.flag(f"{name}.enabled")]
    if len(half) > 1:
        keys.wrong("fp16.enabled", "is true beside bf16.enabled", "leave one out")
    keys.say("job.precision", half[0] if half else "fp32", f"{half[0]}.enabled" if half else "neither bf16 nor fp16", bool(half))
    name = keys.word("optimizer.type")
    if name:
        known = OPTIMIZERS.get(name.lower())
        keys.say("job.optimizer", known or "adam", "optimizer.type")
        if known is None:
            keys.warn("optimizer.type", f"{name} cannot be expressed: it counts as adam")
        elif known == "sgd":
            keys.say("job.momentum", keys.number("optimizer.params.momentum"), "optimizer.params.momentum")
    keys.say("job.learning_rate", keys.number("optimizer.params.lr"), "optimizer.params.lr")
    norm = keys.number("gradient_clipping")
    keys.say("job.clip_gradient_norm", norm or None, "gradient_clipping")
    schedule = keys.word("scheduler.type")
    if schedule in SCHEDULES:
        keys.say("job.learning_rate_schedule", SCHEDULES[schedule], "scheduler.type")
        keys.say("job.warmup_steps", keys.whole("scheduler.params.warmup_num_steps", 0), "scheduler.params.warmup_num_steps")
        keys.say("job.steps", keys.whole("scheduler.params.total_num_steps"), "scheduler.params.total_num_steps")
    elif schedule:
        keys.warn("scheduler.type", f"{schedule} cannot be expressed: the rate counts as constant")


def _read_sharding(keys: Keys, replicas: int | None) -> None:
    stage = keys.whole("zero_optimization.stage", 0) or 0
    if stage > 3:
        keys.wrong("zero_optimization.stage", f"must be from 0 to 3, not {stage}", "write for example 1")
    said = "zero_optimization.stage" in keys.values
    keys.say("search.zero_stages", [stage if replicas != 1 else 0], "zero_optimization.stage", said)
    overlap = keys.flag("zero_optimization.overlap_comm") or ("zero_optimization.overlap_comm" not in keys.values and stage == 3)
    size = keys.whole("zero_optimization.reduce_bucket_size") or DEFAULT_BUCKET_VALUES
    if overlap and stage in (1, 2, 3) and replicas != 1:
        keys.say("bucket_values", size, "zero_optimization.overlap_comm")
    sent = keys.word("communication_data_type", ("fp32", "fp16", "bf16"))
    if sent and sent != "fp32" and keys.said["job.precision"].value == "fp32":
        keys.say("search.gradient_codecs", [sent], "communication_data_type")
    elif sent and sent != keys.said["job.precision"].value:
        keys.warn("communication_data_type", f"{sent} cannot be expressed in a job of {keys.said['job.precision'].value}")
