"""Any model of Hugging Face transformers from its configuration alone: nothing is downloaded, weights are drawn at random.

    builtin = "huggingface"
    options = { architecture = "LlamaForCausalLM", config = { num_hidden_layers = 80, hidden_size = 8192 }, tokens = 4096 }

`architecture` is a class of transformers, `config` the keyword arguments of its configuration (others keep the
class's defaults). Text models take (batch, tokens) ids, encoder-decoders the same ids on both sides, image models
(batch, channels, image_size, image_size). Planned and simulated only: a run needs a job with data of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chinchilla_sim.errors import Mistake, ScenarioError


class _Outputs(nn.Module):
    """The first tensor of a transformers model's output (logits or hidden states) from its first input."""

    def __init__(self, inner: nn.Module, both_sides: bool) -> None:
        super().__init__()
        self.inner, self.both_sides = inner, both_sides

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, tokens) ids or (batch, channels, height, width) pixels -> logits."""
        outputs = self.inner(inputs, decoder_input_ids=inputs) if self.both_sides else self.inner(inputs)
        return outputs[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class HuggingFace:
    """A job to plan: network and shapes, no data."""

    model_class: Any
    config: Any
    tokens: int

    def model(self) -> nn.Module:
        """A fresh model with random weights, on torch's default device."""
        return _Outputs(self.model_class(self.config), bool(getattr(self.config, "is_encoder_decoder", False)))

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros: int64 (size, tokens) ids, or float32 pixels of the configuration's image size; labels int64 (size,)."""
        side = getattr(self.config, "image_size", None)
        if side is not None:
            return torch.zeros(size, self.config.num_channels, side, side), torch.zeros(size, dtype=torch.int64)
        ids = torch.zeros(size, self.tokens, dtype=torch.int64)
        return ids, ids

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of (batch, ..., classes) against (batch, ...)."""
        return cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """There are no data: ScenarioError says what to do."""
        raise ScenarioError(
            [Mistake("model.builtin", "huggingface has no data to run on", "write a factory with batches() around the model")]
        )


def build(architecture: str, config: Mapping[str, Any] | None = None, tokens: int = 128, data: str | None = None) -> HuggingFace:
    """The job; ScenarioError where transformers is not installed or does not know the architecture or a configuration value."""
    try:
        import transformers
    except ImportError:
        cure = "pip install 'chinchilla-sim[huggingface]'"
        raise ScenarioError([Mistake("model.builtin", "transformers is not installed", cure)]) from None
    model_class = getattr(transformers, architecture, None)
    if model_class is None or getattr(model_class, "config_class", None) is None:
        cure = "name a class with a configuration, such as LlamaForCausalLM"
        raise ScenarioError(
            [Mistake("model.options.architecture", f"transformers {transformers.__version__} has no {architecture!r}", cure)]
        )
    known = model_class.config_class()
    unknown = sorted(key for key in (config or {}) if not hasattr(known, key))
    if unknown:
        raise ScenarioError(
            [
                Mistake(f"model.options.config.{key}", f"{type(known).__name__} has no such value", "see its documentation")
                for key in unknown
            ]
        )
    values = dict(config or {}) | ({"use_cache": False} if hasattr(known, "use_cache") else {})
    return HuggingFace(model_class, model_class.config_class(**values), tokens)
