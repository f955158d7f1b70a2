"""Transformers whose scores depend on the distance of two positions.

    mpt             ALiBi instead of positions, no biases (MosaicML 2023)
    t5              encoder and decoder, relative position bias of the first layer, no biases (Raffel 2020)
    transformer_xl  decoder that also attends to the previous segment's hidden states (Dai 2019)

What their fields, names and bytes mean is said once, in `chinchilla_sim.graph.zoo`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.layers import INDEX_BYTES, Layers
from chinchilla_sim.graph.zoo.options import shape_of
from chinchilla_sim.options import divisibility


@dataclass(frozen=True, slots=True, kw_only=True)
class MptShape:
    """`inner_width` is 4 width unless given."""

    layers: int
    width: int
    heads: int
    tokens: int = 2048
    vocabulary: int = 50432
    inner_width: int | None = None

    def mistakes(self) -> list[Mistake]:
        """Heads share the width."""
        return divisibility(self, "width", "heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Shape:
    """`layers` each of encoder and decoder (`decoder_layers` where they differ); `head_width` is width / heads unless given.

    `gated` is version 1.1: GELU-gated inner networks; its head is not tied.
    """

    layers: int
    width: int
    heads: int
    inner_width: int
    head_width: int | None = None
    decoder_layers: int | None = None
    tokens: int = 512
    decoder_tokens: int | None = None
    vocabulary: int = 32128
    buckets: int = 32
    gated: bool = False
    tied_head: bool = True
    dropout: float = 0.1

    def mistakes(self) -> list[Mistake]:
        """Heads share the width unless their own width is given."""
        return [] if self.head_width else divisibility(self, "width", "heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerXlShape:
    """`memory` hidden states of the previous segment stand before the `tokens` of this one, in every layer."""

    layers: int
    width: int
    heads: int
    inner_width: int
    head_width: int | None = None
    tokens: int = 512
    memory: int = field(default=512, metadata={"minimum": 0})
    vocabulary: int = 204
    tied_head: bool = True
    dropout: float = 0.1

    def mistakes(self) -> list[Mistake]:
        """Heads share the width unless their own width is given."""
        return [] if self.head_width else divisibility(self, "width", "heads")


def mpt(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """MPT, with the fields of `MptShape` as options.

    >>> mpt(batch_size=1, layers=32, width=4096, heads=32).parameter_count
    6649286656
    """
    shape = shape_of(MptShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    net.note_fused("attention and GELU")
    width, table = shape.width, "transformer.wte"
    x = net.embedding(net.ids(shape.tokens), table, shape.vocabulary, width)
    slopes = net.apply("alibi", (), (1, shape.heads, 1, shape.tokens), "transformer")
    for layer in range(shape.layers):
        path = f"transformer.blocks.{layer}"
        y = net.linear(net.layer_norm(x, f"{path}.norm_1", bias=False), f"{path}.attn.Wqkv", 3 * width, bias=False)
        query, key, value = (net.heads(part, shape.heads, f"{path}.attn") for part in net.parts(y, 3, f"{path}.attn"))
        y = net.linear(net.attention(query, key, value, f"{path}.attn", slopes), f"{path}.attn.out_proj", width, bias=False)
        x = net.join("add", x, y, path)
        y = net.layer_norm(x, f"{path}.norm_2", bias=False)
        y = net.linear(y, f"{path}.ffn.up_proj", shape.inner_width or 4 * width, bias=False)
        y = net.linear(net.same("gelu", y, f"{path}.ffn.act"), f"{path}.ffn.down_proj", width, bias=False)
        x = net.join("add", x, y, path)
    x = net.layer_norm(x, "transformer.norm_f", bias=False)
    return net.finish(net.linear(x, "lm_head", shape.vocabulary, False, f"{table}.weight"), "mpt", f"mpt-{shape.layers}x{width}")


def t5(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """T5, with the fields of `T5Shape` as options.

    >>> t5(batch_size=1, layers=12, width=768, heads=12, inner_width=3072).parameter_count
    222903552
    """
    shape = shape_of(T5Shape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    net.note_fused("attention and RMSNorm")
    x = net.embedding(net.ids(shape.tokens), "shared", shape.vocabulary, shape.width)
    target = net.builder.input("decoder_ids", (batch_size, shape.decoder_tokens or shape.tokens), INDEX_BYTES)
    encoded = _t5_stack(net, x, shape, "encoder", "")
    x = _t5_stack(net, net.embedding(target, "shared", shape.vocabulary, shape.width), shape, "decoder", encoded)
    if shape.tied_head:
        x = net.same("mul", x, "")
    x = net.linear(x, "lm_head", shape.vocabulary, bias=False, weight="shared.weight" if shape.tied_head else "")
    return net.finish(x, "t5", f"t5-{shape.layers}x{shape.width}")


def _t5_stack(net: Layers, x: str, shape: T5Shape, side: str, encoded: str) -> str:
    x = net.dropout(x, shape.dropout, side)
    tokens, heads = net.shape(x)[1], shape.heads
    path = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
    bias = net.embedding(net.indices("relative_buckets", (tokens, tokens), path), path, shape.buckets, heads)
    bias = net.view(bias, (heads, tokens, tokens), path, "permute", {"dims": (2, 0, 1)})
    bias = net.view(bias, (1, heads, tokens, tokens), path, "unsqueeze", {"dim": 0})
    bias = net.apply("add", (bias,), (net.batch_size, heads, tokens, tokens), path)
    for layer in range((encoded and shape.decoder_layers) or shape.layers):
        path = f"{side}.block.{layer}.layer"
        y = net.rms_norm(x, f"{path}.0.layer_norm")
        y = _t5_attention(net, y, y, shape, f"{path}.0.SelfAttention", bias)
        x = net.join("add", x, net.dropout(y, shape.dropout, f"{path}.0"), f"{path}.0")
        if encoded:
            y = _t5_attention(net, net.rms_norm(x, f"{path}.1.layer_norm"), encoded, shape, f"{path}.1.EncDecAttention")
            x = net.join("add", x, net.dropout(y, shape.dropout, f"{path}.1"), f"{path}.1")
        path = f"{path}.{2 if encoded else 1}"
        y = _t5_inner(net, net.rms_norm(x, f"{path}.layer_norm"), shape, f"{path}.DenseReluDense")
        x = net.join("add", x, net.dropout(y, shape.dropout, path), path)
    return net.dropout(net.rms_norm(x, f"{side}.final_layer_norm"), shape.dropout, side)


def _t5_attention(net: Layers, x: str, source: str, shape: T5Shape, path: str, bias: str = "") -> str:
    width = shape.heads * (shape.head_width or shape.width // shape.heads)
    query, key, value = (
        net.heads(net.linear(y, f"{path}.{name}", width, bias=False), shape.heads, path)
        for name, y in (("q", x), ("k", source), ("v", source))
    )
    return net.linear(net.attention(query, key, value, path, bias), f"{path}.o", shape.width, bias=False)


def _t5_inner(net: Layers, x: str, shape: T5Shape, path: str) -> str:
    if shape.gated:
        gate = net.same("gelu", net.linear(x, f"{path}.wi_0", shape.inner_width, bias=False), path)
        y = net.join("mul", gate, net.linear(x, f"{path}.wi_1", shape.inner_width, bias=False), path)
    else:
        y = net.same("relu", net.linear(x, f"{path}.wi", shape.inner_width, bias=False), path)
    return net.linear(net.dropout(y, shape.dropout, path), f"{path}.wo", shape.width, bias=False)


def transformer_xl(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """Transformer-XL as its authors' code computes it, with the fields of `TransformerXlShape` as options.

    Queries, keys and values are made for memory and tokens alike (the queries of the memory are thrown away). Scores are
    q (k + r) with biases u and v shared by all layers; the softmax is not adaptive.
    """
    shape = shape_of(TransformerXlShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    width, tokens, table = shape.width, shape.tokens, "word_emb"
    x = net.embedding(net.ids(tokens), table, shape.vocabulary, width)
    memories = [net.builder.input(f"memory_{i}", (batch_size, shape.memory, width)) for i in range(shape.layers if shape.memory else 0)]
    positions = net.apply("sinusoids", (), (tokens + shape.memory, width), "pos_emb")
    x, positions = net.dropout(x, shape.dropout, "drop"), net.dropout(positions, shape.dropout, "drop")
    for layer in range(shape.layers):
        path = f"layers.{layer}"
        y = _xl_attention(net, x, memories[layer] if memories else "", positions, shape, f"{path}.dec_attn")
        x = net.layer_norm(net.join("add", x, net.dropout(y, shape.dropout, path), path), f"{path}.dec_attn.layer_norm")
        y = net.same("relu", net.linear(x, f"{path}.pos_ff.CoreNet.0", shape.inner_width), f"{path}.pos_ff")
        y = net.linear(net.dropout(y, shape.dropout, path), f"{path}.pos_ff.CoreNet.3", width)
        x = net.layer_norm(net.join("add", x, net.dropout(y, shape.dropout, path), path), f"{path}.pos_ff.layer_norm")
    x = net.dropout(x, shape.dropout, "drop")
    x = net.linear(x, "crit.out_layers.0", shape.vocabulary, weight=f"{table}.weight" if shape.tied_head else "")
    return net.finish(x, "transformer_xl", f"transformer-xl-{shape.layers}x{width}")


def _xl_attention(net: Layers, x: str, memory: str, positions: str, shape: TransformerXlShape, path: str) -> str:
    batch, heads, tokens, keys = net.batch_size, shape.heads, shape.tokens, shape.tokens + shape.memory
    head_width = shape.head_width or shape.width // heads
    source = net.apply("cat", (memory, x), (batch, keys, shape.width), path, attributes={"dim": 1}) if memory else x
    made = net.parts(net.linear(source, f"{path}.qkv_net", 3 * heads * head_width, bias=False), 3, path)
    query = net.view(made[0], (batch, tokens, heads, head_width), path)
    key, value = (net.view(part, (batch, keys, heads, head_width), path) for part in made[1:])
    relative = net.view(net.linear(positions, f"{path}.r_net", heads * head_width, bias=False), (keys, heads, head_width), path)
    scores_shape = (batch, heads, tokens, keys)
    content = net.join("add", query, net.weight("r_w_bias", heads, head_width), path)
    content = net.apply("einsum", (content, key), scores_shape, path, attributes={"equation": "bind,bjnd->bnij"})
    place = net.join("add", query, net.weight("r_r_bias", heads, head_width), path)
    place = net.apply("einsum", (place, relative), scores_shape, path, attributes={"equation": "bind,jnd->bnij"})
    scores = net.join("add", content, net.same("pad", place, path), path)
    scores = net.same("masked_fill", net.same("mul", scores, path), path)
    scores = net.dropout(net.same("softmax", scores, path), shape.dropout, path)
    mixed = (batch, tokens, heads, head_width)
    y = net.apply("einsum", (scores, value), mixed, path, attributes={"equation": "bnij,bjnd->bind"})
    y = net.view(y, (batch, tokens, heads * head_width), path)
    return net.linear(y, f"{path}.o_net", shape.width, bias=False)
