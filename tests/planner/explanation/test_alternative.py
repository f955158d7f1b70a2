"""A configuration in a few words becomes a search for its best plan; everything that is wrong is said at once."""

import json
from pathlib import Path

import pytest

from chinchilla_sim.cli.app import app
from chinchilla_sim.errors import NoFeasiblePlanError, ScenarioError
from chinchilla_sim.planner.explanation.alternative import FIELDS, search_instead
from chinchilla_sim.scenario.search import SearchSpec

SEED = Path(__file__).parents[3] / "scenarios" / "seed_four_nodes.toml"


def test_every_key_names_a_list_of_the_search() -> None:
    """Law: each key sets exactly its own field, and lifts the limits on ranks."""
    values = {"schedule": "gpipe", "recompute": "full", "gradients": "int8", "activations": "fp16", "delay": 1}
    asked = SearchSpec(minimum_ranks=3, maximum_ranks=4)
    for key, field in FIELDS.items():
        changed = search_instead(asked, f"{key}={values.get(key, 2)}")
        assert getattr(changed, field) == (values.get(key, 2),)
        others = set(FIELDS.values()) - {field}
        assert all(getattr(changed, other) == getattr(asked, other) for other in others)
        assert (changed.minimum_ranks, changed.maximum_ranks) == (1, None)


def test_all_mistakes_at_once() -> None:
    """Unknown key, no number, unknown schedule, ZeRO 4."""
    with pytest.raises(ScenarioError) as caught:
        search_instead(SearchSpec(), "dp=0,width=3,schedule=fastest,zero=4")
    for part in ("dp=0", "width=3", "schedule=fastest", "zero=4"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("text", "what"), [("", "names nothing"), (" , ", "names nothing"), ("dp=8,dp=4", "second value for dp")])
def test_nothing_and_twice_are_mistakes(text: str, what: str) -> None:
    """A comparison with nothing, or with two values of one key, is refused."""
    with pytest.raises(ScenarioError, match=what):
        search_instead(SearchSpec(), text)


def test_why_not_eight_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    """The command compares time and memory of both; what the search prefers is not slower."""
    app(["explain", str(SEED), "--instead", "dp=4,pp=1,gradients=none", "--json"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)
    assert found["instead"]["plan"].startswith("4 replicas")
    assert found["chosen"]["step_s"] < found["instead"]["step_s"]
    assert 0 < found["instead"]["peak_memory_share"] < 1


def test_what_does_not_fit_says_by_how_much(tmp_path: Path) -> None:
    """Infeasible is an answer: the constraint, and what is missing."""
    scenario = tmp_path / "small.toml"
    scenario.write_text(SEED.read_text().replace('"16 GiB"', '"700 MiB"'))
    with pytest.raises(NoFeasiblePlanError, match="too little") as caught:
        app(["explain", str(scenario), "--instead", "dp=2,pp=1"], result_action="return_value")
    assert caught.value.exit_code == 1


def test_plan_json_has_bound_gap_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The fields that others read, with a bound that is not above the plan."""
    app(["plan", str(SEED), "--json", "--time-limit", "30s"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)
    assert {"plan", "simulated_step_s", "lower_bound_s", "gap", "candidates", "search_s", "truncated"} <= found.keys()
    assert 0 < found["lower_bound_s"] <= found["simulated_step_s"]
    assert found["gap"] >= 0
    assert found["search_s"] > 0
    assert found["truncated"] is False
