"""Model variants: laws of every transformation, and totals of modules that are really compressed and traced."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.compress import Variant, compress, compression_ratio
from chinchilla_sim.graph.compress.low_rank import factor_low_rank, low_rank_of
from chinchilla_sim.graph.compress.prune import prune
from chinchilla_sim.graph.compress.quantize import packed_bytes, quantizable, quantize
from chinchilla_sim.graph.compress.rebuild import Change, rebuild
from chinchilla_sim.graph.compress.share import share_weights, tie_embeddings
from chinchilla_sim.graph.compress.sparse import stored_bytes
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.graph.zoo import FORMULAS, chain, mlp

BATCH = 4
PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt": {"layers": 3, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 300},
    "llama": {"layers": 2, "width": 64, "heads": 8, "key_value_heads": 4, "inner_width": 96, "tokens": 16, "vocabulary": 300},
    "mpt": {"layers": 2, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 300},
    "mixture_of_experts": {
        "layers": 2, "width": 64, "heads": 4, "key_value_heads": 4, "inner_width": 96, "tokens": 16, "vocabulary": 300, "experts": 4,
    },
    "bert": {"layers": 3, "width": 64, "heads": 4, "tokens": 16, "vocabulary": 300},
    "t5": {"layers": 2, "width": 64, "heads": 4, "head_width": 16, "inner_width": 128, "tokens": 16, "vocabulary": 300},
    "transformer_xl": {"layers": 3, "width": 64, "heads": 4, "inner_width": 128, "tokens": 16, "memory": 8, "vocabulary": 300},
    "vit": {"layers": 2, "width": 64, "heads": 4, "image_size": 32, "patch_size": 8, "classes": 10},
    "resnet": {"depth": 18, "image_size": 32},
}  # fmt: skip


def published(formula: str, training: bool = True, **options: Any) -> TaskGraph:
    """A small graph of a formula."""
    return FORMULAS[formula](batch_size=2, training=training, value_bytes=4.0, **(PUBLISHED[formula] | options))


class Job:
    """A module and an example of its inputs."""

    def __init__(self, module: nn.Module, *shapes: Sequence[int], whole: bool = False) -> None:
        self.module, self.shapes, self.whole = module, shapes, whole

    def model(self) -> nn.Module:
        """The module."""
        return self.module

    def example_batch(self, size: int) -> tuple[Any, Tensor]:
        """Zeros."""
        dtype = torch.int64 if self.whole else torch.float32
        return tuple(torch.zeros(size, *shape, dtype=dtype) for shape in self.shapes), torch.zeros(size, dtype=torch.int64)


def trace(module: nn.Module, *shapes: Sequence[int], whole: bool = False) -> TaskGraph:
    """Graph of a module in training."""
    return trace_job(Job(module, *shapes, whole=whole), BATCH, True, "traced")


def totals(graph: TaskGraph) -> dict[str, float]:
    """What a variant must have in common with the really compressed module."""
    names = ("forward_flop", "input_gradient_flop", "weight_gradient_flop", "output_bytes", "read_bytes", "written_bytes", "saved_bytes")
    sums = {name: sum(getattr(task, name) for task in graph.tasks) for name in names}
    return sums | {"parameters": graph.parameter_count, "bytes": graph.total_parameter_bytes, "tasks": len(graph.tasks)}


class Residual(nn.Module):
    """Convolutions with a skip connection, one of them depthwise, channels joined, and a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.inner, self.outer = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.side, self.head = nn.Conv2d(width, width // 2, 1), nn.Linear((width + width // 2) * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, 8, 8) to (n, 10)."""
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(self.depthwise(x))))
        return self.head(torch.max_pool2d(torch.cat([x, self.side(x)], dim=1), 2).flatten(1))


class Attention(nn.Module):
    """Fused queries, keys and values, `heads` heads of 8, a residual and a gated network behind it."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.norm, self.mix_in, self.mix_out = (
            nn.Embedding(50, width), nn.LayerNorm(width), nn.Linear(width, 24 * heads), nn.Linear(8 * heads, width),
        )  # fmt: skip
        self.up, self.down, self.head = nn.Linear(width, 2 * inner), nn.Linear(inner, width), nn.Linear(width, 50)

    def forward(self, ids: Tensor) -> Tensor:
        """Indices (n, tokens) to (n, tokens, 50)."""
        x = self.embed(ids)
        batch, tokens, _ = x.shape
        query, key, value = self.mix_in(self.norm(x)).view(batch, tokens, 3, self.heads, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.softmax(query @ key.transpose(-2, -1) * 8**-0.5, dim=-1)
        x = x + self.mix_out((scores @ value).transpose(1, 2).reshape(batch, tokens, 8 * self.heads))
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.head(x + self.down(torch.nn.functional.silu(gate) * up))


class Recurrent(nn.Module):
    """Two layers in both directions, and a classifier on the last state."""

    def __init__(self, width: int, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner: Any = kind(12, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, steps, 12) to (n, 5)."""
        return self.head(self.inner(x)[0][:, -1])


class Unknown(nn.Module):
    """A Fourier transform between two layers: nobody can say which of its outputs belongs to which neuron."""

    def __init__(self, inner: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 16), nn.Linear(16, inner), nn.Linear(inner, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 8) to (n, 4)."""
        return self.third(torch.relu(self.second(torch.fft.fft(self.first(x)).real)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("formula", PUBLISHED)
def test_rebuilding_changes_nothing(formula: str, training: bool) -> None:
    """A graph that is built anew from what its tasks say is the same graph."""
    graph = published(formula, training)
    assert rebuild(graph, Change()).digest == graph.digest


@pytest.mark.parametrize("formula", PUBLISHED)
def test_no_change_is_the_same_graph(formula: str) -> None:
    """Ratio 0 and an empty variant return the graph itself."""
    graph = published(formula)
    assert prune(graph, 0.0) is graph and factor_low_rank(graph, 0.0) is graph and compress(graph, Variant()) is graph


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(PUBLISHED)), st.floats(0, 0.95), st.floats(0, 0.95))
def test_more_pruning_never_costs_more(formula: str, one: float, other: float) -> None:
    """A larger ratio has no more flop, parameters or bytes; edges and operators stay."""
    graph, less, more = published(formula), min(one, other), max(one, other)
    large, small = prune(graph, less), prune(graph, more)
    assert all(small_total <= total for small_total, total in zip(totals(small).values(), totals(large).values(), strict=True))
    assert small.edges == graph.edges and [task.op for task in small.tasks] == [task.op for task in graph.tasks]


HALVES: dict[str, dict[str, Any]] = {
    "gpt": {"width": 32, "heads": 2, "head_width": None},
    "llama": {"width": 32, "heads": 4, "key_value_heads": 2, "inner_width": 48},
    "mpt": {"width": 32, "heads": 2},
    "mixture_of_experts": {"width": 32, "heads": 2, "key_value_heads": 2, "inner_width": 48},
    "bert": {"width": 32, "heads": 2},
    "t5": {"width": 32, "heads": 2, "inner_width": 64},
    "vit": {"width": 32, "heads": 2},
}


@pytest.mark.parametrize("formula", HALVES)
def test_half_of_a_transformer_is_the_transformer_of_half_the_width(formula: str) -> None:
    """Pruned by half, every formula is the formula of half the width and half the heads, task by task."""
    options = {key: value for key, value in HALVES[formula].items() if value is not None}
    assert prune(published(formula), 0.5).digest == published(formula, **options).digest


def test_the_articles_network_loses_half_its_neurons() -> None:
    """784-512-10 pruned by half is 784-256-10."""
    assert prune(mlp([784, 512, 10], 64), 0.5).digest == mlp([784, 256, 10], 64).digest


@pytest.mark.parametrize(
    ("large", "small", "shape", "whole"),
    [
        (Residual(32), Residual(16), (3, 8, 8), False),
        (Attention(32, 4, 48), Attention(16, 2, 24), (6,), True),
        (Recurrent(16, nn.LSTM), Recurrent(8, nn.LSTM), (7, 12), False),
        (Recurrent(16, nn.GRU), Recurrent(8, nn.GRU), (7, 12), False),
        (Unknown(16), Unknown(8), (8,), False),
    ],
    ids=["convolutions", "attention", "lstm", "gru", "unknown"],
)
def test_pruned_graph_is_that_of_the_pruned_module(large: nn.Module, small: nn.Module, shape: tuple[int, ...], whole: bool) -> None:
    """The graph pruned by half equals the traced module of half the size; what is unknown keeps its size."""
    pruned, traced = prune(trace(large, shape, whole=whole), 0.5), trace(small, shape, whole=whole)
    assert totals(pruned) == totals(traced)
    assert {name: weight.shape for name, weight in pruned.weights.items()} == {n: w.shape for n, w in traced.weights.items()}


def test_low_rank_graph_is_that_of_two_layers() -> None:
    """A linear layer and a convolution in two factors cost what nn.Sequential of the two really costs."""
    rank, channels = low_rank_of((20, 400), 0.5), low_rank_of((16, 3, 3, 3), 0.5)
    whole = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AvgPool2d(2, 2), nn.Flatten(), nn.Linear(16 * 25, 20))
    factored = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, channels, 3, bias=False), nn.Conv2d(channels, 16, 1)), nn.ReLU(), nn.AvgPool2d(2, 2), nn.Flatten(),
        nn.Sequential(nn.Linear(400, rank, bias=False), nn.Linear(rank, 20)),
    )  # fmt: skip
    ours, theirs = factor_low_rank(trace(whole, (3, 12, 12)), 0.5), trace(factored, (3, 12, 12))
    assert totals(ours) == totals(theirs)
    assert {name: weight.shape for name, weight in ours.weights.items()} == {name: weight.shape for name, weight in theirs.weights.items()}


def test_low_rank_leaves_tied_and_tiny_layers_whole() -> None:
    """The head that is the embedding's table stays; so does a layer that rank 1 would not make smaller."""
    assert factor_low_rank(published("gpt"), 0.5).weights["transformer.wte.weight"].shape == (300, 64)
    assert low_rank_of((2, 2), 0.9) == 0


class Albert(nn.Module):
    """Blocks behind a norm that looks like the one at each block's end."""

    def __init__(self, count: int, shared: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        made = [nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)]) for _ in range(count)]
        self.blocks = nn.ModuleList([made[0]] * count if shared else made)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 16) to (n, 4)."""
        x = self.norm(x)
        for block in self.blocks:
            inner, outer, norm = block  # type: ignore[misc]
            x = norm(x + outer(torch.relu(inner(x))))
        return self.head(x)


def test_shared_graph_is_that_of_shared_modules() -> None:
    """Six blocks that share their weights, exactly as a module that runs one block six times."""
    ours, theirs = share_weights(trace(Albert(6, shared=False), (16,))), trace(Albert(6, shared=True), (16,))
    assert totals(ours) == totals(theirs)
    assert dict(ours.weights) == dict(theirs.weights)


@pytest.mark.parametrize("formula", ["gpt", "llama", "bert", "transformer_xl", "vit"])
def test_sharing_leaves_one_block(formula: str) -> None:
    """All blocks of a transformer share: as many parameters as with one layer, and the flop of all."""
    graph, single = published(formula), published(formula, layers=1)
    shared = share_weights(graph)
    assert (shared.parameter_count, shared.forward_flop) == (single.parameter_count, graph.forward_flop)


def test_tied_graph_is_the_formula_with_a_tied_head() -> None:
    """An untied head that is tied is the tied model; flop stay."""
    own, tied = published("llama"), tie_embeddings(published("llama"))
    assert own.parameter_count - tied.parameter_count == 300 * 64
    assert tied.forward_flop == own.forward_flop and "lm_head.weight" not in tied.weights
    assert tie_embeddings(tied).digest == tied.digest


def test_packed_bytes_are_those_of_torchs_packed_weights() -> None:
    """int4 as `_weight_int4pack_mm` and int8 as `_weight_int8pack_mm` take them, with their scales."""
    rows, columns, group = 64, 256, 128
    values = torch.randint(0, 15, (rows, columns), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 2)
    scales = torch.zeros(columns // group, rows, 2, dtype=torch.bfloat16)
    x = torch.zeros(3, columns, dtype=torch.bfloat16)
    assert torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales).shape == (3, rows)
    assert packed_bytes((rows, columns), "int4") == packed.nbytes + scales.nbytes
    eight, scale = torch.zeros(rows, columns, dtype=torch.int8), torch.ones(rows, dtype=torch.bfloat16)
    assert torch.ops.aten._weight_int8pack_mm(x, eight, scale).shape == (3, rows)
    assert packed_bytes((rows, columns), "int8", value_bytes=2.0) == eight.nbytes + scale.nbytes
    assert packed_bytes((rows, columns), "bf16") == torch.zeros(rows, columns, dtype=torch.bfloat16).nbytes


@pytest.mark.parametrize("weight_format", ["bf16", "int8", "int8-static", "int8-weights", "int4"])
@pytest.mark.parametrize("formula", PUBLISHED)
def test_quantized_weights_are_read_packed(formula: str, weight_format: str) -> None:
    """Flop stay, each product reads exactly the bytes that its weights lose less; norms and biases stay."""
    graph = published(formula, training=False)
    small = quantize(graph, weight_format)
    names = quantizable(graph, weight_format)
    assert small.forward_flop == graph.forward_flop
    expected = sum(packed_bytes(graph.weights[name].shape, weight_format) for name in names)
    rest = sum(weight.bytes for name, weight in graph.weights.items() if name not in names and not weight.buffer)
    assert small.total_parameter_bytes == expected + rest
    assert all(len(graph.weights[name].shape) > 1 for name in names)
    linear = next(task for task in graph.tasks if task.op == "linear")
    lost = sum(graph.weights[name].bytes - small.weights[name].bytes for name in linear.parameters)
    assert lost > 0 and linear.read_bytes - small.tasks[small.position[linear.name]].read_bytes == pytest.approx(lost)


def test_training_for_integers_keeps_the_weights() -> None:
    """A trained graph rounds as it computes: bytes, flop and gradients stay, and the tasks say what they round to; bf16 is stored."""
    graph = mlp([784, 512, 10], 64)
    rounded = quantize(graph, "int8")
    assert totals(rounded) == totals(graph)
    assert [dict(task.attributes).get("rounds_to") for task in rounded.tasks if task.op == "linear"] == ["int8", "int8"]
    assert quantize(graph, "bf16").total_parameter_bytes < graph.total_parameter_bytes


def test_zeros_make_only_the_file_smaller() -> None:
    """By hand: of 784 x 512 + 512 x 10 values 80 % are zero; a file has a bit for each and the rest, memory and flop stay."""
    graph = mlp([784, 512, 10], 64)
    sparse = compress(graph, Variant(sparsity=0.8))
    assert sparse.digest == graph.digest and "no faster" in sparse.notes[-2]
    values = 784 * 512 + 512 * 10
    assert stored_bytes(graph, 0.8) == pytest.approx(values * (0.2 * 4 + 1 / 8) + 4 * (512 + 10))
    assert stored_bytes(graph, 0.0) == graph.total_parameter_bytes


def test_compression_ratio_is_eta() -> None:
    """Pruned by half and in int8, the article's network is 2 x 4 times smaller, less the scales and biases."""
    graph = mlp([784, 512, 10], 64, training=False)
    small = compress(graph, Variant(prune=0.5, quantize="int8"))
    weights = packed_bytes((256, 784), "int8") + packed_bytes((10, 256), "int8") + 4 * (256 + 10)
    assert small.total_parameter_bytes == weights
    assert compression_ratio(graph, small) == graph.total_parameter_bytes / weights
    assert small.notes[-1].startswith("compressed: ")


def test_all_at_once_keeps_the_order() -> None:
    """Sharing, pruning, factoring and quantizing together: each on the result of the one before."""
    graph = published("gpt", training=False)
    steps = quantize(factor_low_rank(prune(share_weights(graph), 0.25), 0.5), "int4")
    assert compress(graph, Variant(share_weights=True, prune=0.25, low_rank=0.5, quantize="int4")).digest == steps.digest


def test_graphs_without_shapes_are_refused() -> None:
    """A chain of numbers, or a group, cannot be compressed: the error says what can."""
    graph = chain(4, 100, 1e6, 10.0, 8)
    with pytest.raises(ScenarioError, match="do not say their operands and shapes"):
        prune(replace(graph, tasks=tuple(replace(task, shapes=()) for task in graph.tasks)), 0.5)
