"""Models of Hugging Face transformers from their configurations: flop against FlopCounterMode, parameters exact."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.models.huggingface import build

pytest.importorskip("transformers")

BATCH, TOKENS = 2, 16
SMALL = {
    "GPT2LMHeadModel": {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 500},
    "BertForSequenceClassification": {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 500,
    },
    "LlamaForCausalLM": {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "vocab_size": 500,
    },
    "MixtralForCausalLM": {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "vocab_size": 500,
    },
    "ViTForImageClassification": {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32,
        "patch_size": 8,
    },
    "T5ForConditionalGeneration": {"num_layers": 2, "d_model": 64, "num_heads": 4, "d_kv": 16, "d_ff": 128, "vocab_size": 500},
}  # fmt: skip


def job_of(architecture: str) -> Any:
    """A small model of the architecture without dropout."""
    return build(architecture, SMALL[architecture], tokens=TOKENS)


@pytest.mark.parametrize("architecture", SMALL)
def test_parameters_are_exact(architecture: str) -> None:
    """Every parameter counts, a tied one once."""
    job = job_of(architecture)
    graph = trace_job(job, BATCH, True, architecture)
    assert graph.parameter_count == sum(parameter.numel() for parameter in job.model().parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", [name for name in SMALL if name != "MixtralForCausalLM"])
def test_flop_equal_what_runs(architecture: str) -> None:
    """Forward and backward flop within 0.1 % of what FlopCounterMode counts on the CPU, attention as two products."""
    job = job_of(architecture)
    graph = trace_job(job, BATCH, False, architecture)
    model, (inputs, _) = job.model().eval(), job.example_batch(BATCH)
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        outputs = model(inputs)
    with FlopCounterMode(display=False) as backward:
        outputs.sum().backward()
    assert graph.forward_flop == pytest.approx(forward.get_total_flops(), rel=1e-3)
    assert graph.backward_flop == pytest.approx(backward.get_total_flops(), rel=1e-3)


def test_mixture_of_experts_by_hand() -> None:
    """Each token runs through 2 of 8 experts: three products of 64 x 128 each; all experts hold their weights."""
    graph = trace_job(job_of("MixtralForCausalLM"), BATCH, True, "moe")
    rows, width, inner = BATCH * TOKENS, 64, 128
    attention = 2 * rows * width * (64 + 32 + 32 + 64) + 2 * 2 * rows * TOKENS * width
    experts = 2 * rows * 2 * 3 * width * inner + 2 * rows * width * 8
    assert graph.forward_flop == pytest.approx(2 * (attention + experts) + 2 * rows * width * 500, rel=1e-3)


@torch.no_grad()
def test_large_model_traces_without_memory_for_weights() -> None:
    """A configuration of 70 B parameters becomes a graph on the meta device; its 80 layers have 68,976,648,192 parameters."""
    config = {
        "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672,
        "vocab_size": 32000,
    }  # fmt: skip
    graph = trace_job(build("LlamaForCausalLM", config, tokens=4096), 8, True, "llama-70b", "bf16")
    assert graph.parameter_count == 68_976_648_192
    assert graph.total_parameter_bytes == 2 * 68_976_648_192


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"architecture": "NoSuchModel"}, "architecture"),
        ({"architecture": "GPT2LMHeadModel", "config": {"n_layers": 3}}, "config.n_layers"),
    ],
)
def test_unknown_names_are_told(arguments: dict[str, Any], field: str) -> None:
    """A wrong architecture or configuration key is a mistake that names it."""
    with pytest.raises(ScenarioError, match=field):
        build(**arguments)


def test_regions_without_gradient_count_and_need_none() -> None:
    """Rotary angles are elementwise and, up to transformers 5.23, made under no_grad: no flop, no backward pass, nothing to be noted."""
    graph = trace_job(job_of("LlamaForCausalLM"), BATCH, True, "llama")
    regions = [task for task in graph.tasks if task.op == "wrap_with_set_grad_enabled"]
    assert all((region.forward_flop, region.backward_flop, region.needs_gradient) == (0, 0, False) for region in regions)
    angles = [task for task in graph.tasks if task.op in ("cos", "sin")]
    assert regions or angles
    assert not any(task.needs_gradient or task.forward_flop for task in angles)
    assert graph.notes == ()


class WithoutGradient(nn.Module):
    """A product under no_grad beside one that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 8) -> (batch, 4)."""
        with torch.no_grad():
            shift = self.first(x)
        return self.second(x) + shift[:, :4]  # type: ignore[no-any-return]


def test_products_without_gradient_count_forward_only() -> None:
    """The region's product has flop and no backward pass; the other has both but no input gradient."""
    job = SimpleNamespace(model=WithoutGradient, example_batch=lambda size: (torch.zeros(size, 8), torch.zeros(size, dtype=torch.int64)))
    graph = trace_job(job, BATCH, True, "no_grad")  # type: ignore[arg-type]
    assert (graph.forward_flop, graph.backward_flop) == (2 * BATCH * (8 * 8 + 8 * 4), 2 * BATCH * 8 * 4)
