"""Which of our formulas is which architecture of Hugging Face transformers, exactly.

A family names the keys of its `config.json` that a formula takes, with the defaults of the configuration class where the file does not
say them, and what other keys must say for the formula to be the same network. An architecture that is not here, or a configuration
that says something else, is built by transformers itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Default = int | float | bool | str | None
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")
"""All one task of the same amounts."""

REQUIRED = object()
"""Default of what every file must say."""


@dataclass(frozen=True, slots=True)
class Family:
    """`options` are our option -> (their key, its default); `must` their key -> the values under which the formula is exact, the first of
    which is the default; `fixed` what the architecture itself says."""

    formula: str
    options: Mapping[str, tuple[str, Any]]
    must: Mapping[str, tuple[Default, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dropouts: tuple[tuple[str, float], ...] = ()
    positions: str = ""
    alike: Mapping[str, str] = field(default_factory=dict)
    """Other names of the same key, which the configuration class accepts."""


_GPT2_NAMES = {
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
}  # fmt: skip
_COMMON = {"layers": ("num_hidden_layers", REQUIRED), "width": ("hidden_size", REQUIRED), "heads": ("num_attention_heads", REQUIRED)}
_DECODER = {
    **_COMMON,
    "inner_width": ("intermediate_size", REQUIRED),
    "head_width": ("head_dim", None),
    "vocabulary": ("vocab_size", 32000),
    "tied_head": ("tie_word_embeddings", False),
}
_LLAMA_MUST: Mapping[str, tuple[Default, ...]] = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}


def _bert(head: str, classes: bool = False) -> Family:
    options = {
        **_COMMON, "inner_width": ("intermediate_size", REQUIRED), "vocabulary": ("vocab_size", 30522),
        "positions": ("max_position_embeddings", 512), "token_types": ("type_vocab_size", 2),
    }  # fmt: skip
    must: dict[str, tuple[Default, ...]] = {
        "hidden_act": GELU, "is_decoder": (False,), "add_cross_attention": (False,), "position_embedding_type": ("absolute",),
        "tie_word_embeddings": (True,),
    }  # fmt: skip
    dropouts = (("hidden_dropout_prob", 0.1),)
    options |= {"classes": ("num_labels", 2)} if classes else {}
    return Family("bert", options, must, {"head": head}, dropouts, "max_position_embeddings")


FAMILIES: Mapping[str, Family] = {
    "GPT2LMHeadModel": Family(
        "gpt",
        {
            "layers": ("n_layer", 12), "width": ("n_embd", 768), "heads": ("n_head", 12), "inner_width": ("n_inner", None),
            "vocabulary": ("vocab_size", 50257), "positions": ("n_positions", 1024), "tied_head": ("tie_word_embeddings", True),
        },
        {"activation_function": ("gelu_new", *GELU), "add_cross_attention": (False,)},
        dropouts=(("resid_pdrop", 0.1), ("embd_pdrop", 0.1)),
        positions="n_positions",
        alike=_GPT2_NAMES,
    ),
    "LlamaForCausalLM": Family(
        "llama", {**_DECODER, "key_value_heads": ("num_key_value_heads", None)}, _LLAMA_MUST, positions="max_position_embeddings"
    ),
    "MistralForCausalLM": Family(
        "llama", {**_DECODER, "key_value_heads": ("num_key_value_heads", 8)}, {"hidden_act": ("silu",)}, positions="max_position_embeddings"
    ),
    "MixtralForCausalLM": Family(
        "mixture_of_experts",
        {
            **_DECODER, "key_value_heads": ("num_key_value_heads", 8), "experts": ("num_local_experts", 8),
            "active_experts": ("num_experts_per_tok", 2),
        },
        {"hidden_act": ("silu",)},
        positions="max_position_embeddings",
        alike={"num_experts": "num_local_experts"},
    ),
    "BertModel": _bert("pooler"),
    "BertForMaskedLM": _bert("mlm"),
    "BertForSequenceClassification": _bert("classifier", classes=True),
    "T5ForConditionalGeneration": Family(
        "t5",
        {
            "layers": ("num_layers", REQUIRED), "decoder_layers": ("num_decoder_layers", None), "width": ("d_model", REQUIRED),
            "heads": ("num_heads", REQUIRED), "head_width": ("d_kv", 64), "inner_width": ("d_ff", REQUIRED),
            "vocabulary": ("vocab_size", 32128), "buckets": ("relative_attention_num_buckets", 32),
        },
        {"feed_forward_proj": ("relu", "gated-gelu"), "is_encoder_decoder": (True,), "tie_word_embeddings": (True,)},
        dropouts=(("dropout_rate", 0.1),),
    ),
    "ViTForImageClassification": Family(
        "vit",
        {
            **_COMMON, "inner_width": ("intermediate_size", REQUIRED), "image_size": ("image_size", 224),
            "patch_size": ("patch_size", 16), "channels": ("num_channels", 3), "classes": ("num_labels", 2),
        },
        {"hidden_act": GELU, "qkv_bias": (True,)},
        dropouts=(("hidden_dropout_prob", 0.0),),
    ),
}  # fmt: skip
