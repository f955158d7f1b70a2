"""Transformers that add the places of tokens or patches to their input.

    gpt   learned positions, biases everywhere, head tied to the embedding (Radford 2019)
    bert  encoder, norm behind each sum, with a classifier, pooler or masked-language head (Devlin 2019)
    vit   encoder of image patches (Dosovitskiy 2021)

What their fields, names and bytes mean is said once, in `chinchilla_sim.graph.zoo`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.layers import Layers
from chinchilla_sim.graph.zoo.options import shape_of
from chinchilla_sim.options import divisibility, mistake

FIRST_TOKEN = {"dim": 1, "index": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class GptShape:
    """`inner_width` is 4 width unless given; `positions` is `tokens` unless given."""

    layers: int
    width: int
    heads: int
    tokens: int = 1024
    vocabulary: int = 50257
    positions: int | None = None
    inner_width: int | None = None
    tied_head: bool = True
    dropout: float = 0.1

    def mistakes(self) -> list[Mistake]:
        """Heads share the width; there are positions for all tokens."""
        return divisibility(self, "width", "heads") + _position_mistakes(self.tokens, self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    """`head` is classifier (of `classes`), pooler, mlm (masked language model, tied) or none (hidden states)."""

    layers: int
    width: int
    heads: int
    tokens: int = 512
    vocabulary: int = 30522
    positions: int = 512
    inner_width: int | None = None
    token_types: int = 2
    head: str = field(default="classifier", metadata={"choices": ("classifier", "pooler", "mlm", "none")})
    classes: int = 2
    dropout: float = 0.1

    def mistakes(self) -> list[Mistake]:
        """Heads share the width; there are positions for all tokens."""
        return divisibility(self, "width", "heads") + _position_mistakes(self.tokens, self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class VitShape:
    """Images of `image_size` squared in patches of `patch_size` squared, and one class token."""

    layers: int
    width: int
    heads: int
    inner_width: int | None = None
    image_size: int = 224
    patch_size: int = 16
    channels: int = 3
    classes: int = 1000
    dropout: float = 0.0

    def mistakes(self) -> list[Mistake]:
        """Heads share the width, patches tile the image."""
        return divisibility(self, "width", "heads") + divisibility(self, "image_size", "patch_size")


def _position_mistakes(tokens: int, positions: int | None) -> list[Mistake]:
    if positions is None or tokens <= positions:
        return []
    return [mistake("tokens", f"{tokens} are more than positions = {positions}", f"write tokens = {positions}, or more positions")]


def gpt(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """GPT-2 and GPT-3, with the fields of `GptShape` as options.

    >>> gpt(batch_size=1, layers=12, width=768, heads=12).parameter_count
    124439808
    """
    shape = shape_of(GptShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    net.note_fused("attention and GELU")
    tokens, width, table = shape.tokens, shape.width, "transformer.wte"
    x = net.embedding(net.ids(tokens), table, shape.vocabulary, width)
    positions = net.embedding(net.indices("arange", (1, tokens)), "transformer.wpe", shape.positions or tokens, width)
    x = net.dropout(net.join("add", x, positions, "transformer"), shape.dropout, "transformer.drop")
    for layer in range(shape.layers):
        path = f"transformer.h.{layer}"
        y = net.linear(net.layer_norm(x, f"{path}.ln_1"), f"{path}.attn.c_attn", 3 * width)
        query, key, value = (net.heads(part, shape.heads, f"{path}.attn") for part in net.parts(y, 3, f"{path}.attn"))
        y = net.linear(net.attention(query, key, value, f"{path}.attn"), f"{path}.attn.c_proj", width)
        x = net.join("add", x, net.dropout(y, shape.dropout, f"{path}.attn.resid_dropout"), path)
        y = net.linear(net.layer_norm(x, f"{path}.ln_2"), f"{path}.mlp.c_fc", shape.inner_width or 4 * width)
        y = net.linear(net.same("gelu", y, f"{path}.mlp.act"), f"{path}.mlp.c_proj", width)
        x = net.join("add", x, net.dropout(y, shape.dropout, f"{path}.mlp.dropout"), path)
    x = net.layer_norm(x, "transformer.ln_f")
    x = net.linear(x, "lm_head", shape.vocabulary, bias=False, weight=f"{table}.weight" if shape.tied_head else "")
    return net.finish(x, "gpt", f"gpt-{shape.layers}x{width}")


def bert(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """BERT, with the fields of `BertShape` as options.

    >>> bert(batch_size=1, layers=12, width=768, heads=12, head="pooler").parameter_count
    109482240
    """
    shape = shape_of(BertShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    tokens, width, here = shape.tokens, shape.width, "bert.embeddings"
    x = net.embedding(net.ids(tokens), f"{here}.word_embeddings", shape.vocabulary, width)
    kinds = net.embedding(net.indices("zeros", (batch_size, tokens)), f"{here}.token_type_embeddings", shape.token_types, width)
    x = net.join("add", x, kinds, here)
    x = net.join("add", x, net.embedding(net.indices("arange", (1, tokens)), f"{here}.position_embeddings", shape.positions, width), here)
    x = net.dropout(net.layer_norm(x, f"{here}.LayerNorm"), shape.dropout, here)
    for layer in range(shape.layers):
        path = f"bert.encoder.layer.{layer}"
        here = f"{path}.attention.self"
        query, key, value = (net.heads(net.linear(x, f"{here}.{name}", width), shape.heads, here) for name in ("query", "key", "value"))
        y = net.linear(net.attention(query, key, value, here), f"{path}.attention.output.dense", width)
        y = net.join("add", x, net.dropout(y, shape.dropout, path), path)
        x = net.layer_norm(y, f"{path}.attention.output.LayerNorm")
        y = net.same("gelu", net.linear(x, f"{path}.intermediate.dense", shape.inner_width or 4 * width), f"{path}.intermediate")
        y = net.dropout(net.linear(y, f"{path}.output.dense", width), shape.dropout, path)
        x = net.layer_norm(net.join("add", x, y, path), f"{path}.output.LayerNorm")
    return net.finish(_bert_head(net, x, shape), "bert", f"bert-{shape.layers}x{width}")


def _bert_head(net: Layers, x: str, shape: BertShape) -> str:
    if shape.head == "none":
        return x
    if shape.head == "mlm":
        path = "cls.predictions.transform"
        x = net.layer_norm(net.same("gelu", net.linear(x, f"{path}.dense", shape.width), path), f"{path}.LayerNorm")
        return net.linear(x, "cls.predictions", shape.vocabulary, weight="bert.embeddings.word_embeddings.weight")
    first = net.view(x, (net.batch_size, shape.width), "bert.pooler", "select", FIRST_TOKEN)
    x = net.same("tanh", net.linear(first, "bert.pooler.dense", shape.width), "bert.pooler")
    return x if shape.head == "pooler" else net.linear(net.dropout(x, shape.dropout), "classifier", shape.classes)


def vit(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """Vision transformer, with the fields of `VitShape` as options.

    >>> vit(batch_size=1, layers=12, width=768, heads=12).parameter_count
    86567656
    """
    shape = shape_of(VitShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    width, patches, here = shape.width, (shape.image_size // shape.patch_size) ** 2, "vit.embeddings"
    x = net.builder.input("pixels", (batch_size, shape.channels, shape.image_size, shape.image_size))
    x = net.convolution(x, f"{here}.patch_embeddings.projection", width, shape.patch_size, stride=shape.patch_size)
    x = net.transpose(net.view(x, (batch_size, width, patches), here, "flatten"), 1, 2, here)
    token = net.view(net.weight(f"{here}.cls_token", 1, 1, width), (batch_size, 1, width), here, "expand")
    x = net.apply("cat", (token, x), (batch_size, patches + 1, width), here, attributes={"dim": 1})
    x = net.join("add", x, net.weight(f"{here}.position_embeddings", 1, patches + 1, width), here)
    x = net.dropout(x, shape.dropout, here)
    for layer in range(shape.layers):
        path = f"vit.layers.{layer}"
        here = f"{path}.attention"
        y = net.layer_norm(x, f"{path}.layernorm_before")
        query, key, value = (net.heads(net.linear(y, f"{here}.{name}_proj", width), shape.heads, here) for name in "qkv")
        y = net.linear(net.attention(query, key, value, here), f"{here}.o_proj", width)
        x = net.join("add", x, net.dropout(y, shape.dropout, path), path)
        y = net.linear(net.layer_norm(x, f"{path}.layernorm_after"), f"{path}.mlp.fc1", shape.inner_width or 4 * width)
        y = net.linear(net.same("gelu", y, f"{path}.mlp"), f"{path}.mlp.fc2", width)
        x = net.join("add", x, net.dropout(y, shape.dropout, path), path)
    first = net.view(net.layer_norm(x, "vit.layernorm"), (batch_size, width), "vit", "select", FIRST_TOKEN)
    return net.finish(net.linear(first, "classifier", shape.classes), "vit", f"vit-{shape.layers}x{width}")
