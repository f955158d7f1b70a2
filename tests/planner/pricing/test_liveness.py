"""What comes and goes while passes run, worked out by hand."""

import numpy as np
import pytest

from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.planner.action import Op, parse_action
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.liveness import Liveness
from chinchilla_sim.planner.pricing.prices import StagePrice, rank_memory

LAYERS = mlp([6, 8, 4], batch_size=10)
"""linear 6 x 8, relu, linear 8 x 4, loss, in batches of 10: outputs of 320, 320 and 160 B."""


def residual() -> TaskGraph:
    """x = linear(input); y = relu(x); x + y; a linear layer, all of 10 x 5."""
    builder = GraphBuilder(10)
    x = builder.apply("linear", [builder.input("input", (10, 5)), builder.weight("a", (5, 5))], [(10, 5)])
    y = builder.apply("relu", [x], [(10, 5)])
    total = builder.apply("add", [x, y], [(10, 5)])
    return builder.finish(builder.apply("linear", [total, builder.weight("b", (5, 5))], [(10, 5)]), "residual")


def test_backward_pass_holds_gradients_behind_and_those_it_makes() -> None:
    """At the loss two gradients of the logits; then that of the output and that of the input; the first layer makes none."""
    found = dict(zip((task.name for task in LAYERS.tasks), Liveness(LAYERS).backward, strict=True))
    assert [found[name] for name in ("loss", "linear_1", "relu", "linear")] == [2 * 160, 160 + 320, 320 + 320, 320]


def test_a_sum_hands_its_gradient_on() -> None:
    """Both operands of x + y have one gradient in common until the other reader of x adds its own."""
    graph = residual()
    found = dict(zip((task.name for task in graph.tasks), Liveness(graph).backward, strict=True))
    assert [found[name] for name in ("linear_1", "add", "relu", "linear")] == [2 * 200, 200, 2 * 200, 200]


def test_forward_pass_holds_what_is_still_read() -> None:
    """x waits beside y for their sum; nothing else is there with the last layer's two ends."""
    graph = residual()
    found = dict(zip((task.name for task in graph.tasks), Liveness(graph).forward, strict=True))
    assert [found[name] for name in ("linear", "relu", "add", "linear_1")] == [200, 400, 600, 400]


def test_gradients_grow_while_activations_go() -> None:
    """The first backward pass peaks where relu's output, both gradients there and the last layer's are, or at the first layer's."""
    tasks = LAYERS.compute_tasks
    levels = Liveness(LAYERS).levels(tasks, None, (), 0.0)
    last, first = 4 * (8 * 4 + 4), 4 * (6 * 8 + 8)
    assert levels.growth().tolist() == [first + last, last, last, 0]
    assert levels.growth([2, 4]).tolist() == [first, 0, last, 0]
    # relu's output and the log-probabilities are kept; the batch is there anyway.
    assert levels.saved == 320 + 160
    assert levels.there.tolist() == [320, 320 + 640, 320 + 480, 480 + 320]
    assert levels.highest(1.0, levels.growth()) == max(320 + first + last, 960 + last, 800 + last, 800)
    assert levels.highest(0.5, levels.made) == max(160 + first, 480, 400 + last, 400)


def test_what_waits_for_its_weight_gradient() -> None:
    """Each layer leaves the gradient of its output and its input for W; the batch is there anyway."""
    levels = Liveness(LAYERS).levels(LAYERS.compute_tasks, None, (), 0.0)
    assert levels.deferred.tolist() == [320, 0, 160, 0]
    assert levels.highest(1.0, np.zeros(4), split=True) == 320 + 640 + 160


def convolution(channels: int) -> TaskGraph:
    """One convolution of 8 x 8 images with as many channels out as in."""
    builder = GraphBuilder(2)
    shape = (2, channels, 8, 8)
    x = builder.input("input", shape)
    weight = builder.weight("w", (channels, channels, 1, 1))
    return builder.finish(builder.apply("conv2d", [x, weight], [shape]), "convolution")


@pytest.mark.parametrize(("channels", "copied"), [(3, 0), (8, 16), (16, 16), (24, 32)])
def test_convolutions_copy_blocks_of_sixteen_channels(channels: int, copied: int) -> None:
    """Its output is made in full blocks and copied; up to three channels are not laid out anew."""
    graph = convolution(channels)
    task = next(task for task in graph.tasks if task.op == "conv2d")
    pixel = 4 * 2 * 64
    assert Liveness(graph).forward_bytes([task]) == pixel * (channels + copied)


def test_messages_of_a_rank_by_hand() -> None:
    """Two receives are posted ahead; what was sent ahead goes when its gradient comes, what was sent back with the update."""
    price = StagePrice({}, 0.0, {}, saved_bytes=100.0, gradient_bytes=7.0, awaited_bytes=(10.0, 1.0), sent_bytes=(20.0, 2.0))
    plan = Plan((("a",),), ((0,),), (0,), 2, 2, "1f1b", ("none",), (), receives_in_flight=2)
    row = [parse_action(f"0{text}") for text in ("F0", "F1", "B0", "B1")]
    memory = rank_memory(plan, {0: price}, row)
    # Posted: F0 F1 | F1 B0 | B0 B1 | B1 | nothing.
    assert [left for _, left in memory.changes] == [20 - 10 + 1 + 100 + 20, -10 + 1 + 100 + 20, -1 - 100 + 7 - 20 + 2, -1 - 100 - 20 + 2]
    assert memory.freed_bytes == {0: 7 + 2 * 2}
    assert sum(left for _, left in memory.changes) == 7 + 2 * 2


def test_first_backward_pass_needs_other_than_later_ones() -> None:
    """A pass takes the transients of its turn."""
    price = StagePrice({}, 0.0, {}, saved_bytes=100.0, transients={Op.B: (5.0, 9.0)}, gradient_bytes=7.0)
    plan = Plan((("a",),), ((0,),), (0,), 2, 2, "1f1b", ("none",), ())
    memory = rank_memory(plan, {0: price}, [parse_action(f"0{text}") for text in ("F0", "B0", "F1", "B1")])
    assert memory.changes == ((100, 100), (5, 7 - 100), (100, 100), (9, -100))
