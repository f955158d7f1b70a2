"""Building blocks of Transformers (Vaswani et al. 2017), shared by gpt, bert and translation.

Tensors are (batch, tokens, width). Parameters of one block of width w and inner width i, biases included:

    attention       4 (w^2 + w)      query, key, value and output
    feed forward    2 w i + i + w
    norm            2 w
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """Several heads of attention, from `x` to itself or to `memory`."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """(n, t, w) from (n, t, w) and (n, s, w); `mask` is True where attention may look, shape (n, 1, 1, s)."""
        source = x if memory is None else memory
        query, key, value = self._heads(self.query(x)), self._heads(self.key(source)), self._heads(self.value(source))
        dropout = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with an activation between them, for each token alone."""

    def __init__(self, width: int, inner_width: int, activation: nn.Module) -> None:
        super().__init__(nn.Linear(width, inner_width), activation, nn.Linear(inner_width, width))


class PreNormBlock(nn.Module):
    """Causal attention and feed forward, each normalized before (GPT-2)."""

    def __init__(self, width: int, heads: int, inner_width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, inner_width, nn.GELU(approximate="tanh"))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, w) -> (n, t, w)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), causal=True))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]


class PostNormBlock(nn.Module):
    """Attention and feed forward, each normalized behind its residual (Transformer encoder, BERT)."""

    def __init__(self, width: int, heads: int, inner_width: int, dropout: float, activation: nn.Module, attention_dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, inner_width, activation)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, t, w) -> (n, t, w); `mask` (n, 1, 1, t) is True where attention may look."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """Causal attention, attention to the encoder's output, feed forward, each normalized behind its residual."""

    def __init__(self, width: int, heads: int, inner_width: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.cross_attention = Attention(width, heads), Attention(width, heads)
        self.feed_forward = FeedForward(width, inner_width, nn.ReLU())
        self.attention_norm, self.cross_norm, self.feed_forward_norm = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """(n, t, w), encoded (n, s, w), and where of the encoded it may look (n, 1, 1, s) -> (n, t, w)."""
        x = self.attention_norm(x + self.dropout(self.attention(x, causal=True)))
        x = self.cross_norm(x + self.dropout(self.cross_attention(x, memory, memory_mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # type: ignore[no-any-return]


def positions_of(ids: Tensor) -> Tensor:
    """0, 1, ... for the tokens of (n, t) ids, on their device, whatever the device of the model was when it was made."""
    return torch.arange(ids.shape[1], device=ids.device)


def draw_normal(model: nn.Module, deviation: float) -> None:
    """Linear and embedding weights from a normal distribution, biases 0: how GPT-2 and BERT begin."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
