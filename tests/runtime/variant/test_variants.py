"""Compressed variants that run: what the task graph promises is what the exported model does."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from chinchilla_sim.graph.compress import AS_IT_IS, Variant, compress
from chinchilla_sim.graph.contract import BUILTIN_FACTORIES, TrainingJob, load_job
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import as_tuple, trace_job
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.runtime.benchmark.variant_race import stored_bytes as bytes_of_stage
from chinchilla_sim.runtime.stage.stages import Stage, cut_stages
from chinchilla_sim.runtime.stage.whole_variant import trainable_variant
from chinchilla_sim.runtime.variant.number_formats import LINEAR, linear_rounded, rounded_input, store, unpack
from chinchilla_sim.runtime.variant.sparsity import Masks, thinned

CPU = torch.device("cpu")
SIZE = 4


class Job:
    """A job of one model."""

    def __init__(self, model: nn.Module, width: int) -> None:
        self.own, self.width = model, width

    def model(self) -> nn.Module:
        """A copy: planning moves it to the meta device."""
        return deepcopy(self.own)

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return torch.zeros(size, self.width), torch.zeros(size, dtype=torch.int64)

    def batches(self, split: str, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Random inputs."""
        yield torch.randn(64, self.width, generator=torch.Generator().manual_seed(seed)), torch.zeros(64, dtype=torch.int64)


def build(name: str) -> TrainingJob:
    """A built-in job in its small size."""
    return load_job(BUILTIN_FACTORIES[name], {} if name == "mnist_mlp" else {"preset": "small"}, None)


def plan_of(graph: TaskGraph, stages: int) -> Plan:
    """About equal stages of an inference plan."""
    names = [task.name for task in graph.compute_tasks]
    ends = [index + 1 for index, may in enumerate(allowed_cuts(graph, training=False)) if may]
    cuts = sorted({min(ends, key=lambda end: abs(end - len(names) * stage / stages)) for stage in range(1, stages)})
    rows = tuple(tuple(names[start:end]) for start, end in pairwise([0, *cuts, len(names)]))
    count = len(rows)
    placement = tuple((rank,) for rank in range(count))
    return Plan(rows, placement, tuple(range(count)), SIZE, 1, "forward", ("none",) * count, ("none",) * (count - 1))


def cut(job: Any, model: nn.Module, variant: Variant, stages: int = 1) -> tuple[list[Stage], TaskGraph]:
    """Stages of the variant, and its task graph as it is planned with."""
    graph = compress(trace_job(job, SIZE, False, "test"), variant)
    plan = plan_of(graph, stages)
    return cut_stages(job, model, plan, range(plan.stage_count), CPU, dynamic=True, variant=variant), graph


def apply(stages: list[Stage], inputs: Any) -> Tensor:
    """What the stages in a row return."""
    tensors = as_tuple(inputs)
    with torch.no_grad():
        for stage in stages:
            tensors = stage(*tensors)
    found: Tensor = stages[-1].restore(tensors)
    return found


def inputs_of(job: Any, size: int) -> tuple[Tensor, ...]:
    """Random values of the job's kinds."""
    generator = torch.Generator().manual_seed(size)
    examples = as_tuple(job.example_batch(size)[0])
    return tuple(
        torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.randint(0, 2, tensor.shape, generator=generator)
        for tensor in examples
    )


def stored_bytes(stages: list[Stage]) -> float:
    """Bytes of all weights and buffers of the stages."""
    return sum(map(bytes_of_stage, stages))


@pytest.fixture
def mlp() -> nn.Sequential:
    """Two hidden layers."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("name", ["mnist_mlp", "gpt", "resnet", "dlrm"])
def test_dynamic_stages_take_any_number_of_samples(name: str) -> None:
    """Three stages, cut once for four samples, are the model for one, two, four and seven; sizes that depend on it cross no boundary."""
    job = build(name)
    torch.manual_seed(0)
    model = job.model().eval()
    stages, _ = cut(job, model, AS_IT_IS, 3)
    assert len(stages) > 1 and all(stage.dynamic for stage in stages)
    for size in (1, 2, 4, 7):
        inputs = inputs_of(job, size)
        with torch.no_grad():
            torch.testing.assert_close(apply(stages, inputs), model(*inputs))


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("mnist_mlp", Variant(prune=0.5)),
        ("gpt", Variant(prune=0.25, low_rank=0.5)),
        ("gpt", Variant(share_weights=True, tie_embeddings=True)),
        ("resnet", Variant(prune=0.5, low_rank=0.5)),
        ("bert", Variant(prune=0.5, quantize="int8")),
    ],
)
def test_variants_of_built_in_models_run_in_stages(name: str, variant: Variant) -> None:
    """Every task of the compressed graph is there under its name, with its shape (`make_variant` refuses another); parameters too."""
    job = build(name)
    model = job.model().eval()
    stages, graph = cut(job, model, variant, 2)
    sizes = {tuple(apply(stages, inputs_of(job, size)).shape) for size in (2, 5)}
    with torch.no_grad():
        assert sizes == {tuple(model(*inputs_of(job, size)).shape) for size in (2, 5)}
    if variant.quantize is None:
        counts = {tensor.data_ptr(): tensor.numel() for stage in stages for tensor in stage.state().values() if tensor.is_floating_point()}
        used = {name for task in graph.tasks for name in task.parameters if not graph.weights[name].buffer}
        assert sum(graph.weights[name].value_count for name in used) <= sum(counts.values())
        assert sum(counts.values()) <= sum(weight.value_count for weight in graph.weights.values())


def test_pruning_is_silencing_the_weakest_neurons(mlp: nn.Sequential) -> None:
    """By hand: half of each hidden layer, those of the least magnitude of all weights that they have, gives the same outputs as zeros."""
    stages, graph = cut(Job(mlp, 12), mlp, Variant(prune=0.5))
    inputs = torch.randn(5, 12)
    first, second, last = (mlp[place] for place in (0, 2, 4))
    tensors = inputs
    for before, behind in ((first, second), (second, last)):
        magnitude = before.weight.abs().sum(1) + before.bias.abs() + behind.weight.abs().sum(0)
        kept = magnitude.argsort(descending=True)[: len(magnitude) // 2]
        mask = torch.zeros(len(magnitude)).index_fill(0, kept, 1.0)
        tensors = torch.relu(before(tensors)) * mask
    torch.testing.assert_close(apply(stages, inputs), last(tensors))
    assert [tuple(weight.shape) for weight in stages[0].state().values() if weight.dim() == 2] == [(5, 12), (4, 5), (3, 4)]
    assert graph.total_parameter_bytes == stored_bytes(stages)


@pytest.mark.parametrize("variant", [Variant(), Variant(prune=0.5), Variant(low_rank=0.3)])
def test_flop_are_those_of_the_task_graph(mlp: nn.Sequential, variant: Variant) -> None:
    """As PyTorch counts them, while the variant runs."""
    stages, graph = cut(Job(mlp, 12), mlp, variant)
    with FlopCounterMode(display=False) as counter:
        apply(stages, torch.randn(SIZE, 12))
    products = sum(task.forward_flop for task in graph.tasks if task.op == "linear")
    assert counter.get_total_flops() == products > 0


def test_two_factors_of_a_weight_of_low_rank_lose_nothing(mlp: nn.Sequential) -> None:
    """A layer that has the rank already is computed in two layers with the same outputs."""
    with torch.no_grad():
        for layer in (mlp[0], mlp[2], mlp[4]):
            rows, columns = layer.weight.shape
            layer.weight.copy_(torch.randn(rows, 1) @ torch.randn(1, columns))
    stages, graph = cut(Job(mlp, 12), mlp, Variant(low_rank=0.5))
    assert "linear_narrow" in {task.name for task in graph.tasks}
    inputs = torch.randn(6, 12)
    torch.testing.assert_close(apply(stages, inputs), mlp(inputs))
    assert stored_bytes(stages) == graph.total_parameter_bytes


@pytest.mark.parametrize(
    ("weight_format", "tolerance"), [("bf16", 0.02), ("int8", 0.03), ("int8-static", 0.04), ("int8-weights", 0.02), ("int4", 0.3)]
)
def test_quantized_weights_take_the_bytes_of_the_task_graph(mlp: nn.Sequential, weight_format: str, tolerance: float) -> None:
    """Values, and a scale per row; outputs are near the model's, but not equal."""
    stages, graph = cut(Job(mlp, 12), mlp, Variant(quantize=weight_format), 2)
    assert len(stages) == 2 and stored_bytes(stages) == graph.total_parameter_bytes
    inputs = torch.randn(50, 12)
    with torch.no_grad():
        expected = mlp(inputs)
    error = (apply(stages, inputs) - expected).norm() / expected.norm()
    assert 0 < error < tolerance


@pytest.mark.parametrize(("weight_format", "tolerance"), [("bf16", 0.02), ("int8", 0.02), ("int8-weights", 0.02), ("int4", 0.2)])
def test_convolutions_and_tables_unpack_their_weights(weight_format: str, tolerance: float) -> None:
    """Lookups unpack the rows that they take, convolutions the weight; both stay near."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv = nn.Embedding(32, 40), nn.Conv1d(3, 16, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.conv(self.table(x.long()))
            return found

    torch.manual_seed(2)
    model = Net().eval()
    stages, graph = cut(Job(model, 3), model, Variant(quantize=weight_format))
    inputs = torch.randint(0, 32, (8, 3)).float()
    with torch.no_grad():
        expected = model(inputs)
    assert 0 < (apply(stages, inputs) - expected).norm() / expected.norm() < tolerance
    assert stored_bytes(stages) == graph.total_parameter_bytes


def test_shared_blocks_read_the_first_one_s_weights() -> None:
    """Outputs are those of the blocks that the task graph names; the model itself keeps its own weights."""
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh()) for _ in range(4)]
    model = nn.Sequential(*blocks).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages, graph = cut(Job(model, 6), model, Variant(share_weights=True))
    used = [int(task.parameters[0].partition(".")[0]) for task in graph.tasks if task.op == "linear"][::2]
    assert len(used) == 4 > len(set(used))
    outputs = inputs = torch.randn(4, 6)
    for number in used:
        outputs = blocks[number](outputs)
    torch.testing.assert_close(apply(stages, inputs), outputs.detach())
    assert stored_bytes(stages) == graph.total_parameter_bytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


VARIANTS = [Variant(prune=0.5), Variant(low_rank=0.4), Variant(share_weights=True), Variant(share_weights=True, prune=0.3, low_rank=0.3)]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_expanded_weights_are_the_variant(variant: Variant) -> None:
    """A trained variant written back into the whole model: the variant made of that computes the same."""
    torch.manual_seed(4)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh()) for _ in range(4)]
    model, inputs = nn.Sequential(*blocks), torch.randn(9, 6)
    job = Job(model, 6)
    made = trainable_variant(job, model, 9, CPU, variant)
    optimizer = torch.optim.SGD(made.module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        made.module(inputs).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        trained = made.module(inputs)
    whole = job.model()
    whole.load_state_dict(
        dict(whole.state_dict()) | made.expand({name: tensor.detach() for name, tensor in made.module.named_parameters()})
    )
    stages, _ = cut(job, whole.eval(), variant)
    torch.testing.assert_close(apply(stages, inputs), trained, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(model(inputs), trained)


@pytest.mark.parametrize("weight_format", LINEAR)
def test_training_rounds_as_inference_does(weight_format: str) -> None:
    """Straight-through: outputs are those of the rounded weight, its gradient that of a plain layer with it."""
    torch.manual_seed(5)
    weight, source = torch.randn(16, 64, requires_grad=True), torch.rand(8, 64)
    linear_rounded(weight_format, source, weight).square().sum().backward()
    stored = unpack(torch.float32, (16, 64), *store(weight, weight_format).values()).requires_grad_()
    inputs = rounded_input(source) if LINEAR[weight_format].rounds_input else source
    torch.nn.functional.linear(inputs, stored).square().sum().backward()
    torch.testing.assert_close(weight.grad, stored.grad)
    kind = LINEAR[weight_format]
    arguments = kind.arguments(kind.pack(weight.detach(), None).values(), (0.0, float(source.max())), None, 16)
    packed = kind.apply(source, *arguments)
    error = (packed - linear_rounded(weight_format, source, weight)).detach().norm() / packed.norm()
    assert error < 0.01


def test_the_least_values_are_zero() -> None:
    """By hand: half of the values, the least ones, and equal ones from the front; masks keep them so while others are trained."""
    assert thinned(torch.tensor([[3.0, -1.0], [2.0, -4.0]]), 0.5).tolist() == [[3.0, -0.0], [0.0, -4.0]]
    assert thinned(torch.ones(1, 4), 0.5).tolist() == [[0.0, 0.0, 1.0, 1.0]]
    parameter = nn.Parameter(torch.arange(1.0, 101.0).view(10, 10))
    masks = Masks([parameter, nn.Parameter(torch.ones(10))], 0.9, 10)
    zeros = []
    for step in range(1, 11):
        with torch.no_grad():
            parameter += 0.1
        masks.after_step(step)
        zeros.append(int((parameter == 0).sum()))
    assert zeros == sorted(zeros) and zeros[0] < zeros[-1] == 90
