"""Text classification: the encoder of BERT (Devlin et al. 2018) with its pooler and a linear classifier.

Token, position and segment embeddings, norms behind each part, GELU. Parameters of the defaults: 109,482,240 up to the
pooler, and 1,538 of a classifier with two classes.

Data: passages of Python's language reference (`text`); the class is the topic that a passage is from, of eight. A passage is
`tokens - 1` words in a row; paragraphs that two topics share are left out; a fifth of the passages of each topic validate.
Words that are not among the most frequent of the training passages are one "unknown" word. Needs classes = 8.
Preset "small" (one thread): 10 epochs of Adam, batches of 32, 1e-3 falling to 0: 60.7 % of the validation passages after 6 s
(24.5 % are of the most frequent topic).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chinchilla_sim.errors import Mistake
from chinchilla_sim.models.options import Options, read_options
from chinchilla_sim.models.samples import SampleJob, Samples, Splits, draw_split, missing_data, predict
from chinchilla_sim.models.text import distinct_words
from chinchilla_sim.models.transformer import PostNormBlock, draw_normal, positions_of
from chinchilla_sim.options import divisibility, mistake

TOPICS = ("compound", "debugger", "formatstrings", "specialnames", "string-methods", "types", "typesmapping", "typesseq")
"""The eight longest topics, whole passages of which differ."""
PAD, UNKNOWN, START = 0, 1, 2
_SPECIAL_COUNT = 3
_SEGMENTS = 2
_VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class BertOptions(Options):
    """Shape of the network; `tokens` is the length of a sample, `positions` the longest that the network can take."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    inner_width: int = 3_072
    tokens: int = 128
    positions: int = 512
    vocabulary: int = 30_522
    classes: int = 2
    dropout: float = 0.1

    def mistakes(self) -> list[Mistake]:
        """Heads share the width equally; there is a position for each token and a number for each special one."""
        found = divisibility(self, "width", "heads")
        if self.tokens > self.positions:
            found.append(mistake("tokens", f"{self.tokens} are more than positions = {self.positions}", "write more positions"))
        if self.tokens < 2:
            found.append(mistake("tokens", "must be at least 2: a start and a word"))
        if self.vocabulary <= _SPECIAL_COUNT:
            found.append(mistake("vocabulary", f"must be more than the {_SPECIAL_COUNT} special tokens", "write for example 2000"))
        return found


PRESETS = {
    "bert-base": BertOptions(),
    "bert-large": BertOptions(layers=24, width=1_024, heads=16, inner_width=4_096),
    "small": BertOptions(
        layers=2, width=64, heads=4, inner_width=128, tokens=32, positions=32, vocabulary=2_000, classes=len(TOPICS), dropout=0.1
    ),
}


class Bert(nn.Module):
    """Embeddings, encoder, pooler over the first token, classifier."""

    def __init__(self, options: BertOptions) -> None:
        super().__init__()
        width, rate = options.width, options.dropout
        self.token = nn.Embedding(options.vocabulary, width)
        self.position = nn.Embedding(options.positions, width)
        self.segment = nn.Embedding(_SEGMENTS, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.ModuleList(
            PostNormBlock(width, options.heads, options.inner_width, rate, nn.GELU(), rate) for _ in range(options.layers)
        )
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.classifier = nn.Linear(width, options.classes)
        draw_normal(self, 0.02)

    def forward(self, ids: Tensor, segments: Tensor) -> Tensor:
        """(n, t) ids and (n, t) segments 0 or 1 -> (n, classes) logits; attention leaves out id 0, the padding."""
        mask = (ids != PAD)[:, None, None, :]
        x = self.token(ids) + self.position(positions_of(ids)) + self.segment(segments)
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, mask)
        return self.classifier(self.dropout(self.pooler(x[:, 0])))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ClassificationJob(SampleJob):
    """A job: network, loss and passages."""

    options: BertOptions

    def model(self) -> nn.Module:
        """A fresh network on torch's default device."""
        return Bert(self.options)

    def example_batch(self, size: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Ids of ones and segments of zeros, int64 (size, tokens); classes, int64 (size,)."""
        ids = torch.ones(size, self.options.tokens, dtype=torch.int64)
        return (ids, torch.zeros_like(ids)), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats of (n, classes) against (n,)."""
        return cross_entropy(outputs, targets)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """validation_accuracy (0..1), validation_loss (mean nats), and majority_share: the accuracy of always naming the
        most frequent topic."""
        outputs, targets = predict(model, self.splits.validation)
        accuracy = float((outputs.argmax(dim=1) == targets).double().mean())
        majority = float(targets.bincount().max() / len(targets))
        return {"validation_accuracy": accuracy, "validation_loss": float(self.loss(outputs, targets)), "majority_share": majority}

    def load_splits(self) -> Splits:
        """Ids int64 (count, tokens), segments of zeros, and topics int64 (count,)."""
        if self.options.classes != len(TOPICS):
            raise missing_data(f"{self.options.classes} classes", f"the passages need classes = {len(TOPICS)}")
        train, validation = passages(self.options.tokens - 1)
        frequent = Counter(word for words, _ in train for word in words).most_common(self.options.vocabulary - _SPECIAL_COUNT)
        numbers = {word: index for index, (word, _) in enumerate(frequent, start=_SPECIAL_COUNT)}
        return Splits(_samples(train, numbers), _samples(validation, numbers))


Passage = tuple[Sequence[str], int]


def passages(words: int) -> tuple[list[Passage], list[Passage]]:
    """Passages of so many words to train on and to validate with, none of both, each with the index of its topic."""
    train, validation = [], []
    for topic, text in enumerate(distinct_words(TOPICS).values()):
        pieces = [(text[start : start + words], topic) for start in range(0, len(text) - words + 1, words)]
        ours, theirs = draw_split(len(pieces), int(_VALIDATION_SHARE * len(pieces)), seed=topic)
        train += [pieces[index] for index in ours]
        validation += [pieces[index] for index in theirs]
    return train, validation


def _samples(found: Sequence[Passage], numbers: dict[str, int]) -> Samples:
    rows = [[START, *(numbers.get(word, UNKNOWN) for word in words)] for words, _ in found]
    ids: NDArray[np.int64] = np.array(rows, dtype=np.int64)
    return Samples((ids, np.zeros_like(ids)), np.array([topic for _, topic in found], dtype=np.int64))


def build(preset: str = "bert-base", data: str | None = None, **options: Any) -> ClassificationJob:
    """The job of a preset (see PRESETS), with fields of BertOptions in place of its own; ScenarioError lists all mistakes.

    >>> build("small").example_batch(2)[0][0].shape
    torch.Size([2, 32])
    """
    return ClassificationJob(read_options(PRESETS, preset, options, data=data))
