"""Recommendation, segmentation and transactions: parameters by hand, traces, deterministic data, and that they learn."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.models import recommendation, segmentation, transactions

SMALL: dict[str, Any] = {
    "recommendation": recommendation.build(tables=4, rows=50, width=8, bottom=(16,), top=(32, 16)),
    "segmentation": segmentation.build(image_size=32, channels=1, width=4, depth=2),
    "transactions": transactions.build(steps=8, merchants=20, embedding=4, hidden=32, layers=1),
}
PARAMETERS = {
    "recommendation": 4 * 50 * 8 + (13 * 16 + 16) + (16 * 8 + 8) + ((8 + 10) * 32 + 32) + (32 * 16 + 16) + 16 + 1,
    # convolutions 3x3 without bias, two numbers per channel of a norm, 2x2 transposed convolutions with bias, the 1x1 head
    "segmentation": 9 * (1 * 4 + 4 * 4 + 4 * 8 + 8 * 8 + 8 * 16 + 16 * 16)
    + 2 * 2 * (4 + 8 + 16)
    + (4 * 16 * 8 + 8 + 4 * 8 * 4 + 4)
    + 9 * (16 * 8 + 8 * 8 + 8 * 4 + 4 * 4)
    + 2 * 2 * (8 + 4)
    + 5,
    "transactions": 20 * 4 + 3 * 32 * (6 + 32) + 2 * 3 * 32 + 32 * 2 + 2,
}


def train(job: Any, epochs: int, learning_rate: float, samples: int = 4096) -> dict[str, float]:
    """Metrics after some epochs of Adam on one thread."""
    torch.manual_seed(0)
    model: nn.Module = job.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    seen = 0
    for epoch in range(epochs):
        for inputs, targets in job.batches("train", 0, epoch):
            if (seen := seen + len(targets)) > samples * (epoch + 1):
                break
            for part in range(0, len(targets), 64):
                batch = tuple(tensor[part : part + 64] for tensor in (inputs if isinstance(inputs, tuple) else (inputs,)))
                optimizer.zero_grad()
                job.loss(model(*batch), targets[part : part + 64]).backward()
                optimizer.step()
    return job.evaluate(model)  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_traced_parameters_equal_the_count_by_hand(name: str, training: bool) -> None:
    """Every parameter of the model is in the graph, and nothing had to be recorded or guessed."""
    graph = trace_job(SMALL[name], 4, training, name)
    assert (graph.parameter_count, graph.notes) == (PARAMETERS[name], ())


def test_lookup_reads_rows_not_the_table() -> None:
    """An EmbeddingBag of bag 1 reads one row per sample; its table does not count as moved."""
    graph = trace_job(SMALL["recommendation"], 4, True, "dlrm")
    bag = next(task for task in graph.tasks if task.op == "embedding_bag")
    assert bag.weight_bytes == 0
    assert bag.read_bytes < 50 * 8 * 4


def test_recurrence_flop_by_hand() -> None:
    """Three gates from inputs (6) and states (32), for each of 4 x 8 tokens."""
    graph = trace_job(SMALL["transactions"], 4, True, "gru")
    gru = next(task for task in graph.tasks if task.op == "gru")
    assert gru.forward_flop == 2 * 4 * 8 * 3 * 32 * (6 + 32)


@pytest.mark.parametrize("name", SMALL)
def test_data_are_the_same_for_the_same_arguments(name: str) -> None:
    """Every rank gets the same bytes; another epoch has others; the example has the shapes of the data."""
    job = SMALL[name]

    def first(*arguments: Any) -> list[Tensor]:
        inputs, targets = next(iter(job.batches(*arguments)))
        return [*(inputs if isinstance(inputs, tuple) else (inputs,)), targets]

    one, same, other = first("train", 0, 0), first("train", 0, 0), first("train", 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    inputs, targets = job.example_batch(len(one[-1]))
    example = [*(inputs if isinstance(inputs, tuple) else (inputs,)), targets]
    assert [(t.shape, t.dtype) for t in example] == [(t.shape, t.dtype) for t in one]
    with pytest.raises(ValueError, match="split"):
        job.batches("test", 0, 0)


def test_recommendation_learns() -> None:
    """Clearly better than guessing, and no better than the model that drew the clicks."""
    metrics = train(SMALL["recommendation"], epochs=6, learning_rate=0.01)
    assert 0.7 < metrics["validation_accuracy"] <= metrics["best_possible_accuracy"] + 0.01


def test_segmentation_learns() -> None:
    """Most pen pixels are found among the noise."""
    assert train(SMALL["segmentation"], epochs=1, learning_rate=0.01, samples=1024)["intersection_over_union"] > 0.5


def test_transactions_learn() -> None:
    """Better than never raising an alarm."""
    metrics = train(SMALL["transactions"], epochs=6, learning_rate=0.01)
    assert metrics["validation_accuracy"] > metrics["accuracy_of_no_alarm"] + 0.03


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: recommendation.build(tables=0), "tables"),
        (lambda: segmentation.build(image_size=30), "image_size"),
        (lambda: transactions.build(steps=2), "steps"),
    ],
)
def test_wrong_options_are_told(make: Any, field: str) -> None:
    """Sizes that make no network are mistakes of the scenario."""
    with pytest.raises(ScenarioError, match=field):
        make()


def test_full_size_images_are_not_there() -> None:
    """Planning needs no data; running says what to do."""
    with pytest.raises(ScenarioError, match="channels = 1"):
        segmentation.build().batches("train", 0, 0)
