"""The model of a published row: its formula and shape, its graph, and its layers divided over stages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import Any

from chinchilla_sim.errors import ChinchillaError
from chinchilla_sim.graph.attention import with_separate_attention
from chinchilla_sim.graph.repeats import Repeat, find_repeats
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS
from chinchilla_sim.validation.published_code import as_coded, codes_of

Row = Mapping[str, str]

FUSED_FAMILIES = ("mpt", "llama2", "llama3", "internlm", "nemotron", "qwen3", "mixtral")
"""Models of 2023 and later, whose training code keeps attention scores on chip unless a row says otherwise."""

CNNS = {"ResNet-50": ("resnet", {"depth": 50}), "ResNet-101": ("resnet", {"depth": 101}), "ResNet-152": ("resnet", {"depth": 152}),
        "VGG16": ("vgg16", {}), "AlexNet": ("alexnet", {}), "Inception-v3": ("inception_v3", {})}  # fmt: skip


FUSED_HARDWARE = r"[HB][12348]00|H20\b|GH200|MI3\d\d|Ada\b|RTX.?[45]0\d0|L40|\bL4\b"
"""The same holds for decoders on devices of 2022 and later; benchmark suites run older code for other models."""

PADDING = 128
"""Multiple of a padded vocabulary, for each device that shares it (Megatron-LM's default)."""


class NotPredictedError(ChinchillaError):
    """A row that this simulator cannot express; the message says why."""


@dataclass(frozen=True, slots=True)
class Model:
    """A published architecture: what its graph is built from."""

    formula: str
    options: tuple[tuple[str, Any], ...]
    value_bytes: float
    separate_attention: bool = False
    codes: tuple[str, ...] = ()


def model_of(row: Row) -> Model:
    """Formula and shape; NotPredictedError where the row does not say them."""
    family, name = row["model_family"], row["model_name"]
    if re.search(r"\blora\b|\badapter", row["other_config"], re.IGNORECASE):
        raise NotPredictedError("the training of adapters to frozen weights is not modelled")
    options: dict[str, Any] = {}
    if family == "cnn":
        if name not in CNNS:
            raise NotPredictedError(f"there is no formula for {name}")
        formula, options = CNNS[name]
    else:
        formula = _formula(family, row)
        shape = {
            "layers": "layers",
            "width": "hidden",
            "heads": "heads",
            "tokens": "seq_len",
            "vocabulary": "vocab",
            "inner_width": "ffn_hidden",
        }
        options = {ours: count_of(row, theirs) for ours, theirs in shape.items() if row[theirs]}
        if "vocabulary" in options and _is_padded(row):
            multiple = PADDING * count_of(row, "tp", 1)
            options["vocabulary"] = ceil(options["vocabulary"] / multiple) * multiple
        if "ONE LAYER" in name:
            options["vocabulary"] = 8  # the layer was measured without embedding and head
        missing = [theirs for ours, theirs in shape.items() if ours in ("layers", "width", "heads") and ours not in options]
        if missing:
            raise NotPredictedError(f"{', '.join(missing)} of the model are not stated")
        options |= _family_options(formula, row, options)
    value_bytes = 2.0 if precision_of(row) in ("fp16", "bf16", "fp8") else 4.0
    fused = family in FUSED_FAMILIES or "flash" in row["other_config"].lower()
    fused |= formula == "gpt" and bool(re.search(FUSED_HARDWARE, row["hardware"]))
    return Model(formula, tuple(sorted(options.items())), value_bytes, not fused, codes_of(row))


def _is_padded(row: Row) -> bool:
    """Whether the program makes its vocabulary fit tensor cores: parallel ones do, and an assumed vocabulary does not say otherwise."""
    return count_of(row, "tp", 1) > 1 or any(word in row.get("shape_provenance", "") for word in ("assumed", "memory", "public"))


def _formula(family: str, row: Row) -> str:
    if row["n_experts"] and count_of(row, "n_experts") > 1:
        return "mixture_of_experts"
    known = {"gpt": "gpt", "gpt2": "gpt", "gpt3": "gpt", "opt": "gpt", "mpt": "mpt", "bert": "bert", "t5": "t5", "vit": "vit",
             "transformer-xl": "transformer_xl", "llama2": "llama", "llama3": "llama", "internlm": "llama", "nemotron": "llama",
             "qwen3": "llama", "bart": "t5", "transformer": "t5"}  # fmt: skip
    if family not in known:
        raise NotPredictedError(f"there is no formula for models of family {family}")
    return known[family]


def _family_options(formula: str, row: Row, options: dict[str, Any]) -> dict[str, Any]:
    """What a formula needs beside the common shape."""
    if formula in ("llama", "mixture_of_experts"):
        extra: dict[str, Any] = {"key_value_heads": count_of(row, "kv_heads") if row["kv_heads"] else options["heads"]}
        # SwiGLU has three matrices: two thirds of 4 width, in whole 256s (Touvron et al. 2023).
        options.setdefault("inner_width", -(-8 * options["width"] // 3 // 256) * 256)
        if options["width"] % options["heads"]:
            extra["head_width"] = max(1, options["width"] // options["heads"])
        return extra | ({"experts": count_of(row, "n_experts"), "active_experts": count_of(row, "moe_topk")} if row["n_experts"] else {})
    if formula == "gpt":
        return {"dropout": 0.0 if row["model_family"] == "opt" else 0.1}
    if formula == "bert":
        return {"positions": max(512, options.get("tokens", 512)), "head": "mlm"}
    if formula in ("t5", "transformer_xl"):
        options.setdefault("inner_width", 4 * options["width"])
        if formula == "transformer_xl":
            return {}
        # NeMo and Megatron train T5 with a decoder a quarter as long as the encoder.
        return {"layers": max(1, options["layers"] // 2), "decoder_tokens": max(1, options.get("tokens", 512) // 4)}
    if formula == "vit":
        for name in ("tokens", "vocabulary"):
            options.pop(name, None)
        return {"patch_size": 14 if row["model_name"].endswith("/14") else 16}
    return {}


@lru_cache(maxsize=256)
def graph_of(model: Model) -> TaskGraph:
    """The graph of one sample."""
    try:
        graph = FORMULAS[model.formula](batch_size=1, training=True, value_bytes=model.value_bytes, **dict(model.options))
        graph = as_coded(graph, model.codes)
        return with_separate_attention(graph) if model.separate_attention else graph
    except ChinchillaError as error:
        raise NotPredictedError(f"the model cannot be built: {error}") from error


@lru_cache(maxsize=1024)
def stages_of(model: Model, count: int) -> tuple[tuple[str, ...], ...]:
    """All tasks in `count` runs of whole layers; what stands before the first and behind the last layer goes with them."""
    names = [task.name for task in graph_of(model).compute_tasks]
    if count == 1:
        return (tuple(names),)
    starts = [repeat.start + repeat.length * index for repeat in repeats_of(model) for index in range(repeat.count)]
    layers = len(starts)
    # Megatron counts embedding and head as a layer each where that makes the stages equal.
    spared = 1 if layers % count and (layers + 2) % count == 0 else 0
    if layers + 2 * spared < count:
        raise NotPredictedError(f"{layers} layers cannot be divided over {count} stages")
    ends = [*starts, starts[-1] + repeats_of(model)[0].length]
    # Where layers do not divide the last stages take one more (ColossalAI, InternEvo; Megatron refuses).
    cuts = [0, *(ends[(layers + 2 * spared) * stage // count - spared] for stage in range(1, count)), len(names)]
    return tuple(tuple(names[first:end]) for first, end in pairwise(cuts))


@lru_cache(maxsize=256)
def repeats_of(model: Model) -> list[Repeat]:
    """The layers: the repeat that covers most."""
    longest = sorted(find_repeats(graph_of(model)), key=lambda repeat: -repeat.length * repeat.count)
    return longest[:1]


def precision_of(row: Row) -> str:
    """Precision as the catalogue names it."""
    text = row["precision"].lower()
    if "fp4" in text:
        raise NotPredictedError(f"precision {row['precision']} is not in the catalogue")
    if "fp8" in text:
        return "fp8"
    if "tf32" in text:
        return "tf32"
    if "bf16" in text:
        return "bf16"
    return "fp16" if "fp16" in text else "fp32"


def count_of(row: Row, name: str, default: int | None = None) -> int:
    """A whole number of a row, or the default where it is blank."""
    text = row.get(name, "")
    if not text:
        if default is None:
            raise NotPredictedError(f"{name} is not stated")
        return default
    try:
        return int(float(text))
    except ValueError as error:
        raise NotPredictedError(f"{name} is {text!r}, not a number") from error
