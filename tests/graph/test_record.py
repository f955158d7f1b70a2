"""Models that torch.export refuses: recorded from one run, told with the line, and equal to the trace where both work."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chinchilla_sim.graph.builder import GraphBuilder
from chinchilla_sim.graph.record import record_model
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.trace import trace_job

BATCH = 4


class Branching(nn.Module):
    """Control flow that looks at values: one linear layer or two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) -> (batch, 2)."""
        y = self.first(x)
        if y.sum() > 1e9:
            y = self.first(y)
        return self.second(y)  # type: ignore[no-any-return]


class Job:
    """Plans a module over (batch, 8)."""

    def __init__(self, module: type[nn.Module]) -> None:
        self.module = module

    def model(self) -> nn.Module:
        """A fresh module."""
        return self.module()

    def example_batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return torch.zeros(size, 8), torch.zeros(size, dtype=torch.int64)


class Straight(nn.Module):
    """A network without control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) -> (batch, 2)."""
        return self.layers(x)  # type: ignore[no-any-return]


def recorded(module: nn.Module) -> TaskGraph:
    """Graph of one run."""
    builder = GraphBuilder(BATCH)
    return builder.finish(record_model(module, [torch.zeros(BATCH, 8)], builder), "recorded")


def test_control_flow_is_recorded_and_told_with_its_line() -> None:
    """The branch that ran counts, and the note names this file and the line of the `if`."""
    graph = trace_job(Job(Branching), BATCH, True, "branching")  # type: ignore[arg-type]
    assert (graph.forward_flop, graph.parameter_count) == (2 * BATCH * (8 * 8 + 8 * 2), 8 * 8 + 8 + 8 * 2 + 2)
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), start=1) if "y.sum() > 1e9" in text)
    assert f"test_record.py:{line}" in graph.notes[0]


def test_recording_equals_tracing() -> None:
    """Flop of both passes, parameters and the gradients' path are the same however the graph was made."""
    traced = trace_job(Job(Straight), BATCH, True, "traced")  # type: ignore[arg-type]
    run = recorded(Straight())
    for amount in ("forward_flop", "backward_flop", "parameter_count", "total_parameter_bytes"):
        assert getattr(run, amount) == getattr(traced, amount)


def test_recorded_tasks_know_their_module() -> None:
    """Every product names the module that it belongs to."""
    modules = [task.module for task in recorded(Straight()).tasks if task.forward_flop]
    assert modules == ["layers.0", "layers.3"]


@pytest.mark.parametrize("module", [Straight, Branching])
def test_recording_leaves_the_model_as_it_was(module: type[nn.Module]) -> None:
    """No hook stays behind."""
    model = module()
    recorded(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
