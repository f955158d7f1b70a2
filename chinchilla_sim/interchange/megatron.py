"""Arguments of Megatron-LM's pretrain_gpt.py as [model], [job] and [search]: defaults are Megatron-LM's own.

What stands for what, beside the obvious:

    --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear    formula llama, with experts mixture_of_experts
    none of these                                                                            formula gpt
    --vocab-size, rounded up to --make-vocab-size-divisible-by x tensor parallel             vocabulary: what is really multiplied
    --use-distributed-optimizer                                                              zero_stages = [1]
    --num-layers-per-virtual-pipeline-stage                                                  interleaved-1f1b with stages_per_rank
    --overlap-grad-reduce (--ddp-bucket-size)                                                gradient_buckets
"""

from __future__ import annotations

from math import ceil
from typing import Any

from chinchilla_sim.interchange.arguments import Arguments
from chinchilla_sim.interchange.keys import Keys, Parts

FORM = "Megatron-LM arguments"
MODERN = "--swiglu, --normalization RMSNorm, --position-embedding-type rope and --disable-bias-linear"
VOCABULARIES = {"GPT2BPETokenizer": 50257}
DEFAULT_BUCKET_VALUES = 40_000_000
"""Gradients of a bucket, or 1,000,000 for each replica where that is more."""
CHANGES_MODEL = (
    "multi-latent-attention", "qk-layernorm", "squared-relu", "add-qkv-bias", "moe-shared-expert-intermediate-size", "moe-layer-freq",
    "mtp-num-layers", "encoder-num-layers", "decoder-num-layers", "heterogeneous-layers-config-path",
)  # fmt: skip
CHANGES_PLAN = (
    "pipeline-model-parallel-layout", "account-for-embedding-in-pipeline-split", "account-for-loss-in-pipeline-split",
    "expert-tensor-parallel-size", "encoder-tensor-model-parallel-size", "encoder-pipeline-model-parallel-size", "use-torch-fsdp2",
    "use-megatron-fsdp", "use-custom-fsdp", "rampup-batch-size", "fp8-format", "cpu-offloading", "optimizer-cpu-offload",
    "num-virtual-stages-per-pipeline-rank", "pipeline-model-parallel-split-rank", "num-distributed-optimizer-instances",
)  # fmt: skip


def is_megatron(arguments: Arguments) -> bool:
    """Whether these look like the arguments of Megatron-LM."""
    return bool({"num-layers", "hidden-size", "tensor-model-parallel-size", "micro-batch-size"} & arguments.values.keys())


def read_megatron(arguments: Arguments, source: str, devices: int | None = None) -> tuple[Parts, Keys]:
    """What the arguments say, on `devices` devices where the launcher does not say how many."""
    keys = Keys(source, {key: " ".join(values) for key, values in arguments.values.items()}, textual=True)
    for script in arguments.scripts:
        if script.startswith("pretrain_") and script != "pretrain_gpt.py":
            keys.wrong(script, "trains a model that these formulas do not describe", "give the arguments of pretrain_gpt.py")
    degrees = _Degrees(keys, devices)
    _read_model(keys, degrees)
    _read_job(keys, degrees)
    counts = _read_plan(keys, degrees)
    for key in CHANGES_PLAN:
        if key in keys.values:
            keys.warn(key, "cannot be expressed: the plan counts without it")
    for key, several in sorted(arguments.contradictions.items()):
        if key in keys.used:
            given = " and ".join(sorted(" ".join(values) or "nothing" for values in several))
            keys.wrong(f"--{key}", f"is given more than once, as {given}", "leave one")
    keys.mistakes = [type(one)(f"--{one.where.removeprefix('--')}", one.what, one.cure) for one in keys.mistakes]
    keys.warnings = [f"--{warning}" for warning in keys.warnings]
    ignored = tuple(f"--{key}" for key in keys.ignored())
    parts = Parts(
        source, FORM, keys.said, ignored, tuple(keys.warnings), degrees.devices, degrees.devices_per_node, counts,
        not keys.flag("use-tp-pp-dp-mapping"),
    )  # fmt: skip
    return parts, keys


class _Degrees:
    """How the devices are divided, and how many samples a microbatch has."""

    def __init__(self, keys: Keys, devices: int | None) -> None:
        self.tensor = keys.whole("tensor-model-parallel-size") or 1
        self.pipeline = keys.whole("pipeline-model-parallel-size") or 1
        self.context = keys.whole("context-parallel-size") or 1
        self.expert = keys.whole("expert-model-parallel-size") or 1
        nodes, self.devices_per_node = keys.whole("nnodes"), keys.whole("nproc-per-node")
        launched = (nodes or 1) * self.devices_per_node if self.devices_per_node else None
        self.devices = devices or launched
        width = self.tensor * self.pipeline * self.context
        self.replicas = (self.devices or width) // width or 1
        if self.devices is None:
            keys.wrong("nproc-per-node", "the text does not say on how many devices this runs", f"add --count N, a multiple of {width}")
        elif self.devices % width:
            what = f"{width} devices (tensor x pipeline x context parallel) do not divide {self.devices}"
            keys.wrong("pipeline-model-parallel-size", what, f"use a multiple of {width} devices")
        self.microbatch_size = keys.whole("micro-batch-size")
        if self.microbatch_size is None and not any(one.where == "micro-batch-size" for one in keys.mistakes):
            keys.wrong("micro-batch-size", "is missing", "write for example --micro-batch-size 1")
        samples = (self.microbatch_size or 1) * self.replicas
        stated = keys.whole("global-batch-size")
        self.global_batch_size = stated or samples
        if self.global_batch_size % samples:
            what = f"{self.global_batch_size} samples do not divide into {self.replicas} replicas' microbatches of {self.microbatch_size}"
            keys.wrong("global-batch-size", what, f"write a multiple of {samples}")
        self.microbatch_count = max(1, self.global_batch_size // samples)
        self.layers = keys.whole("num-layers") or 1


def _read_model(keys: Keys, degrees: _Degrees) -> None:
    for key in CHANGES_MODEL:
        if key in keys.values:
            keys.wrong(
                key, "changes the model beyond what a formula describes", "leave it out, or give the model as a Hugging Face config.json"
            )
    for key in ("num-layers", "hidden-size", "num-attention-heads", "seq-length"):
        if key not in keys.values:
            keys.wrong(key, "is missing", f"write for example --{key} {4096 if key == 'seq-length' else 64}")
    width, heads = keys.whole("hidden-size"), keys.whole("num-attention-heads")
    formula = _formula(keys, width, heads)
    keys.say("model.formula", formula, "--num-experts" if formula == "mixture_of_experts" else "--swiglu")
    for option, key in (("layers", "num-layers"), ("tokens", "seq-length")):
        keys.say(f"model.options.{option}", keys.whole(key), f"--{key}")
    keys.say("model.options.width", width, "--hidden-size")
    keys.say("model.options.heads", heads, "--num-attention-heads")
    _say_vocabulary(keys, degrees)
    _say_inner_width(keys, width or 0, formula)
    keys.say("model.options.tied_head", not keys.flag("untie-embeddings-and-output-weights"), "--untie-embeddings-and-output-weights")
    dropout = keys.number("hidden-dropout")
    dropout = 0.1 if dropout is None else dropout
    if formula == "gpt":
        keys.say("model.options.positions", keys.whole("max-position-embeddings"), "--max-position-embeddings")
        keys.say("model.options.dropout", dropout, "--hidden-dropout")
        return
    if dropout:
        keys.warn("hidden-dropout", f"= {dropout:g} is not expressed: formula {formula} has no dropout")
    if keys.flag("group-query-attention"):
        keys.say("model.options.key_value_heads", keys.whole("num-query-groups") or 1, "--num-query-groups")
    keys.say("model.options.head_width", keys.whole("kv-channels"), "--kv-channels")
    if formula == "mixture_of_experts":
        keys.say("model.options.experts", keys.whole("num-experts"), "--num-experts")
        keys.say("model.options.active_experts", keys.whole("moe-router-topk") or 2, "--moe-router-topk")


def _formula(keys: Keys, width: int | None, heads: int | None) -> str:
    """The formula that is this network; a mistake where none is."""
    rotary = keys.word("position-embedding-type") == "rope"
    rotary |= keys.flag("use-rotary-position-embeddings")
    root_mean_square = keys.word("normalization", ("LayerNorm", "RMSNorm")) == "RMSNorm"
    modern = [keys.flag("swiglu"), root_mean_square, rotary, keys.flag("disable-bias-linear")]
    mixture = (keys.whole("num-experts", 0) or 0) > 1
    if keys.values.get("position-embedding-type", "rope") not in ("rope", "learned_absolute"):
        keys.wrong("position-embedding-type", f"{keys.values['position-embedding-type']} is in no formula", "use rope or learned_absolute")
    if all(modern):
        return "mixture_of_experts" if mixture else "llama"
    own_width = keys.values.get("kv-channels", "")
    other_heads = bool(own_width) and bool(width) and bool(heads) and own_width != str((width or 0) // (heads or 1))
    if any(modern) or mixture or keys.flag("group-query-attention") or other_heads:
        what = f"no formula is this network: llama and mixture_of_experts have all of {MODERN}; gpt has none of them, and all heads alike"
        keys.wrong("swiglu" if not modern[0] else "disable-bias-linear", what, "give the model as a Hugging Face config.json")
    return "gpt"


def _say_vocabulary(keys: Keys, degrees: _Degrees) -> None:
    size = keys.whole("vocab-size")
    tokenizer = keys.values.get("tokenizer-type", "")
    if size is None and tokenizer in VOCABULARIES:
        size = VOCABULARIES[str(keys.take("tokenizer-type"))]
    if size is None:
        if "vocab-size" not in keys.values:
            keys.wrong("vocab-size", "is missing, and the tokenizer does not say it", "write for example --vocab-size 50257")
        return
    multiple = (keys.whole("make-vocab-size-divisible-by") or 128) * degrees.tensor
    padded = ceil(size / multiple) * multiple
    keys.say("model.options.vocabulary", padded, f"{size} in whole {multiple}s" if padded != size else "--vocab-size")


def _say_inner_width(keys: Keys, width: int, formula: str) -> None:
    inner = keys.whole("ffn-hidden-size")
    by = "--ffn-hidden-size"
    if formula == "mixture_of_experts" and (own := keys.whole("moe-ffn-hidden-size")):
        inner, by = own, "--moe-ffn-hidden-size"
    if inner is None and formula != "gpt":
        inner, by = int(4 * width * 2 / 3 / 64) * 64, "--hidden-size x 8 / 3, in whole 64s"
    keys.say("model.options.inner_width", inner, by)


def _read_job(keys: Keys, degrees: _Degrees) -> None:
    keys.say("job.global_batch_size", degrees.global_batch_size, "--global-batch-size", "global-batch-size" in keys.values)
    keys.say("job.steps", keys.whole("train-iters"), "--train-iters")
    keys.say("job.target_samples", keys.whole("train-samples"), "--train-samples")
    half = [name for name in ("bf16", "fp16") if keys.flag(name)]
    if len(half) > 1:
        keys.wrong("fp16", "is given beside --bf16", "leave one out")
    keys.say("job.precision", half[0] if half else "fp32", f"--{half[0]}" if half else "neither --bf16 nor --fp16", bool(half))
    optimizer = keys.word("optimizer", ("adam", "sgd")) or "adam"
    keys.say("job.optimizer", optimizer, "--optimizer", "optimizer" in keys.values)
    if optimizer == "sgd":
        momentum = keys.number("sgd-momentum")
        keys.say("job.momentum", 0.9 if momentum is None else momentum, "--sgd-momentum")
    keys.say("job.learning_rate", keys.number("lr"), "--lr")
    style = keys.word("lr-decay-style") or "linear"
    if style in ("constant", "linear", "cosine"):
        keys.say("job.learning_rate_schedule", style, "--lr-decay-style", "lr-decay-style" in keys.values)
    else:
        keys.warn("lr-decay-style", f"{style} cannot be expressed: the rate counts as constant")
    keys.say("job.warmup_steps", keys.whole("lr-warmup-iters", 0), "--lr-warmup-iters")
    norm = keys.number("clip-grad")
    norm = 1.0 if norm is None else norm
    keys.say("job.clip_gradient_norm", norm or None, "--clip-grad", "clip-grad" in keys.values)
    seed = keys.whole("seed", 0)
    keys.say("job.seed", 1234 if seed is None else seed, "--seed")


def _read_plan(keys: Keys, degrees: _Degrees) -> tuple[int, ...]:
    """[search] with one value for everything that the arguments say; returns the layers of each stage."""
    shards = keys.flag("use-distributed-optimizer") and degrees.replicas * degrees.context > 1
    search: dict[str, tuple[Any, str]] = {
        "data_parallel_degrees": ([degrees.replicas], "devices / (tensor x pipeline x context parallel)"),
        "pipeline_parallel_degrees": ([degrees.pipeline], "--pipeline-model-parallel-size"),
        "tensor_parallel_degrees": ([degrees.tensor], "--tensor-model-parallel-size"),
        "context_parallel_degrees": ([degrees.context], "--context-parallel-size"),
        "expert_parallel_degrees": ([degrees.expert], "--expert-model-parallel-size"),
        "sequence_parallel": (keys.flag("sequence-parallel") and degrees.tensor > 1, "--sequence-parallel"),
        "microbatch_counts": ([degrees.microbatch_count], "--global-batch-size / (--micro-batch-size x replicas)"),
        "zero_stages": ([int(shards)], "--use-distributed-optimizer"),
        "recompute": ([_recompute(keys)], "--recompute-granularity"),
    }  # fmt: skip
    counts, per_rank = _layer_counts(keys, degrees)
    search["schedules"] = (["interleaved-1f1b" if per_rank > 1 else "1f1b"], "--num-layers-per-virtual-pipeline-stage")
    if per_rank > 1:
        search["stages_per_rank"] = ([per_rank], "--num-layers-per-virtual-pipeline-stage")
    for key, (value, by) in search.items():
        default = key == "zero_stages" and "use-distributed-optimizer" not in keys.values
        keys.say(f"search.{key}", value, by, not default)
    _say_buckets(keys, degrees)
    return counts


def _recompute(keys: Keys) -> str:
    kind = keys.word("recompute-granularity", ("selective", "full"))
    selective = keys.flag("recompute-activations")
    method, layers = keys.word("recompute-method", ("uniform", "block")), keys.whole("recompute-num-layers")
    if kind == "full" and method == "block" and layers:
        keys.warn("recompute-method", f"block with {layers} layers cannot be expressed: all layers count as computed again")
    if kind == "full" and method == "uniform" and (layers or 1) > 1:
        keys.warn("recompute-num-layers", f"{layers} cannot be expressed: the input of every layer counts as kept")
    return kind or ("selective" if selective else "none")


def _layer_counts(keys: Keys, degrees: _Degrees) -> tuple[tuple[int, ...], int]:
    """Layers of every stage, and stages of every rank."""
    ranks, layers = degrees.pipeline, degrees.layers
    first, last = keys.whole("decoder-first-pipeline-num-layers"), keys.whole("decoder-last-pipeline-num-layers")
    size = keys.whole("num-layers-per-virtual-pipeline-stage")
    if size and (first or last):
        keys.warn("num-layers-per-virtual-pipeline-stage", "with stages of unequal layers cannot be expressed: it counts as left out")
        size = None
    stages = layers // size if size and ranks > 1 else ranks
    between = stages - bool(first) - bool(last)
    rest = layers - (first or 0) - (last or 0)
    if stages % ranks or rest < between or (rest % between if between else rest):
        what = f"{layers} layers cannot be divided equally over {ranks} ranks of a pipeline"
        keys.wrong("num-layers", what, "write a multiple, or --decoder-first-pipeline-num-layers")
        return (), 1
    middle = (rest // between,) * between if between else ()
    return (*([first] if first else []), *middle, *([last] if last else [])), stages // ranks


def _say_buckets(keys: Keys, degrees: _Degrees) -> None:
    """Buckets of gradients, where they leave during the backward pass; their number follows from the size of the model (see assemble)."""
    size = keys.whole("ddp-bucket-size")
    if keys.flag("overlap-grad-reduce") and degrees.replicas * degrees.context > 1:
        size = size or max(DEFAULT_BUCKET_VALUES, 1_000_000 * degrees.replicas * degrees.context)
        keys.say("bucket_values", size * degrees.tensor * degrees.pipeline, "--overlap-grad-reduce")
