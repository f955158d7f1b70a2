"""Language: GPT-2 (Radford et al. 2019): learned positions, norms before each part, GELU by tanh, head tied to the embedding.

Parameters of the defaults: 124,439,808. A tied head puts one matrix at both ends of the model: the stages that share it sum its
gradients once a step; `tied_head = false` gives the head a matrix of its own (vocabulary x width more).

Data: Python's language reference (`text`), byte by byte, cut into windows of `tokens` bytes; the last tenth, whose
paragraphs occur nowhere before, validates. Needs vocabulary = 256.
Preset "small" (one thread):
2 epochs of Adam, batches of 32, 2e-3 falling to 0: 3.22 bits per character after 7 s (4.63 by frequencies alone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from chinchilla_sim.errors import Mistake
from chinchilla_sim.models.options import Options, read_options
from chinchilla_sim.models.samples import SampleJob, Samples, Splits, missing_data, predict
from chinchilla_sim.models.text import running_text
from chinchilla_sim.models.transformer import PreNormBlock, draw_normal, positions_of
from chinchilla_sim.options import divisibility

_BYTES = 256
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class GptOptions(Options):
    """Shape of the network; `tokens` is the length of a sample and the number of positions; the inner width is 4 widths."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    tokens: int = 1_024
    vocabulary: int = 50_257
    tied_head: bool = True
    dropout: float = 0.1

    def mistakes(self) -> list[Mistake]:
        """Heads share the width equally."""
        return divisibility(self, "width", "heads")


PRESETS = {
    "gpt2": GptOptions(),
    "gpt2-medium": GptOptions(layers=24, width=1_024, heads=16),
    "gpt2-large": GptOptions(layers=36, width=1_280, heads=20),
    "gpt2-xl": GptOptions(layers=48, width=1_600, heads=25),
    "small": GptOptions(layers=2, width=64, heads=4, tokens=64, vocabulary=_BYTES, tied_head=False, dropout=0.0),
}


class Gpt(nn.Module):
    """Embeddings, blocks, norm and head."""

    def __init__(self, options: GptOptions) -> None:
        super().__init__()
        width = options.width
        self.token = nn.Embedding(options.vocabulary, width)
        self.position = nn.Embedding(options.tokens, width)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.Sequential(*(PreNormBlock(width, options.heads, 4 * width, options.dropout) for _ in range(options.layers)))
        self.norm = nn.LayerNorm(width)
        self.head = None if options.tied_head else nn.Linear(width, options.vocabulary, bias=False)
        draw_normal(self, 0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.output.weight", "feed_forward.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * options.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """(n, t) ids, t <= tokens -> (n, t, vocabulary) logits of the next token."""
        x = self.dropout(self.token(ids) + self.position(positions_of(ids)))
        x = self.norm(self.blocks(x))
        return linear(x, self.token.weight) if self.head is None else self.head(x)


@dataclass(frozen=True)
class LanguageJob(SampleJob):
    """A job: network, loss and text."""

    options: GptOptions

    def model(self) -> nn.Module:
        """A fresh network on torch's default device."""
        return Gpt(self.options)

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros: int64 (size, tokens), twice."""
        ids = torch.zeros(size, self.options.tokens, dtype=torch.int64)
        return ids, ids

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats of (n, t, vocabulary) against the next tokens (n, t)."""
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Of the next byte: validation_accuracy (0..1), validation_bits_per_character (the text is ASCII but for some signs)
        and unigram_bits_per_character, what a model knows that has learned nothing but how often each byte occurs."""
        outputs, targets = predict(model, self.splits.validation)
        bits = float(self.loss(outputs, targets)) / math.log(2)
        accuracy = float((outputs.argmax(dim=-1) == targets).double().mean())
        unigram = _unigram_bits(self.splits)
        return {"validation_accuracy": accuracy, "validation_bits_per_character": bits, "unigram_bits_per_character": unigram}

    def load_splits(self) -> Splits:
        """Windows of the text: int64 (count, tokens), and the same one byte later."""
        if self.options.vocabulary != _BYTES:
            raise missing_data(f"a vocabulary of {self.options.vocabulary} tokens", f"the text, by bytes, needs vocabulary = {_BYTES}")
        ids = np.frombuffer(running_text().encode(), np.uint8).astype(np.int64)
        cut = int(len(ids) * (1 - _VALIDATION_SHARE))
        return Splits(self._windows(ids[:cut]), self._windows(ids[cut:]))

    def _windows(self, ids: np.ndarray[Any, np.dtype[np.int64]]) -> Samples:
        tokens = self.options.tokens
        count = (len(ids) - 1) // tokens
        inputs, targets = ids[: count * tokens], ids[1 : count * tokens + 1]
        return Samples((inputs.reshape(count, tokens),), targets.reshape(count, tokens))


def _unigram_bits(splits: Splits) -> float:
    """Bits per byte of the validation text under the frequencies of the training text (each byte once more)."""
    counts = np.bincount(splits.train.targets.ravel(), minlength=_BYTES) + 1
    return float(-np.log2(counts / counts.sum())[splits.validation.targets].mean())


def build(preset: str = "gpt2", data: str | None = None, **options: Any) -> LanguageJob:
    """The job of a preset (see PRESETS), with fields of GptOptions in place of its own; ScenarioError lists all mistakes.

    >>> build("small", tokens=32).example_batch(2)[0].shape
    torch.Size([2, 32])
    """
    return LanguageJob(read_options(PRESETS, preset, options, data=data))
