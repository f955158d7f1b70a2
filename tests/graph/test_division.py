"""What the devices of a tensor-parallel group do with each operator, on small graphs by hand."""

from collections import Counter

import pytest

from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.division import GraphDivision, divide_graph
from chinchilla_sim.graph.layout import Layout
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS

WIDTH = 96


def attention(heads: int, parts_first: bool) -> TaskGraph:
    """One product for queries, keys and values, viewed as (three, heads) or (heads, three), and the product behind the heads."""
    net = GraphBuilder(2, True)
    x = net.apply("linear", [net.input("x", (2, 5, WIDTH)), net.weight("in", (WIDTH, WIDTH))], [(2, 5, WIDTH)], name="in")
    x = net.apply("layer_norm", [x, net.weight("norm", (WIDTH,))], [(2, 5, WIDTH)])
    y = net.apply("linear", [x, net.weight("qkv", (3 * WIDTH, WIDTH)), net.weight("bias", (3 * WIDTH,))], [(2, 5, 3 * WIDTH)], name="qkv")
    each = WIDTH // heads
    order, dims = ((3, heads), (2, 0, 3, 1, 4)) if parts_first else ((heads, 3), (3, 0, 2, 1, 4))
    y = net.apply("view", [y], [(2, 5, *order, each)], view=True)
    y = net.apply("permute", [y], [(3, 2, heads, 5, each)], view=True, attributes={"dims": dims})
    parts = [net.apply("select", [y], [(2, heads, 5, each)], view=True, attributes={"dim": 0, "index": i}) for i in range(3)]
    y = net.apply("scaled_dot_product_attention", parts, [(2, heads, 5, each)], name="attention")
    y = net.apply("transpose", [y], [(2, 5, heads, each)], view=True, attributes={"dim0": 1, "dim1": 2})
    y = net.apply("reshape", [y], [(2, 5, WIDTH)])
    return net.finish(net.apply("linear", [y, net.weight("out", (WIDTH, WIDTH))], [(2, 5, WIDTH)], name="out"), "attention")


def gathers(division: GraphDivision) -> int:
    """How many tensors are made whole."""
    return sum(len(one.gathered) for one in division.operators.values())


@pytest.mark.parametrize(("parts_first", "parts"), [(True, 3), (False, 1)])
def test_fused_queries_keys_and_values_are_divided_by_heads(parts_first: bool, parts: int) -> None:
    """Each device holds its heads of all three, whichever of both the weights list first; nothing is gathered."""
    division = divide_graph(attention(4, parts_first), 2)
    assert division.weights["qkv"] == division.weights["bias"] == Layout(0, parts)
    assert division.operators["attention"].output == Layout(1)
    assert division.operators["out"].kind == "rows" and division.weights["out"] == Layout(1)
    assert gathers(division) == 1  # the first product is divided by columns, and the norm wants it whole


def test_heads_that_do_not_divide_are_made_whole() -> None:
    """Three heads on two devices: the products are divided, attention runs whole on both."""
    division = divide_graph(attention(3, parts_first=True), 2)
    assert division.operators["attention"].kind == "whole" and division.operators["attention"].output is None
    assert gathers(division) > 1


def test_tied_table_is_divided_once() -> None:
    """Rows of the embedding are columns of the head: one layout serves both."""
    graph = FORMULAS["gpt"](batch_size=2, layers=1, width=64, heads=4, tokens=8, vocabulary=256)
    division = divide_graph(graph, 2)
    assert division.weights["transformer.wte.weight"] == Layout(0)
    kinds = Counter(one.kind for one in division.operators.values())
    assert kinds["lookup"] == 1 and "transformer.wpe.weight" not in division.weights  # positions are a small table
    assert kinds["columns"] == 3 and kinds["rows"] == 2


def test_weight_that_two_operators_would_divide_differently_stays_whole() -> None:
    """A square weight that one product divides by columns and the next by rows."""
    net = GraphBuilder(2, True)
    weight = net.weight("both", (WIDTH, WIDTH))
    x = net.apply("linear", [net.input("x", (2, WIDTH)), weight], [(2, WIDTH)], name="first")
    x = net.apply("linear", [net.apply("relu", [x], [(2, WIDTH)]), weight], [(2, WIDTH)], name="second")
    division = divide_graph(net.finish(x, "tied"), 2)
    assert division.weights == {} and all(one.kind == "whole" for one in division.operators.values())


def test_one_head_of_keys_stays_whole() -> None:
    """Queries divided by heads meet a key of one head: it is read whole, and its gradient summed over the devices."""
    net = GraphBuilder(2, True)
    x = net.apply("linear", [net.input("x", (2, 5, 64)), net.weight("in", (16, 64))], [(2, 5, 16)], name="in")
    q = net.apply("linear", [x, net.weight("q", (64, 16))], [(2, 5, 64)], name="q")
    q = net.apply("view", [q], [(2, 5, 4, 16)], view=True)
    q = net.apply("transpose", [q], [(2, 4, 5, 16)], view=True, attributes={"dim0": 1, "dim1": 2})
    k = net.apply("linear", [x, net.weight("k", (16, 16))], [(2, 5, 16)], name="k")
    k = net.apply("transpose", [net.apply("unsqueeze", [k], [(2, 1, 5, 16)], view=True, attributes={"dim": 1})], [(2, 1, 16, 5)],
                  view=True, attributes={"dim0": 2, "dim1": 3}, name="keys")  # fmt: skip
    net_output = net.apply("matmul", [q, k], [(2, 4, 5, 5)], name="scores")
    division = divide_graph(net.finish(net_output, "one"), 2)
    assert division.operators["scores"].reduced == ("keys",) and division.operators["scores"].output == Layout(1)
