"""The result of a search as JSON."""

import json
from dataclasses import replace

from chinchilla_sim.report.pages.result import search_dict
from chinchilla_sim.report.study import Study
from chinchilla_sim.validation.compare import Comparison, Measurement


def test_search_dict_is_json_with_the_search_s_numbers(pipeline: Study) -> None:
    """The dictionary survives JSON and holds the numbers of the search, in base units."""
    found = json.loads(json.dumps(search_dict(pipeline), allow_nan=False))
    search = pipeline.search
    assert (found["simulated_step_s"], found["considered"], found["simulated"]) == (search.best.step_s, search.considered, search.simulated)
    assert [row["step_s"] for row in found["candidates"]] == [search.best.step_s, *(candidate.step_s for candidate in search.runner_ups)]
    assert found["one_rank"]["rank_count"] == 1
    assert [row["peak_memory_bytes"] for row in found["ranks"]] == [search.best.timeline.peak_memory_bytes(rank) for rank in range(2)]
    assert "comparison" not in found and "metrics" not in found


def test_search_dict_holds_what_was_measured(measured: Study) -> None:
    """Comparison and metrics are there after a run; a metric that is no number becomes null."""
    assert measured.measurement and isinstance(measured.comparison, Comparison)
    assert search_dict(measured)["comparison"] == measured.comparison.to_dict()
    failed: Measurement = replace(measured.measurement, metrics={"validation_loss": float("nan")})
    assert search_dict(replace(measured, measurement=failed))["metrics"] == {"validation_loss": None}
