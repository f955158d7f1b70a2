"""Options of published models, as plain data: `gpt(batch_size=8, **PRESETS["gpt2"].options)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Preset:
    """A published model: its formula and options, the parameters it is said to have, and who says so.

    `exact` is False where only a rounded count is published.
    """

    formula: str
    options: Mapping[str, Any]
    parameter_count: int
    source: str
    exact: bool = True


PRESETS: dict[str, Preset] = {
    "gpt2": Preset(
        "gpt", {"layers": 12, "width": 768, "heads": 12}, 124_439_808, "huggingface.co/openai-community/gpt2; Radford 2019, table 2"
    ),
    "gpt2-xl": Preset(
        "gpt", {"layers": 48, "width": 1600, "heads": 25}, 1_557_611_200, "huggingface.co/openai-community/gpt2-xl; Radford 2019, table 2"
    ),
    "gpt-3": Preset(
        "gpt", {"layers": 96, "width": 12288, "heads": 96, "tokens": 2048}, 175_000_000_000, "Brown 2020, table 2.1", exact=False
    ),
    "mpt-7b": Preset("mpt", {"layers": 32, "width": 4096, "heads": 32}, 6_649_286_656, "huggingface.co/mosaicml/mpt-7b"),
    "llama-2-7b": Preset(
        "llama", {"layers": 32, "width": 4096, "heads": 32, "inner_width": 11008}, 6_738_415_616, "huggingface.co/meta-llama/Llama-2-7b-hf"
    ),
    "llama-2-70b": Preset(
        "llama", {"layers": 80, "width": 8192, "heads": 64, "key_value_heads": 8, "inner_width": 28672}, 68_976_648_192,
        "huggingface.co/meta-llama/Llama-2-70b-hf",
    ),
    "mixtral-8x7b": Preset(
        "mixture_of_experts", {"layers": 32, "width": 4096, "heads": 32, "key_value_heads": 8, "inner_width": 14336}, 46_702_792_704,
        "huggingface.co/mistralai/Mixtral-8x7B-v0.1; Jiang 2024, table 1",
    ),
    "bert-base": Preset(
        "bert", {"layers": 12, "width": 768, "heads": 12, "head": "pooler"}, 109_482_240, "huggingface.co/google-bert/bert-base-uncased"
    ),
    "bert-large": Preset(
        "bert", {"layers": 24, "width": 1024, "heads": 16, "head": "pooler"}, 335_141_888, "huggingface.co/google-bert/bert-large-uncased"
    ),
    "t5-base": Preset(
        "t5", {"layers": 12, "width": 768, "heads": 12, "inner_width": 3072}, 222_903_552, "huggingface.co/google-t5/t5-base; Raffel 2020"
    ),
    "transformer-xl-enwik8": Preset(
        "transformer_xl", {"layers": 12, "width": 512, "heads": 8, "inner_width": 2048}, 41_000_000, "Dai 2019, table 2", exact=False
    ),
    "vit-b-16": Preset(
        "vit", {"layers": 12, "width": 768, "heads": 12}, 86_567_656, "torchvision vit_b_16; Dosovitskiy 2021, table 1"
    ),
    "alexnet": Preset("alexnet", {}, 61_100_840, "torchvision alexnet"),
    "vgg16": Preset("vgg16", {}, 138_357_544, "torchvision vgg16"),
    "resnet18": Preset("resnet", {"depth": 18}, 11_689_512, "torchvision resnet18"),
    "resnet34": Preset("resnet", {"depth": 34}, 21_797_672, "torchvision resnet34"),
    "resnet50": Preset("resnet", {"depth": 50}, 25_557_032, "torchvision resnet50"),
    "resnet101": Preset("resnet", {"depth": 101}, 44_549_160, "torchvision resnet101"),
    "resnet152": Preset("resnet", {"depth": 152}, 60_192_808, "torchvision resnet152"),
    "inception-v3": Preset("inception_v3", {}, 27_161_264, "torchvision inception_v3, with its auxiliary head"),
}  # fmt: skip
