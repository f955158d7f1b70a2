"""Formulas of transformers against published parameter counts, laws of their flop, and traces of Hugging Face's models."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.graph.zoo import FORMULAS, PRESETS, gpt, llama, mixture_of_experts, t5, transformer_xl

BATCH, TOKENS, VOCABULARY = 2, 16, 500
SMALL: dict[str, Any] = {"layers": 2, "width": 64, "heads": 4}
TEXT: dict[str, Any] = SMALL | {"tokens": TOKENS, "vocabulary": VOCABULARY}
INNER: dict[str, Any] = TEXT | {"inner_width": 96}
LLAMA: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": VOCABULARY,
}  # fmt: skip
BERT: dict[str, Any] = LLAMA | {"max_position_embeddings": 32}
T5: dict[str, Any] = {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_kv": 16, "d_ff": 96, "vocab_size": VOCABULARY}
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel", {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 32}, "gpt",
        TEXT | {"positions": 32},
    ),
    "mpt": (
        "MptForCausalLM", {"n_layers": 2, "d_model": 64, "n_heads": 4, "vocab_size": VOCABULARY, "max_seq_len": TOKENS}, "mpt", TEXT,
    ),
    "llama": ("LlamaForCausalLM", LLAMA, "llama", INNER),
    "llama, grouped heads": ("LlamaForCausalLM", LLAMA | {"num_key_value_heads": 2}, "llama", INNER | {"key_value_heads": 2}),
    "llama, wide heads": ("LlamaForCausalLM", LLAMA | {"head_dim": 24}, "llama", INNER | {"head_width": 24}),
    "mixtral": (
        "MixtralForCausalLM", LLAMA | {"num_key_value_heads": 2, "num_local_experts": 6, "num_experts_per_tok": 3}, "mixture_of_experts",
        INNER | {"key_value_heads": 2, "experts": 6, "active_experts": 3},
    ),
    "bert, classifier": ("BertForSequenceClassification", BERT, "bert", INNER | {"positions": 32}),
    "bert, masked language": ("BertForMaskedLM", BERT, "bert", INNER | {"positions": 32, "head": "mlm"}),
    "t5": ("T5ForConditionalGeneration", T5, "t5", INNER),
    "t5, gated": (  # transformers 5 ties every T5 head
        "T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 3}, "t5",
        INNER | {"gated": True, "decoder_layers": 3},
    ),
    "vit": (
        "ViTForImageClassification",
        {
            "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 32,
            "patch_size": 8, "num_labels": 7,
        },
        "vit", SMALL | {"inner_width": 96, "image_size": 32, "patch_size": 8, "classes": 7},
    ),
}  # fmt: skip


def traced(architecture: str, config: dict[str, Any], training: bool) -> TaskGraph:
    """torch.export's graph of a Hugging Face model."""
    pytest.importorskip("transformers")
    from chinchilla_sim.models.huggingface import build

    return trace_job(build(architecture, config, tokens=TOKENS), BATCH, training, architecture)


def sizes(graph: TaskGraph) -> dict[str, int]:
    """Values of each parameter by its name in the model."""
    return {name.removeprefix("inner."): weight.value_count for name, weight in graph.weights.items() if not weight.buffer}


@pytest.mark.parametrize("name", PRESETS)
def test_published_parameter_counts(name: str) -> None:
    """A preset has exactly the published parameters; where only a rounded count is published, within half a percent."""
    preset = PRESETS[name]
    count = FORMULAS[preset.formula](batch_size=1, **preset.options).parameter_count
    assert count == (preset.parameter_count if preset.exact else pytest.approx(preset.parameter_count, rel=5e-3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_formula_equals_trace(case: str, training: bool) -> None:
    """Every parameter by name, and the flop of both passes, are those of the traced model."""
    architecture, config, formula, options = CASES[case]
    trace, graph = traced(architecture, config, training), FORMULAS[formula](batch_size=BATCH, training=training, **options)
    assert sizes(graph) == sizes(trace)
    assert graph.forward_flop == pytest.approx(trace.forward_flop, rel=1e-12)
    assert graph.backward_flop == pytest.approx(trace.backward_flop, rel=1e-12)


def kept_bytes(graph: TaskGraph) -> float:
    """Bytes that the forward pass leaves for the backward pass."""
    kept = {name for task in graph.tasks for name in task.saved}
    return sum(task.saved_bytes + (task.output_bytes if task.name in kept else 0.0) for task in graph.tasks)


def moved_bytes(graph: TaskGraph) -> float:
    """Bytes that both passes read and write."""
    return sum(t.read_bytes + t.written_bytes + t.backward_read_bytes + t.backward_written_bytes for t in graph.tasks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "least"), [("bert, classifier", 0.95), ("vit", 0.9), ("llama", 0.6), ("gpt2", 0.4)])
def test_bytes_are_those_of_fused_kernels(case: str, least: float) -> None:
    """Fused kernels move and keep no more than the traced operators, and the same where the model has fused ones already."""
    architecture, config, formula, options = CASES[case]
    trace, graph = traced(architecture, config, True), FORMULAS[formula](batch_size=BATCH, **options)
    assert least < moved_bytes(graph) / moved_bytes(trace) < 1.01
    assert least < kept_bytes(graph) / kept_bytes(trace) < 1.01


class RelativeAttention(nn.Module):
    """Attention of Transformer-XL, after the equations of Dai 2019 (section 3.3)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.make, self.place, self.out = nn.Linear(width, 3 * width, False), nn.Linear(width, width, False), nn.Linear(width, width, False)
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """(batch, tokens, width) with (batch, memory, width) before it."""
        batch, tokens, width = x.shape
        query, key, value = self.make(torch.cat([memory, x], 1)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in (query[:, -tokens:], key, value))
        place = self.place(positions).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("bind,bjnd->bnij", query + u, key) + torch.einsum("bind,jnd->bnij", query + v, place)
        mixed = torch.einsum("bnij,bjnd->bind", scores.softmax(-1), value).reshape(batch, tokens, width)
        x = self.norm(x + self.out(mixed))
        result: Tensor = self.norm2(x + self.inner(x))
        return result


class RelativeTransformer(nn.Module):
    """Transformer-XL with its memory as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(VOCABULARY, 64), nn.ModuleList(RelativeAttention(64, 4, 96) for _ in range(2))
        self.u, self.v = nn.Parameter(torch.zeros(4, 16)), nn.Parameter(torch.zeros(4, 16))
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, ids: Tensor, *memories: Tensor) -> Tensor:
        """(batch, tokens) -> (batch, tokens, vocabulary)."""
        x, positions = self.embed(ids), torch.zeros(memories[0].shape[1] + ids.shape[1], 64, device=ids.device)
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, memory, positions, self.u, self.v)
        return nn.functional.linear(x, self.embed.weight, self.bias)


def test_transformer_xl_equals_trace() -> None:
    """Memory lengthens keys and values, and its hidden states take no gradient."""
    memories = tuple(torch.zeros(BATCH, 24, 64) for _ in range(2))
    inputs = (torch.zeros(BATCH, TOKENS, dtype=torch.int64), *memories)
    trace = trace_job(SimpleNamespace(model=RelativeTransformer, example_batch=lambda size: (inputs, None)), BATCH, True, "xl")
    graph = transformer_xl(batch_size=BATCH, memory=24, **INNER)
    assert graph.parameter_count == trace.parameter_count
    assert (graph.forward_flop, graph.backward_flop) == (trace.forward_flop, trace.backward_flop)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 32), st.integers(1, 64), st.integers(1, 99), st.integers(1, 4))
def test_flop_of_gpt(layers: int, heads: int, head_width: int, tokens: int, vocabulary: int, batch: int) -> None:
    """Forward is 24 b s l h^2 (1 + s / 6h) + 2 b s h V (Narayanan 2021, appendix); backward is twice that."""
    h = heads * head_width
    graph = gpt(batch_size=batch, layers=layers, width=h, heads=heads, tokens=tokens, vocabulary=vocabulary)
    forward = 24 * batch * tokens * layers * h * h + 4 * batch * tokens * tokens * layers * h + 2 * batch * tokens * h * vocabulary
    assert graph.forward_flop == forward
    assert graph.backward_flop == 2 * forward


@given(st.integers(1, 8), st.integers(1, 8))
def test_flop_of_experts(active: int, more: int) -> None:
    """Flop follow the active experts, parameters all of them; the router alone depends on both."""
    one, other = (mixture_of_experts(batch_size=BATCH, experts=n, active_experts=active, **INNER) for n in (active, active + more))
    rows, layers, width, inner = BATCH * TOKENS, 2, 64, 96
    assert other.forward_flop - one.forward_flop == layers * 2 * rows * width * more
    assert other.parameter_count - one.parameter_count == layers * more * (3 * width * inner + width)
    products = sum(task.forward_flop for task in one.tasks if task.op == "_grouped_mm")
    assert products == layers * 2 * rows * active * 3 * width * inner


def test_dense_mixture_is_llama_with_a_router() -> None:
    """One expert costs what SwiGLU costs, and its router 2 b s h."""
    dense, mixture = llama(batch_size=BATCH, **INNER), mixture_of_experts(batch_size=BATCH, experts=1, active_experts=1, **INNER)
    assert mixture.forward_flop - dense.forward_flop == 2 * 2 * BATCH * TOKENS * 64
    assert mixture.parameter_count - dense.parameter_count == 2 * 64


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].parameter_count < 1e9 and "xl" not in name])
def test_batch_scales_flop_and_not_weights(name: str) -> None:
    """Four times the batch: four times the flop, the same weights and tasks."""
    formula, options = FORMULAS[PRESETS[name].formula], PRESETS[name].options
    one, four = formula(batch_size=1, **options), formula(batch_size=4, **options)
    assert (four.forward_flop, four.backward_flop) == (4 * one.forward_flop, 4 * one.backward_flop)
    assert four.weights == one.weights and len(four.tasks) == len(one.tasks)


def test_relative_positions_are_projected_once_per_batch() -> None:
    """In Transformer-XL all flop grow with the batch but r_net's: 2 (tokens + memory) h^2 per layer, for its weight only in backward."""
    one, four = (transformer_xl(batch_size=size, memory=24, **INNER) for size in (1, 4))
    once = 2 * 2 * (TOKENS + 24) * 64 * 64
    assert (four.forward_flop, four.backward_flop) == (4 * one.forward_flop - 3 * once, 4 * one.backward_flop - 3 * once)


@pytest.mark.parametrize("name", PRESETS)
def test_half_precision_halves_weights(name: str) -> None:
    """`value_bytes` is the size of a parameter and of an activation."""
    preset = PRESETS[name]
    graph = FORMULAS[preset.formula](batch_size=1, training=False, value_bytes=2.0, **preset.options)
    assert graph.total_parameter_bytes == 2 * graph.parameter_count
    assert TaskGraph.from_dict(graph.to_dict()) == graph


def test_dropout_only_while_training() -> None:
    """Applying a model drops nothing and has no loss; dropout 0 has no task either."""
    ops = [{task.op for task in gpt(batch_size=1, **TEXT, **more).tasks} for more in ({}, {"training": False}, {"dropout": 0.0})]
    assert ["dropout" in found for found in ops] == [True, False, False]
    assert ["loss" in found for found in ops] == [True, False, True]


def test_tied_head_is_one_weight() -> None:
    """An own head adds vocabulary x width parameters and no flop."""
    for formula, options in ((gpt, TEXT), (llama, INNER), (t5, INNER)):
        tied, own = (formula(batch_size=1, tied_head=choice, **options) for choice in (True, False))
        assert own.parameter_count - tied.parameter_count == VOCABULARY * 64
        assert own.forward_flop == tied.forward_flop


@pytest.mark.parametrize(
    ("formula", "options", "expected"),
    [
        ("gpt", {"layers": 0, "width": 64.5, "head": 3}, ["head", "layers", "width", "heads"]),
        ("gpt", {"layers": 1, "width": 65, "heads": 4, "tokens": 9, "positions": 8}, ["width", "tokens"]),
        ("llama", {"layers": 1, "width": 64, "heads": 4, "key_value_heads": 3, "inner_width": True}, ["inner_width"]),
        ("llama", {"layers": 1, "width": 66, "heads": 4, "key_value_heads": 3, "inner_width": 1}, ["width", "heads"]),
        ("mixture_of_experts", INNER | {"experts": 2, "active_experts": 3}, ["active_experts"]),
        ("bert", TEXT | {"head": "tail", "dropout": 1.0}, ["head", "dropout"]),
        ("vit", SMALL | {"image_size": 30}, ["image_size"]),
        ("resnet", {"depth": 49, "classes": "many"}, ["depth", "classes"]),
        ("inception_v3", {"image_size": 32, "auxiliary": 1}, ["auxiliary"]),
        ("alexnet", {"image_size": 32}, ["image_size"]),
    ],
)
def test_all_mistakes_at_once(formula: str, options: dict[str, Any], expected: list[str]) -> None:
    """Unknown, missing, non-positive, mistyped and ill-matched options are all named."""
    with pytest.raises(ScenarioError) as raised:
        FORMULAS[formula](batch_size=1, **options)
    assert [mistake.where for mistake in raised.value.mistakes] == [f"model.options.{key}" for key in expected]
    assert all(mistake.cure or "must be" in mistake.what for mistake in raised.value.mistakes)


def test_batch_size_is_checked() -> None:
    """A batch has at least one sample."""
    with pytest.raises(ScenarioError, match="batch_size: must be at least 1, not 0"):
        gpt(batch_size=0, **TEXT)


@pytest.mark.filterwarnings("ignore")
def test_formula_is_faster_than_trace() -> None:
    """A formula takes less than a tenth of what tracing the same model takes, and its time grows no faster than its layers."""

    def best_s(build: Any, repeats: int) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            build()
            times.append(time.perf_counter() - start)
        return min(times)

    architecture, config, _, options = CASES["llama"]
    small_s = best_s(lambda: llama(batch_size=BATCH, **options), 5)
    assert 10 * small_s < best_s(lambda: traced(architecture, config, True), 1)
    deep_s = best_s(lambda: llama(batch_size=BATCH, **options | {"layers": 64}), 5)
    assert deep_s < 3 * 32 * small_s
