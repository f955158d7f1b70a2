"""What the runtime plays: the search keeps to it, and says what it would have to be allowed."""

from dataclasses import replace

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.zoo import chain
from chinchilla_sim.planner.executable import search_mistakes, unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.search import find_plans
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.engine import simulate
from tests.planner.test_search import cluster_of

PLAN = Plan((("a",), ("b",)), ((0,), (1,)), (0, 1), 8, 2, "1f1b", ("none", "none"), ("int8",))


def test_plain_plans_can_be_played() -> None:
    """Pipelines in 1F1B with a codec on the wire run, also on groups of devices; so does every default of [search]."""
    assert unplayable(replace(PLAN, tensor_parallel_degree=2, slots=(0, 1, 2, 3))) == []
    assert unplayable(PLAN) == [] and search_mistakes(SearchSpec()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_stage": 1}, "ZeRO"),
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
    wide = SearchSpec(zero_stages=(0, 1), activation_priorities=(4.0,), variants=(CompressionSpec(prune=0.5),))
    with pytest.raises(ScenarioError) as caught:
        find_plans(chain(2, 8, 1e9, 8.0, 8), cluster_of({}, {}), JobSpec(global_batch_size=8), wide, simulate)
    text = str(caught.value)
    assert "search.zero_stages: asks for 1" in text and "search.activation_priorities: asks for 4.0" in text and "pruned 50 %" in text
    assert "executable = false" in text
    assert search_mistakes(wide.model_copy(update={"executable": False})) == []
