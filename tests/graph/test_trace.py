"""Traced graphs: equal to the formulas, honest about gradients, and checked against PyTorch's own flop counter."""

import json
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.models.mnist_mlp import build

BATCH = 4
Make = Callable[[], nn.Module]


class Job:
    """The least that can be planned: a module and the shape of one sample."""

    def __init__(self, make: Make, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self.make, self.shape, self.dtype = make, shape, dtype

    def model(self) -> nn.Module:
        """A fresh module."""
        return self.make()

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return torch.zeros(size, *self.shape, dtype=self.dtype), torch.zeros(size, dtype=torch.int64)


def trace(make: Make, *shape: int, training: bool = True, dtype: torch.dtype = torch.float32) -> TaskGraph:
    """Graph of one batch."""
    return trace_job(Job(make, *shape, dtype=dtype), BATCH, training, "traced")


def count(make: Make, *shape: int) -> tuple[int, int]:
    """Flop of forward and backward pass as FlopCounterMode counts the operators that really run."""
    model, inputs = make(), torch.zeros(BATCH, *shape)
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        output = model(inputs)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def cnn(inplace: bool = False) -> nn.Module:
    """Two convolutions with pooling and a classifier, for 3x16x16 images."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(inplace),
        nn.Flatten(), nn.Linear(16 * 3 * 3, 10),
    )  # fmt: skip


class Attention(nn.Module):
    """Pre-norm self-attention with a residual, 4 heads of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix_in, self.mix_out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x, (batch, tokens, 32)."""
        batch, tokens, _ = x.shape
        query, key, value = self.mix_in(self.norm(x)).view(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_dot_product_attention(query, key, value)
        return x + self.mix_out(mixed.transpose(1, 2).reshape(batch, tokens, 32))


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of 50 words for each token."""
        return self.head(self.embedding(tokens))  # type: ignore[no-any-return]


class Skip(nn.Module):
    """y = c(b(a(x)) + a(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 6) -> (batch, 2)."""
        kept = self.a(x)
        return self.c(self.b(kept) + kept)  # type: ignore[no-any-return]


class Einsum(nn.Module):
    """A product written with einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) -> (batch, 4)."""
        return torch.einsum("bi,io->bo", x, self.weight)


def frozen_below() -> nn.Module:
    """Two linear layers of which only the second learns."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("widths", "batch_size"), [([784, 512, 10], 64), ([784, 2048, 2048, 10], 8), ([5, 3], 1), ([7, 7, 7, 7, 7], 3)])
def test_traced_perceptron_equals_the_formula(widths: Sequence[int], batch_size: int, training: bool) -> None:
    """torch.export and zoo.mlp make the same graph, to the digest: the planner needs no torch for it."""
    traced, formula = trace_job(build(widths=widths), batch_size, training, "traced"), mlp(widths, batch_size, training)
    assert (traced.tasks, traced.edges, traced.weights) == (formula.tasks, formula.edges, formula.weights)
    assert traced.digest == formula.digest


def test_flop_of_the_article_network_equal_what_runs() -> None:
    """784-512-10 at batch 64: forward and backward flop equal FlopCounterMode's, exactly."""
    model, graph = build().model(), mlp([784, 512, 10], 64)
    with FlopCounterMode(display=False) as forward:
        output = model(torch.zeros(64, 784))
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert (graph.forward_flop, graph.backward_flop) == (forward.get_total_flops(), backward.get_total_flops())


@pytest.mark.parametrize(("make", "shape"), [(cnn, (3, 16, 16)), (Attention, (12, 32)), (Skip, (6,))])
def test_flop_equal_what_runs(make: Make, shape: tuple[int, ...]) -> None:
    """A convolutional network, an attention block and a skip: forward exact; backward exact but for the first layer.

    FlopCounterMode has no formula for the fused attention on CPU, so it counts the two products that the block is
    made of (the MATH kernel); a fused backward pass would compute the scores once more, 2.5x instead of 2x.
    """
    graph = trace(make, *shape)
    assert (graph.forward_flop, graph.backward_flop) == count(make, *shape)


def test_grouped_convolution_forward_is_exact() -> None:
    """Groups divide the work of a convolution; the weight's gradient is as large as the forward pass.

    FlopCounterMode (torch 2.13) forgets the groups in the weight's gradient and counts it `groups` times too large.
    """
    make = lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=4))  # noqa: E731
    graph = trace(make, 4, 8, 8)
    forward, backward = count(make, 4, 8, 8)
    grouped = graph.tasks[2]
    assert graph.forward_flop == forward
    assert grouped.weight_gradient_flop == grouped.forward_flop == 2 * (BATCH * 8 * 4 * 4) * (2 * 3 * 3)
    assert graph.backward_flop == backward - 3 * grouped.forward_flop


@pytest.mark.parametrize(("make", "shape"), [(cnn, (3, 16, 16)), (Skip, (6,))])
def test_first_layer_makes_no_input_gradient(make: Make, shape: tuple[int, ...]) -> None:
    """Nothing asks for the gradient of the data; every later product has one per operand."""
    products = [task for task in trace(make, *shape).tasks if task.forward_flop]
    assert products[0].input_gradient_flop == 0
    assert all(task.input_gradient_flop == task.forward_flop for task in products[1:])
    assert all(task.weight_gradient_flop == task.forward_flop for task in products)


def test_tied_weight_counts_once() -> None:
    """An embedding that is also the output layer is one parameter with one name, used by two tasks."""
    graph = trace(Tied, 5, dtype=torch.int64)
    assert {name: weight.bytes for name, weight in graph.weights.items()} == {"embedding.weight": 50 * 8 * 4}
    assert [task.parameters for task in graph.compute_tasks] == [("embedding.weight",), ("embedding.weight",), ()]
    assert graph.total_parameter_bytes == graph.parameter_bytes_of(graph.tasks) == 1600


def test_skip_connection_is_alive_until_it_is_read() -> None:
    """Behind b both a's and b's outputs cross; behind the sum only the sum."""
    graph = trace(Skip, 6)
    live = {task.name: [producer.name for producer in graph.live_after(graph.position[task.name])] for task in graph.tasks}
    assert live == {
        "x": ["x"],
        "linear": ["linear"],
        "linear_1": ["linear", "linear_1"],
        "add": ["add"],
        "linear_2": ["linear_2"],
        "loss": [],
    }


def test_frozen_layers_have_no_backward_pass() -> None:
    """Below the first learning layer nothing needs a gradient, and that layer makes no input gradient."""
    first, second = trace(frozen_below, 8).tasks[1:3]
    assert (first.needs_gradient, first.backward_flop, first.saved) == (False, 0, ())
    assert (second.input_gradient_flop, second.weight_gradient_flop) == (0, 2 * BATCH * 8 * 8)


def test_traced_graph_survives_json() -> None:
    """A traced attention block reads back equal from JSON text."""
    graph = trace(Attention, 12, 32)
    assert TaskGraph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


def test_views_cost_nothing() -> None:
    """Operators that only relabel memory start no kernel and move no bytes."""
    views = [task for task in trace(Attention, 12, 32).tasks if task.op in ("view", "permute", "unbind", "getitem", "transpose")]
    assert len(views) == 7
    assert all((task.launch_count, task.read_bytes, task.written_bytes, task.backward_written_bytes) == (0, 0, 0, 0) for task in views)


def test_model_that_does_not_export_is_a_scenario_error() -> None:
    """What torch.export refuses is told as a mistake of the scenario, with torch's reason."""
    with pytest.raises(ScenarioError, match=r"cannot trace the model: .*\[4, 5\] X \[3, 3\]"):
        trace(lambda: nn.Linear(3, 3), 5)


@pytest.mark.parametrize(
    ("make", "shape", "flop"),
    [
        (Einsum, (8,), 2 * BATCH * 8 * 4),
        (lambda: nn.ConvTranspose2d(3, 4, 3), (3, 8, 8), 2 * BATCH * 8 * 8 * 3 * 4 * 3 * 3),
        (lambda: nn.Bilinear(4, 4, 6), (4,), 2 * BATCH * 6 * (4 * 4 + 4)),
        (lambda: nn.LSTM(8, 8), (3, 8), 2 * BATCH * 3 * 4 * 8 * (8 + 8)),
        (lambda: nn.GRU(8, 5, num_layers=2, bidirectional=True), (3, 8), 2 * BATCH * 3 * 2 * 3 * 5 * ((8 + 5) + (10 + 5))),
    ],
    ids=["einsum", "conv_transpose2d", "bilinear", "lstm", "gru"],
)
def test_products_are_never_free(make: Make, shape: tuple[int, ...], flop: int) -> None:
    """Every operator that multiplies matrices has the flop that its shapes say (LSTM: four gates of inputs and of hidden states)."""
    inner = make
    if isinstance(make(), nn.Bilinear):
        inner = lambda: Same(make())  # noqa: E731
    assert trace(inner, *shape).forward_flop == flop


class Same(nn.Module):
    """Gives a two-input module the same tensor twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """inner(x, x)."""
        return self.inner(x, x)  # type: ignore[no-any-return]


def test_working_in_place_saves_no_more() -> None:
    """ReLU in place keeps its output once, as without: it does not also keep the tensor it has overwritten."""
    kept = [{name for task in trace(make, 3, 16, 16).tasks for name in task.saved} for make in (cnn, lambda: cnn(inplace=True))]
    assert len(kept[0]) == len(kept[1])


def test_example_batch_may_be_slices_of_real_data() -> None:
    """`example_batch` returns tensors of any values, so also ones that were loaded or made by NumPy."""
    data = torch.zeros(100, 8)
    job = Job(lambda: nn.Linear(8, 3), 8)
    job.example_batch = lambda size: (data[:size], torch.zeros(size, dtype=torch.int64))  # type: ignore[method-assign]
    assert trace_job(job, BATCH, True, "traced").forward_flop == 2 * BATCH * 8 * 3


class Transposed(nn.Module):
    """A product with a weight that is transposed first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) -> (batch, 4)."""
        return x @ self.weight.t()


def test_view_of_a_weight_is_the_weight() -> None:
    """It does not grow with the batch, is not saved as an activation, and its gradient is a weight's."""
    product = next(task for task in trace(Transposed, 8).tasks if task.op == "matmul")
    assert (product.parameters, product.weight_bytes, product.saved) == (("weight",), 4 * 4 * 8, ("x",))
    assert (product.input_gradient_flop, product.weight_gradient_flop) == (0, 2 * BATCH * 4 * 8)
