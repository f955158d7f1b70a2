"""Attention that stores its scores, against the counts of Korthikanti et al. 2022."""

import pytest

from chinchilla_sim.graph.attention import with_separate_attention
from chinchilla_sim.graph.zoo import FORMULAS


def test_scores_are_kept_as_published() -> None:
    """5 a s^2 b bytes more per layer in half precision: softmax 2, its mask 1, its dropped output 2."""
    layers, heads, tokens, batch = 3, 4, 32, 2
    graph = FORMULAS["gpt"](
        batch_size=batch, training=True, value_bytes=2.0, layers=layers, width=64, heads=heads, tokens=tokens, vocabulary=99
    )
    separate = with_separate_attention(graph)
    more = sum(task.saved_bytes for task in separate.tasks) - sum(task.saved_bytes for task in graph.tasks)
    assert more == pytest.approx(layers * 5 * heads * tokens**2 * batch)
    assert not any(task.name in task.saved for task in separate.tasks)
    assert separate.forward_flop == graph.forward_flop
    moved = [sum(task.read_bytes + task.written_bytes for task in one.tasks) for one in (graph, separate)]
    assert moved[1] - moved[0] == pytest.approx(layers * (6 * 2 + 1) * heads * tokens**2 * batch)


def test_without_attention_nothing_changes() -> None:
    """A chain has no scores."""
    graph = FORMULAS["resnet"](batch_size=1, training=True, value_bytes=2.0, depth=18)
    assert with_separate_attention(graph) == graph
