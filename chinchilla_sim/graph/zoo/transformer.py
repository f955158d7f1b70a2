"""Transformers from their shape parameters; parameters are named as Hugging Face transformers names them.

    gpt                 learned positions, biases everywhere, head tied to the embedding (Radford 2019)
    mpt                 ALiBi instead of positions, no biases (MosaicML 2023)
    llama               RMSNorm, rotary positions, grouped key-value heads, SwiGLU, own head (Touvron 2023)
    mixture_of_experts  llama with a router and `experts` SwiGLU networks, of which each token runs `active_experts` (Jiang 2024)
    bert                encoder, norm behind each sum, with a classifier, pooler or masked-language head (Devlin 2019)
    t5                  encoder and decoder, relative position bias of the first layer, no biases (Raffel 2020)
    transformer_xl      decoder that also attends to the previous segment's hidden states (Dai 2019)
    vit                 encoder of image patches (Dosovitskiy 2021)

Each takes `batch_size` and the fields of its dataclass by keyword. Flop and parameters are those of a traced model;
bytes are those of fused kernels: attention, GELU, RMSNorm and a rotation by position are one task each, which reads and
writes its tensor once, and masks are not stored. Eager code that spells them out moves two to four times as much (the
graph's notes say so). Dropout is absent when the model is applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.layers import INDEX_BYTES, Layers
from chinchilla_sim.graph.zoo.options import divisibility, mistake, shape_of

FUSED = "{} count as one kernel each: code that spells them out in elementwise operators moves and keeps more bytes"
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
    net.builder.notes.append(FUSED.format("attention and GELU"))
    tokens, width, table = shape.tokens, shape.width, "transformer.wte"
    x = net.embedding(_ids(net, tokens), table, shape.vocabulary, width)
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


def mpt(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """MPT, with the fields of `MptShape` as options.

    >>> mpt(batch_size=1, layers=32, width=4096, heads=32).parameter_count
    6649286656
    """
    shape = shape_of(MptShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    net.builder.notes.append(FUSED.format("attention and GELU"))
    width, table = shape.width, "transformer.wte"
    x = net.embedding(_ids(net, shape.tokens), table, shape.vocabulary, width)
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
    net.builder.notes.append(FUSED.format("attention, RMSNorm and rotary positions"))
    x = net.embedding(_ids(net, shape.tokens), table, shape.vocabulary, width)
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


def bert(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """BERT, with the fields of `BertShape` as options.

    >>> bert(batch_size=1, layers=12, width=768, heads=12, head="pooler").parameter_count
    109482240
    """
    shape = shape_of(BertShape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    tokens, width, here = shape.tokens, shape.width, "bert.embeddings"
    x = net.embedding(_ids(net, tokens), f"{here}.word_embeddings", shape.vocabulary, width)
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


def t5(*, batch_size: int, training: bool = True, value_bytes: float = 4.0, **options: Any) -> TaskGraph:
    """T5, with the fields of `T5Shape` as options.

    >>> t5(batch_size=1, layers=12, width=768, heads=12, inner_width=3072).parameter_count
    222903552
    """
    shape = shape_of(T5Shape, options, batch_size)
    net = Layers(batch_size, training, value_bytes)
    net.builder.notes.append(FUSED.format("attention and RMSNorm"))
    x = net.embedding(_ids(net, shape.tokens), "shared", shape.vocabulary, shape.width)
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
    x = net.embedding(_ids(net, tokens), table, shape.vocabulary, width)
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


def _ids(net: Layers, tokens: int) -> str:
    """The model's input: one index per token."""
    return net.builder.input("ids", (net.batch_size, tokens), INDEX_BYTES)
