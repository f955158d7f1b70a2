"""The formula of a multilayer perceptron against numbers worked out by hand."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.graph.zoo import mlp


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(1, 64))
def test_flop_of_a_perceptron(widths: list[int], batch_size: int) -> None:
    """Forward is 2 b i o per layer; backward is twice that, less the input gradient of the first layer."""
    graph = mlp(widths, batch_size)
    layers = [2 * batch_size * i * o for i, o in pairwise(widths)]
    assert graph.forward_flop == sum(layers)
    assert graph.backward_flop == 2 * sum(layers) - layers[0]
    assert graph.total_parameter_bytes == sum(4 * (i * o + o) for i, o in pairwise(widths))


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(1, 16), st.integers(2, 4))
def test_batch_scales_activations_and_flop_but_not_parameters(widths: list[int], batch_size: int, factor: int) -> None:
    """A batch `factor` times as large has `factor` times the flop and output bytes, and the same parameters."""
    small, large = mlp(widths, batch_size), mlp(widths, factor * batch_size)
    assert large.forward_flop == factor * small.forward_flop
    assert [task.output_bytes for task in large.tasks[:-1]] == [factor * task.output_bytes for task in small.tasks[:-1]]
    assert large.weights == small.weights


def test_the_article_network_by_hand() -> None:
    """784-512-10 at batch 64: flop, bytes and what each task keeps, as a person computes them."""
    _input, first, relu, second, loss = mlp([784, 512, 10], 64).tasks
    assert (first.forward_flop, first.input_gradient_flop, first.weight_gradient_flop) == (51_380_224, 0, 51_380_224)
    assert (second.forward_flop, second.input_gradient_flop, second.weight_gradient_flop) == (655_360, 655_360, 655_360)
    x, h, y, w1, w2 = 64 * 784 * 4, 64 * 512 * 4, 64 * 10 * 4, 784 * 512 * 4, 512 * 10 * 4
    assert (first.read_bytes, first.written_bytes) == (x + w1 + 512 * 4, h)
    assert (first.backward_read_bytes, first.backward_written_bytes) == (h + x, w1 + 512 * 4)
    assert (second.backward_read_bytes, second.backward_written_bytes) == (y + h + w2, w2 + 10 * 4 + h)
    assert (relu.read_bytes, relu.written_bytes, relu.backward_read_bytes, relu.backward_written_bytes) == (h, h, 2 * h, h)
    assert [task.saved for task in (first, relu, second, loss)] == [("input",), ("relu",), ("relu",), ("linear_1",)]


def test_applying_a_network_has_no_loss() -> None:
    """Inference ends with the last linear layer."""
    assert mlp([8, 4, 2], 1, training=False).tasks[-1].name == "linear_1"
