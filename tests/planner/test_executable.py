"""What the runtime plays: the search keeps to it, and says what it would have to be allowed."""

from dataclasses import replace

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.zoo import chain
from chinchilla_sim.planner.executable import search_mistakes, unplayable, variant_mistakes
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from tests.planner.selection.test_search import cluster_of

PLAN = Plan((("a",), ("b",)), ((0,), (1,)), (0, 1), 8, 2, "1f1b", ("none", "none"), ("int8",))


def test_plain_plans_can_be_played() -> None:
    """Pipelines in 1F1B with a codec on the wire run, also on groups of devices; so does every default of [search]."""
    assert unplayable(replace(PLAN, tensor_parallel_degree=2, slots=(0, 1, 2, 3))) == []
    assert unplayable(PLAN) == [] and search_mistakes(SearchSpec()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_stage": 3, "schedule": "zb-h1"}, "ZeRO 3 with split backward passes (FSDP2 divides gradients once a pass)"),
        ({"zero_stage": 3, "gradient_codecs": ("none", "int8")}, "ZeRO 3 with gradient codecs other than none, fp16, bf16"),
        (
            {"zero_stage": 1, "placement": ((0, 1), (2,)), "slots": (0, 1, 2), "shared_stages": ((0, 1),)},
            "ZeRO with weights shared by stages that have replica counts of their own",
        ),
        ({"tensor_parallel_degree": 2, "sequence_parallel": True, "slots": (0, 1, 2, 3)}, "sequence parallelism"),
        ({"context_parallel_degree": 2, "slots": (0, 1, 2, 3)}, "context and expert parallelism"),
        ({"activation_priority": 4.0}, "priorities of messages"),
    ],
)
def test_what_cannot_be_played_is_named(change: dict[str, object], words: str) -> None:
    """Each feature that only the simulator knows is told by its name."""
    assert unplayable(replace(PLAN, **change)) == [words]


def test_all_that_is_too_wide_is_told_at_once() -> None:
    """Values that the runtime cannot play need executable = false, and every one is named."""
    wide = SearchSpec(expert_parallel_degrees=(1, 2), activation_priorities=(4.0,), variants=(CompressionSpec(prune=0.5, quantize="bf16"),))
    with pytest.raises(ScenarioError) as caught:
        find_plans(chain(2, 8, 1e9, 8.0, 8), cluster_of({}, {}), JobSpec(global_batch_size=8), wide, simulate)
    text = str(caught.value)
    assert (
        "search.expert_parallel_degrees: asks for 2" in text
        and "search.activation_priorities: asks for 4.0" in text
        and "pruned 50 %" in text
    )
    assert "executable = false" in text
    assert search_mistakes(wide.model_copy(update={"executable": False})) == []


def test_the_search_leaves_out_what_cannot_be_played_together() -> None:
    """ZeRO 3 with split backward passes or an int8 exchange is never drafted to be run."""
    search = SearchSpec(zero_stages=(3,), schedules=("1f1b", "zb-h1"), gradient_codecs=("int8",), maximum_ranks=4)
    found = find_plans(chain(6, 16, 1e9, 8.0, 8), cluster_of({}, {}), JobSpec(global_batch_size=16), search, simulate)
    for candidate in (found.best, *found.runner_ups):
        assert unplayable(candidate.plan) == []


def test_variants_that_run_may_be_searched() -> None:
    """In inference all; in training all but bf16 weights, which job.precision trains."""
    search = SearchSpec(variants=(CompressionSpec(prune=0.5), CompressionSpec(quantize="int8"), CompressionSpec(quantize="bf16")))
    assert variant_mistakes(search, training=False) == []
    (mistake,) = variant_mistakes(search, training=True)
    assert "asks for bf16 weights, which" in str(mistake)
    assert variant_mistakes(search.model_copy(update={"executable": False}), training=True) == []
