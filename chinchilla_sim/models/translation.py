"""Translation: the Transformer, base model of Vaswani et al. 2017 (table 3): 6 + 6 layers, width 512, 8 heads, inner width 2,048.

One embedding of about 37,000 tokens serves source, target and, tied, the head; positions are sines. Parameters of the
defaults: 63,082,496 (the paper rounds to 65 million). Stages that share the tied table sum its gradients once a step;
`tied_head = false` gives source, target and head a matrix each.

Data: numbers from 0 to 999,999 in digits, to be written out in English words ("410007" -> "four hundred ten thousand
seven"); 8,000 drawn to train and 500 others to validate. Needs vocabulary = 41 and tokens = 12.
Preset "small" (one thread):
10 epochs of Adam, batches of 64, 1e-3 falling to 0: every validation number is written without a mistake after 24 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from chinchilla_sim.errors import Mistake
from chinchilla_sim.models.options import Options, read_options
from chinchilla_sim.models.samples import SampleJob, Samples, Splits, draw_split, evaluating, missing_data, predict
from chinchilla_sim.models.transformer import DecoderBlock, PostNormBlock, positions_of
from chinchilla_sim.options import divisibility, mistake

PAD, START, END = 0, 1, 2
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
TOKENS = ("<pad>", "<start>", "<end>", *map(str, range(10)), *ONES, *TENS, "hundred", "thousand")
"""Every token that digits and words need, by its id."""
_LENGTH = 12
_LARGEST = 999_999
_TRAIN_COUNT, _VALIDATION_COUNT = 8_000, 500


@dataclass(frozen=True)
class TransformerOptions(Options):
    """Shape of the network; `layers` are those of the encoder and again of the decoder, `tokens` the length of both sides."""

    layers: int = 6
    width: int = 512
    heads: int = 8
    inner_width: int = 2_048
    tokens: int = 128
    vocabulary: int = 37_000
    tied_head: bool = True
    dropout: float = 0.1

    def mistakes(self) -> list[Mistake]:
        """Heads share the width equally; half of the positions' width are sines, half cosines."""
        odd = [mistake("width", f"{self.width} is odd, but sines and cosines share it", f"write {self.width + 1}")]
        return divisibility(self, "width", "heads") + (odd if self.width % 2 else [])


PRESETS = {
    "base": TransformerOptions(),
    "big": TransformerOptions(width=1_024, heads=16, inner_width=4_096),
    "small": TransformerOptions(
        layers=2, width=64, heads=4, inner_width=128, tokens=_LENGTH, vocabulary=len(TOKENS), tied_head=False, dropout=0.0
    ),
}


class Transformer(nn.Module):
    """Encoder and decoder."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        width, heads, inner, rate = options.width, options.heads, options.inner_width, options.dropout
        self.source = nn.Embedding(options.vocabulary, width)
        self.target = None if options.tied_head else nn.Embedding(options.vocabulary, width)
        self.head = None if options.tied_head else nn.Linear(width, options.vocabulary, bias=False)
        self.dropout = nn.Dropout(rate)
        self.encoder = nn.ModuleList(PostNormBlock(width, heads, inner, rate, nn.ReLU(), 0.0) for _ in range(options.layers))
        self.decoder = nn.ModuleList(DecoderBlock(width, heads, inner, rate) for _ in range(options.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=width**-0.5)

    def forward(self, source: Tensor, shifted: Tensor) -> Tensor:
        """Source (n, s) and targets shifted right (n, t) -> (n, t, vocabulary) logits; id 0 of the source is padding."""
        mask = (source != PAD)[:, None, None, :]
        memory = self._embed(self.source, source)
        for block in self.encoder:
            memory = block(memory, mask)
        x = self._embed(self.source if self.target is None else self.target, shifted)
        for block in self.decoder:
            x = block(x, memory, mask)
        return linear(x, self.source.weight) if self.head is None else self.head(x)

    def _embed(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        x = table(ids) * math.sqrt(table.embedding_dim)
        return self.dropout(x + sines(positions_of(ids), table.embedding_dim).to(x.dtype))  # type: ignore[no-any-return]


def sines(positions: Tensor, width: int) -> Tensor:
    """(t,) -> (t, width): sin(p / 10000^(2i/width)) for i < width / 2, then the cosines (the paper interleaves them)."""
    steps = torch.arange(width // 2, device=positions.device) * (-math.log(10_000) * 2 / width)
    angles = positions[:, None] * steps.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass(frozen=True)
class TranslationJob(SampleJob):
    """A job: network, loss and numbers."""

    options: TransformerOptions

    def model(self) -> nn.Module:
        """A fresh network on torch's default device."""
        return Transformer(self.options)

    def example_batch(self, size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Ones: source, shifted targets and targets, int64 (size, tokens) each."""
        ids = torch.ones(size, self.options.tokens, dtype=torch.int64)
        return (ids, ids), ids

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats of (n, t, vocabulary) against (n, t): the mean over each sample's tokens, then over samples.

        Padding does not count. Samples weigh the same, whatever their length, so equal microbatches average to the batch.
        """
        each = cross_entropy(outputs.transpose(1, 2), targets, ignore_index=PAD, reduction="none")
        return (each.sum(dim=1) / (targets != PAD).sum(dim=1)).mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_token_accuracy with the right words before each given, validation_exact_match of whole numbers written
        word by word by the model itself, validation_loss (nats)."""
        samples = self.splits.validation
        outputs, targets = predict(model, samples)
        counted = targets != PAD
        token_accuracy = float((outputs.argmax(dim=-1) == targets)[counted].double().mean())
        written = write_greedily(model, torch.from_numpy(samples.inputs[0]), self.options.tokens)
        exact = float(((written == targets) | ~counted).all(dim=1).double().mean())
        loss = float(self.loss(outputs, targets))
        return {"validation_token_accuracy": token_accuracy, "validation_exact_match": exact, "validation_loss": loss}

    def load_splits(self) -> Splits:
        """Digits and words as ids, int64 (count, tokens), padded with 0."""
        if (self.options.vocabulary, self.options.tokens) != (len(TOKENS), _LENGTH):
            what = f"a vocabulary of {self.options.vocabulary} and {self.options.tokens} tokens"
            raise missing_data(what, f"numbers need vocabulary = {len(TOKENS)} and tokens = {_LENGTH}")
        _, some = draw_split(_LARGEST + 1, _TRAIN_COUNT + _VALIDATION_COUNT, seed=0)
        train, validation = draw_split(len(some), _VALIDATION_COUNT, seed=1)
        return Splits(_samples(some[train]), _samples(some[validation]))


def write_greedily(model: nn.Module, source: Tensor, tokens: int) -> Tensor:
    """The most likely next word, again and again: (n, s) -> (n, tokens)."""
    device = next(model.parameters()).device
    source = source.to(device)
    written = torch.full((len(source), 1), START, device=device)
    with evaluating(model):
        for _ in range(tokens):
            following = model(source, written)[:, -1:].argmax(dim=-1)
            written = torch.cat([written, following], dim=1)
    return written[:, 1:].cpu()


def in_words(number: int) -> list[str]:
    """English words of 0 to 999,999.

    >>> " ".join(in_words(410_007))
    'four hundred ten thousand seven'
    """
    if number < 20:
        return [ONES[number]]
    if number < 100:
        return [TENS[number // 10 - 2], *(in_words(number % 10) if number % 10 else [])]
    size, name = (100, "hundred") if number < 1_000 else (1_000, "thousand")
    return [*in_words(number // size), name, *(in_words(number % size) if number % size else [])]


def _samples(numbers: NDArray[np.intp]) -> Samples:
    ids = {token: index for index, token in enumerate(TOKENS)}
    source = _padded([ids[digit] for digit in str(number)] + [END] for number in numbers)
    words = [[ids[word] for word in in_words(int(number))] for number in numbers]
    return Samples((source, _padded([START, *row] for row in words)), _padded([*row, END] for row in words))


def _padded(rows: Iterable[list[int]]) -> NDArray[np.int64]:
    return np.array([row + [PAD] * (_LENGTH - len(row)) for row in rows], dtype=np.int64)


def build(preset: str = "base", data: str | None = None, **options: Any) -> TranslationJob:
    """The job of a preset (see PRESETS), with fields of TransformerOptions in place of its own; ScenarioError lists all mistakes.

    >>> build("small").example_batch(2)[1].shape
    torch.Size([2, 12])
    """
    return TranslationJob(read_options(PRESETS, preset, options, data=data))
