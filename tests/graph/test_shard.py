"""Tensor, sequence, context and expert parallelism read off the graph, against what Megatron's papers count by hand."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.graph.coarsen import coarsen
from chinchilla_sim.graph.shard import Collective, ShardedGraph, shard_graph
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS, mlp

LAYERS, WIDTH, TOKENS, BATCH, VALUE = 3, 256, 32, 2, 2.0
TENSOR_BYTES = BATCH * TOKENS * WIDTH * VALUE


def model(formula: str, **options: int) -> TaskGraph:
    """A small decoder with 4 heads."""
    inner = {} if formula == "gpt" else {"inner_width": 512}
    shape = {"layers": LAYERS, "width": WIDTH, "heads": 4, "tokens": TOKENS, "vocabulary": 1024} | inner | options
    return FORMULAS[formula](batch_size=BATCH, training=True, value_bytes=VALUE, **shape)


def exchanges(part: ShardedGraph, way: str) -> Counter[tuple[str, str, float]]:
    """How often each collective is run in one direction."""
    found: list[Collective] = [one for row in part.collectives.values() for one in getattr(row, way)]
    return Counter((one.axis, one.kind, one.payload_bytes) for one in found)


def test_decoder_reduces_twice_a_layer_and_once_for_the_vocabulary() -> None:
    """Shoeybi et al. 2019: two all-reduces of b s h forward and two back per layer, one more for the embedding and for the head.

    A loss of the user's own reads all logits: they are gathered.
    """
    part = shard_graph(model("llama"), tensor=4)
    logits = BATCH * TOKENS * 1024 * VALUE / 4
    assert exchanges(part, "forward") == {("tensor", "all_reduce", TENSOR_BYTES): 2 * LAYERS + 1, ("tensor", "all_gather", logits): 1}
    assert exchanges(part, "backward") == {("tensor", "all_reduce", TENSOR_BYTES): 2 * LAYERS + 1}


def test_all_products_and_nearly_all_weights_are_divided() -> None:
    """Flop by 4; weights by 4 but for the norms."""
    graph = model("llama")
    part = shard_graph(graph, tensor=4).graph
    assert graph.forward_flop / part.forward_flop == pytest.approx(4)
    assert graph.backward_flop / part.backward_flop == pytest.approx(4)
    norms = (2 * LAYERS + 1) * WIDTH * VALUE
    assert part.total_parameter_bytes == pytest.approx((graph.total_parameter_bytes - norms) / 4 + norms)


def test_sequence_parallelism_divides_the_rest() -> None:
    """Korthikanti et al. 2022: with it every tensor is divided by t, and the same bytes are exchanged."""
    graph = model("gpt")
    plain, sequence = shard_graph(graph, tensor=4), shard_graph(graph, tensor=4, sequence=True)
    assert exchanges(plain, "forward") == exchanges(sequence, "forward")
    inner = [(task.output_bytes, part.output_bytes) for task, part in zip(graph.compute_tasks, sequence.graph.compute_tasks, strict=True)]
    assert all(own == pytest.approx(whole / 4) for whole, own in inner)
    assert sum(own for _, own in inner) < sum(task.output_bytes for task in plain.graph.compute_tasks)


def test_two_linear_layers_are_cut_by_columns_then_rows() -> None:
    """784-512-10: split in between, one all-reduce of the ten outputs; the model's input needs no gradient."""
    part = shard_graph(mlp([784, 512, 10], 64), tensor=2)
    assert exchanges(part, "forward") == {("tensor", "all_reduce", 64 * 10 * 4.0): 1}
    assert exchanges(part, "backward") == {}
    assert part.graph.tasks[part.graph.position["relu"]].output_bytes == 64 * 512 * 4 / 2


def test_context_parallelism_passes_keys_and_values() -> None:
    """Each of c devices has s / c positions and passes their keys and values on: once forward, twice back; weights stay whole."""
    graph = model("gpt")
    part = shard_graph(graph, context=2)
    assert exchanges(part, "forward") == {("context", "all_gather", 2 * TENSOR_BYTES / 2): LAYERS}
    assert exchanges(part, "backward") == {("context", "all_gather", 4 * TENSOR_BYTES / 2): LAYERS}
    assert part.graph.total_parameter_bytes == graph.total_parameter_bytes
    assert graph.forward_flop / part.graph.forward_flop == pytest.approx(2)


def test_experts_are_divided_and_rows_travel() -> None:
    """4 experts on 4 replicas: a quarter of their weights each; rows go there and back, forward and backward, in every layer."""
    graph = model("mixture_of_experts", experts=4, active_experts=2)
    part = shard_graph(graph, expert=4)
    experts = sum(weight.bytes for name, weight in graph.weights.items() if ".experts." in name)
    assert graph.total_parameter_bytes - part.graph.total_parameter_bytes == pytest.approx(experts * 3 / 4)
    rows = ("expert", "all_to_all", 2 * TENSOR_BYTES)
    assert exchanges(part, "forward") == exchanges(part, "backward") == {rows: 2 * LAYERS}


@given(st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from([1, 2]), st.integers(4, 30))
def test_groups_have_the_sums_of_their_members(tensor: int, sequence: bool, context: int, groups: int) -> None:
    """Coarse and fine graphs are divided alike, and run the same collectives."""
    graph = model("llama")
    fine, coarse = (shard_graph(one, tensor, sequence, context) for one in (graph, coarsen(graph, groups)))
    assert coarse.graph.forward_flop == pytest.approx(fine.graph.forward_flop)
    assert coarse.graph.total_parameter_bytes == pytest.approx(fine.graph.total_parameter_bytes)
    assert exchanges(coarse, "forward") == exchanges(fine, "forward")
    assert exchanges(coarse, "backward") == exchanges(fine, "backward")


def test_one_device_has_it_all() -> None:
    """Degrees of 1 change nothing."""
    graph = model("gpt")
    part = shard_graph(graph)
    assert part.graph == graph
    assert exchanges(part, "forward") == exchanges(part, "backward") == {}
