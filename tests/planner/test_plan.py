"""Plans: what follows from the decisions, how they read, and what contradicts itself."""

from dataclasses import replace
from typing import Any

import pytest

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of


@pytest.fixture(scope="module")
def grid() -> Plan:
    """Two stages x two replicas, neighbouring ranks in one replica."""
    return Plan(
        stages=(("a", "b"), ("c",)),
        placement=((0, 2), (1, 3)),
        slots=(4, 5, 6, 7),
        global_batch_size=64,
        microbatch_count=4,
        schedule="1f1b",
        gradient_codecs=("int8", "none"),
        activation_codecs=("fp16",),
    )


def test_properties_follow_from_the_decisions(grid: Plan) -> None:
    """64 samples over 2 replicas in 4 microbatches are 8 each; rank and (stage, replica) are inverse to each other."""
    assert (grid.pipeline_parallel_degree, grid.data_parallel_degree, grid.rank_count, grid.microbatch_size) == (2, 2, 4, 8)
    assert grid.position == {0: ((0,), 0), 1: ((1,), 0), 2: ((0,), 1), 3: ((1,), 1)}
    assert all(grid.rank_of(stage, replica) == rank for rank, ((stage,), replica) in grid.position.items())
    assert grid.training and not replace(grid, schedule="forward").training
    assert mistakes_of(grid) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "2 stages x 2 replicas, 4 microbatches of 8, 1f1b, activations fp16, gradients int8"),
        ({"microbatch_count": 1}, "2 stages x 2 replicas, activations fp16, gradients int8"),
        ({"schedule": "forward", "activation_codecs": ("none",)}, "2 stages x 2 replicas, 4 microbatches of 8, forward"),
        ({"placement": ((0,), (1,)), "slots": (0, 1)}, "2 stages, 4 microbatches of 16, 1f1b, activations fp16"),
        (
            {"stages": (("a", "b", "c"),), "placement": ((0, 1),), "slots": (0, 1), "activation_codecs": ()},
            "2 replicas, 4 microbatches of 8, gradients int8",
        ),
        ({"stages": (("a",),), "placement": ((0,),), "slots": (0,), "activation_codecs": (), "microbatch_count": 1}, "one rank"),
    ],
)
def test_plan_reads_as_one_line(grid: Plan, changes: dict[str, Any], text: str) -> None:
    """A plan says its split, microbatches, schedule and codecs, and nothing that does not matter."""
    assert replace(grid, **changes).describe() == text


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"stages": (("a",), ())}, ["stages"]),
        ({"placement": ((0, 2),)}, ["placement", "placement"]),
        ({"placement": ((0, 1), ()), "slots": (0, 1)}, ["placement"]),
        ({"placement": ((0, 1), (1, 3))}, ["placement"]),
        ({"placement": ((0, 2), (1, 4))}, ["placement"]),
        ({"slots": (4, 5, 6)}, ["placement"]),
        ({"slots": (4, 5, 6, 6)}, ["slots"]),
        ({"gradient_codecs": ("none",)}, ["gradient_codecs"]),
        ({"activation_codecs": ()}, ["activation_codecs"]),
        ({"microbatch_count": 3}, ["microbatch_count"]),
        ({"microbatch_count": 128}, ["microbatch_count"]),
        ({"replica_microbatch_counts": (3, 1), "zero_stage": 3, "gradient_codecs": ("none", "none")}, ["replica_microbatch_counts"]),
        ({"replica_microbatch_counts": (3, 1), "expert_parallel_degree": 2}, ["replica_microbatch_counts"]),
        ({"stages": (), "placement": (), "slots": (), "gradient_codecs": (), "activation_codecs": ()}, ["stages", "placement"]),
        ({"gradient_codecs": (), "activation_codecs": (), "slots": (1, 1, 1, 1)}, ["slots", "gradient_codecs", "activation_codecs"]),
    ],
)
def test_each_contradiction_is_named_by_its_field(grid: Plan, changes: dict[str, Any], fields: list[str]) -> None:
    """A plan written by hand that contradicts itself is told field by field, all at once."""
    assert [field for field, _ in mistakes_of(replace(grid, **changes))] == fields
