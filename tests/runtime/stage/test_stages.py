"""Cutting a model: the stages in a row are the model."""

import itertools

import pytest
import torch

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.contract import factory_of, load_job
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.runtime.stage.stages import cut_stages
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph

CPU = torch.device("cpu")


def pipeline(names: list[str], cuts: tuple[int, ...]) -> Plan:
    """A pipeline of one microbatch that cuts the tasks at these positions."""
    edges = [0, *cuts, len(names)]
    stages = tuple(tuple(names[start:end]) for start, end in itertools.pairwise(edges))
    count = len(stages)
    placement = tuple((rank,) for rank in range(count))
    return Plan(stages, placement, tuple(range(count)), 24, 1, "1f1b", ("none",) * count, ("none",) * (count - 1))


def test_stages_in_a_row_are_the_model(own: Scenario) -> None:
    """Wherever three stages are cut, skips over stages and from the input arrive, and outputs are the model's to the bit."""
    graph, _ = build_graph(own)
    names = [task.name for task in graph.compute_tasks]
    allowed = [index + 1 for index, may_cut in enumerate(allowed_cuts(graph, training=True)[:-1]) if may_cut]
    job = load_job(*factory_of(own))
    model = job.model()
    inputs = torch.randn(24, 12)
    pairs = [(first, second) for first in allowed for second in allowed if first < second]
    assert len(pairs) >= 6
    for cuts in pairs:
        tensors: tuple[torch.Tensor, ...] = (inputs,)
        plan = pipeline(names, cuts)
        for position in range(3):
            (stage,) = cut_stages(job, model, plan, (position,), CPU)
            outputs = stage(*tensors)
            tensors = outputs
        torch.testing.assert_close(stage.restore(outputs), model(inputs), rtol=0, atol=0)


def test_plan_of_another_model_is_refused(own: Scenario) -> None:
    """A plan whose tasks the traced model does not have names the difference."""
    job = load_job(*factory_of(own))
    with pytest.raises(RunError, match="conv7"):
        cut_stages(job, job.model(), pipeline(["linear", "conv7"], (1,)), (0,), CPU)
