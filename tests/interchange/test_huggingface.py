"""config.json of transformers: the formula has exactly the parameters of the model, what is not used is told, what differs is traced."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.graph.zoo import FORMULAS
from chinchilla_sim.interchange.assemble import Machines, import_files
from chinchilla_sim.interchange.huggingface import read_huggingface
from chinchilla_sim.interchange.keys import Parts
from chinchilla_sim.setting import build_graph

transformers = pytest.importorskip("transformers")

BERT = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 500}
LLAMA = {**BERT, "num_key_value_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"n_layer": 3, "n_embd": 64, "n_head": 4, "vocab_size": 501, "n_positions": 77, "n_inner": 100},
    "LlamaForCausalLM": {**LLAMA, "head_dim": 24},
    "MistralForCausalLM": {**LLAMA, "tie_word_embeddings": True},
    "MixtralForCausalLM": {**LLAMA, "num_local_experts": 6, "num_experts_per_tok": 3},
    "BertModel": {**BERT, "type_vocab_size": 3, "max_position_embeddings": 90},
    "BertForMaskedLM": BERT,
    "BertForSequenceClassification": {**BERT, "num_labels": 7},
    "T5ForConditionalGeneration": {"num_layers": 2, "num_decoder_layers": 3, "d_model": 64, "num_heads": 4, "d_kv": 8, "d_ff": 96},
    "ViTForImageClassification": {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 48, "patch_size": 8,
        "num_labels": 5,
    },
}  # fmt: skip


def written(architecture: str, values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The config.json that transformers writes, and the parameters of the model that it builds."""
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**values, architectures=[architecture])
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(config).parameters())
    return json.loads(config.to_json_string(use_diff=False)), count


def counted(parts: Parts) -> int:
    """Parameters of the formula that was read."""
    options = {place.removeprefix("model.options."): one.value for place, one in parts.said.items() if "options" in place}
    return FORMULAS[parts.value("model.formula")](batch_size=1, **options).parameter_count


@pytest.mark.parametrize("architecture", CASES)
def test_parameters_are_those_of_transformers(architecture: str) -> None:
    """Exactly, from the whole file that transformers writes, with no warning and no mistake."""
    config, expected = written(architecture, CASES[architecture])
    parts, keys = read_huggingface(config, "config.json")
    assert (keys.mistakes, parts.warnings) == ([], ())
    assert counted(parts) == expected


@settings(max_examples=25)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(10, 300), st.booleans())
def test_any_llama_has_its_parameters(layers: int, heads: int, eighths: int, share: int, inner: int, tied: bool) -> None:
    """Grouped heads of any width, tied or not."""
    values = {
        "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": 8 * eighths * heads, "intermediate_size": inner,
        "num_key_value_heads": max(1, heads // share), "tie_word_embeddings": tied, "vocab_size": 99,
    }  # fmt: skip
    config, expected = written("LlamaForCausalLM", values)
    assert counted(read_huggingface(config, "config.json")[0]) == expected


@pytest.mark.parametrize(
    ("architecture", "change", "told"),
    [
        ("LlamaForCausalLM", {"attention_bias": True}, "attention_bias = true"),
        ("GPT2LMHeadModel", {"activation_function": "relu"}, 'activation_function = "relu"'),
        ("GPT2LMHeadModel", {"embd_pdrop": 0.2}, "resid_pdrop and embd_pdrop differ"),
        ("BertForMaskedLM", {"is_decoder": True}, "is_decoder = true"),
    ],
)
def test_what_a_formula_does_not_compute_is_traced(architecture: str, change: dict[str, Any], told: str) -> None:
    """Transformers builds it from the same values, and the reason is told."""
    parts, _ = read_huggingface({"architectures": [architecture], **CASES[architecture], **change}, "config.json")
    assert parts.value("model.builtin") == "huggingface" and parts.value("model.options.architecture") == architecture
    assert any(told in warning for warning in parts.warnings)
    ((key, value),) = change.items()
    assert parts.value(f"model.options.config.{key}") == value


def test_an_unknown_architecture_is_transformers_own() -> None:
    """All its values but those about the file; null cannot be written and is told."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "torch_dtype": "bfloat16",
        "sliding_window": None,
        "max_position_embeddings": 99,
    }
    parts, _ = read_huggingface(config, "config.json")
    assert parts.value("model.options.config.hidden_size") == 64 and parts.value("model.options.tokens") == 99
    assert parts.ignored == ("torch_dtype",) and "null in sliding_window" in parts.warnings[0]


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "OPTForCausalLM"])
def test_what_transformers_builds_has_its_parameters(architecture: str, tmp_path: Path) -> None:
    """The scenario of a whole file of another architecture builds the same model."""
    values = {"vocab_size": 99, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    values |= (
        {"intermediate_size": 96, "num_key_value_heads": 2} if architecture.startswith("Q") else {"ffn_dim": 96, "word_embed_proj_dim": 64}
    )
    config, expected = written(architecture, values)
    (tmp_path / "config.json").write_text(json.dumps(config))
    imported = import_files([tmp_path / "config.json"], Machines(), 16, ["job.global_batch_size=8"])
    assert imported.scenario.model.builtin == "huggingface"
    assert build_graph(imported.scenario)[0].parameter_count == expected


def test_unused_keys_are_told_by_name() -> None:
    """What the formula does not need, and nothing else."""
    parts, _ = read_huggingface({"architectures": ["LlamaForCausalLM"], **LLAMA, "rope_theta": 1e4, "mystery": 1, "bos_token_id": 2}, "c")
    assert parts.ignored == ("bos_token_id", "mystery", "rope_theta")


def test_all_mistakes_at_once() -> None:
    """A word for a number, a missing size, a negative one."""
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": "64", "num_attention_heads": -1, "num_hidden_layers": 2}
    _, keys = read_huggingface(config, "config.json")
    assert sorted(one.where for one in keys.mistakes) == ["hidden_size", "intermediate_size", "num_attention_heads"]
    _, keys = read_huggingface({"model_type": "llama"}, "config.json")
    assert [one.where for one in keys.mistakes] == ["architectures"]


def test_a_short_window_is_told() -> None:
    """Attention counts over all tokens: that must be said where the model sees fewer."""
    config = {"architectures": ["MistralForCausalLM"], **LLAMA, "sliding_window": 128, "max_position_embeddings": 512}
    assert "sliding_window = 128" in read_huggingface(config, "c")[0].warnings[0]
    assert not read_huggingface(config, "c", tokens=128)[0].warnings
