"""Transformers that rotate queries and keys by their position.

    llama               RMSNorm, rotary positions, grouped key-value heads, SwiGLU, own head (Touvron 2023)
    mixture_of_experts  llama with a router and `experts` SwiGLU networks, of which each token runs `active_experts` (Jiang 2024)

What their fields, names and bytes mean is said once, in `chinchilla_sim.graph.zoo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.layers import INDEX_BYTES, Layers
from chinchilla_sim.graph.zoo.options import shape_of
from chinchilla_sim.options import divisibility, mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Each of `key_value_heads` (all heads unless given) serves `heads / key_value_heads` query heads.

    `head_width` is width / heads unless given.
    """

    layers: int
    width: int
    heads: int
    inner_width: int
    key_value_heads: int | None = None
    head_width: int | None = None
    tokens: int = 4096
    vocabulary: int = 32000
    tied_head: bool = False

    def mistakes(self) -> list[Mistake]:
        """Heads share the width unless their own width is given; query heads share key-value heads."""
        shared = divisibility(self, "heads", "key_value_heads") if self.key_value_heads else []
        return ([] if self.head_width else divisibility(self, "width", "heads")) + shared


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureShape(LlamaShape):
    """LlamaShape whose inner network is `active_experts` of `experts`, chosen per token."""

    experts: int = 8
    active_experts: int = 2

    def mistakes(self) -> list[Mistake]:
        """No more experts are active than there are."""
        found = LlamaShape.mistakes(self)
        if self.active_experts > self.experts:
            found.append(mistake("active_experts", f"{self.active_experts} of {self.experts} experts", f"write at most {self.experts}"))
        return found


def llama(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """Llama 1 to 3, Mistral and their kin, with the fields of `LlamaShape` as options.

    >>> llama(batch_size=1, layers=32, width=4096, heads=32, inner_width=11008).parameter_count
    6738415616
    """
    return _llama_like(shape_of(LlamaShape, options, batch_size), Layers(batch_size, training, value_bytes), "llama")


def mixture_of_experts(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """Mixtral: llama whose inner networks are experts, with the fields of `MixtureShape` as options.

    All experts' weights are held and read; flop are those of `active_experts` rows per token.
    """
    shape = shape_of(MixtureShape, options, batch_size)
    return _llama_like(shape, Layers(batch_size, training, value_bytes), "mixture_of_experts")


def _llama_like(shape: LlamaShape, net: Layers, formula: str) -> TaskGraph:
    width, table = shape.width, "model.embed_tokens"
    net.note_fused("attention, RMSNorm and rotary positions")
    x = net.embedding(net.ids(shape.tokens), table, shape.vocabulary, width)
    angles = net.apply("rotary_angles", (), (1, 1, shape.tokens, shape.head_width or width // shape.heads), "model.rotary_emb")
    for layer in range(shape.layers):
        path = f"model.layers.{layer}"
        x = net.join("add", x, _rotary_attention(net, x, angles, shape, path, layer), path)
        y = net.rms_norm(x, f"{path}.post_attention_layernorm")
        inner = _experts(net, y, shape, f"{path}.mlp") if isinstance(shape, MixtureShape) else _swiglu(net, y, shape, f"{path}.mlp")
        x = net.join("add", x, inner, path)
    x = net.rms_norm(x, "model.norm")
    x = net.linear(x, "lm_head", shape.vocabulary, bias=False, weight=f"{table}.weight" if shape.tied_head else "")
    return net.finish(x, formula, f"{formula}-{shape.layers}x{width}")


def _rotary_attention(net: Layers, x: str, angles: str, shape: LlamaShape, path: str, layer: int) -> str:
    heads, groups = shape.heads, shape.key_value_heads or shape.heads
    head_width, here = shape.head_width or shape.width // heads, f"{path}.self_attn"
    y = net.rms_norm(x, f"{path}.input_layernorm")
    query, key, value = (
        net.heads(net.linear(y, f"{here}.{name}_proj", count * head_width, bias=False), count, here)
        for name, count in (("q", heads), ("k", groups), ("v", groups))
    )
    # A rotation keeps nothing but its angles, as a product with them does.
    query = net.apply("mul", (query, angles), net.shape(query), here, name=f"rotary_query_{layer}")
    key = net.apply("mul", (key, angles), net.shape(key), here, name=f"rotary_key_{layer}")
    if groups != heads:
        repeated = (net.batch_size, heads, shape.tokens, head_width)
        times = {"repeats": heads // groups, "dim": 1}
        key, value = (net.apply("repeat_interleave", (part,), repeated, here, attributes=times) for part in (key, value))
    return net.linear(net.attention(query, key, value, here), f"{here}.o_proj", shape.width, bias=False)


def _swiglu(net: Layers, x: str, shape: LlamaShape, path: str) -> str:
    gate = net.same("silu", net.linear(x, f"{path}.gate_proj", shape.inner_width, bias=False), f"{path}.act_fn")
    up = net.linear(x, f"{path}.up_proj", shape.inner_width, bias=False)
    return net.linear(net.join("mul", gate, up, path), f"{path}.down_proj", shape.width, bias=False)


def _experts(net: Layers, x: str, shape: MixtureShape, path: str) -> str:
    """Rows of all tokens sorted by expert, two grouped products with SwiGLU between them, and the weighted sum per token."""
    batch, tokens, width = net.shape(x)
    count, active, inner, here = batch * tokens, shape.active_experts, shape.inner_width, f"{path}.experts"
    rows = count * active
    x = net.view(x, (count, width), path)
    scores = net.same("softmax", net.linear(x, f"{path}.gate", shape.experts, bias=False), f"{path}.gate")
    best = net.builder.apply(
        "topk", (scores,), ((count, active), (count, active)), output_bytes=rows * (net.value_bytes + INDEX_BYTES), module=f"{path}.gate"
    )
    share = net.apply("getitem", (best,), (count, active), f"{path}.gate", view=True, attributes={"index": 0})
    chosen = net.apply("getitem", (best,), (count, active), f"{path}.gate", view=True, attributes={"index": 1}, floating=False)
    chosen = net.view(chosen, (rows,), f"{path}.gate")
    total = net.apply("sum", (share,), (count, 1), f"{path}.gate", attributes={"dim": (1,), "keepdim": True})
    share = net.join("div", share, total, f"{path}.gate")
    order = net.apply("sort", (chosen,), (rows,), here, output_bytes=rows * INDEX_BYTES, floating=False, value_bytes=INDEX_BYTES)
    y = net.apply("index", (x, order), (rows, width), here)
    both = net.transpose(net.weight(f"{here}.gate_up_proj", shape.experts, 2 * inner, width), 1, 2, here)
    y = net.apply("_grouped_mm", (y, both), (rows, 2 * inner), here)
    gate, up = net.parts(y, 2, here)
    y = net.join("mul", net.same("silu", gate, f"{here}.act_fn"), up, here)
    down = net.transpose(net.weight(f"{here}.down_proj", shape.experts, width, inner), 1, 2, here)
    y = net.apply("_grouped_mm", (y, down), (rows, width), here)
    y = net.join("mul", y, net.apply("index", (share, order), (rows, 1), here), here)
    y = net.view(net.apply("index", (y, order), (rows, width), here), (count, active, width), here)
    return net.view(net.apply("sum", (y,), (count, width), here, attributes={"dim": (1,)}), (batch, tokens, width), path)
