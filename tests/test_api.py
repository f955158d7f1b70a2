"""The package from Python: light to import, and the same answers as the commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import chinchilla_sim
from chinchilla_sim import compare, find_plans, load_scenario, run, show, simulate
from chinchilla_sim.errors import NoFeasiblePlanError, ScenarioError
from tests.test_cli import FOUR_NODES, MNIST, ROOT, chinchilla, printed


def test_the_import_is_light() -> None:
    """`import chinchilla_sim` loads nothing heavy; its names load the planner, and still neither torch nor matplotlib."""
    heavy = {"torch", "matplotlib", "numpy", "pydantic", "rich", "networkx", "scipy"}
    code = (
        f"import sys, chinchilla_sim\nassert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)\n"
        "assert 'find_plans' in dir(chinchilla_sim)\n"
        f"chinchilla_sim.show(chinchilla_sim.find_plans({FOUR_NODES!r})[0])\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert told.returncode == 0, told.stderr


def test_unknown_names_are_refused() -> None:
    """A name that is none of the package's is an AttributeError, as in any module; all that are promised are there."""
    with pytest.raises(AttributeError, match="has no attribute 'find_plan'"):
        _ = chinchilla_sim.find_plan
    assert all(callable(getattr(chinchilla_sim, name)) for name in chinchilla_sim.__all__)


def test_plans_are_those_of_the_command(tmp_path: Path) -> None:
    """Best first, with the figures of `chinchilla plan`; a saved plan is read by `chinchilla simulate` and by `simulate`."""
    told = printed(chinchilla("plan", FOUR_NODES, "--json", cwd=tmp_path))
    plans = find_plans(FOUR_NODES)
    assert [(str(plan), plan.step_s) for plan in plans] == [(row["describe"], row["step_s"]) for row in told["candidates"]]
    assert plans[0].lower_bound_s == told["lower_bound_s"] and plans[0].objective == told["objective"]
    assert plans[0].peak_memory_bytes == told["candidates"][0]["peak_memory_bytes"]
    plans[1].save(tmp_path / "plan.json")
    simulated = printed(chinchilla("simulate", "plan.json", "--json", cwd=tmp_path))
    assert simulated["plans"][0]["simulated_step_s"] == plans[1].step_s == simulate(tmp_path / "plan.json").step_s


def test_each_plan_has_the_variant_that_it_is_for() -> None:
    """Where variants of the model compete, every plan simulates to its own step again."""
    scenario = load_scenario(MNIST, ['search.variants=[{prune=0.5}, {quantize="int8"}]'])
    plans = find_plans(scenario)
    assert len({plan.candidate.variant for plan in plans}) > 1
    for plan in plans:
        assert simulate(plan).step_s == pytest.approx(plan.step_s)


def test_another_cluster_is_a_what_if() -> None:
    """Tables as in a scenario, and those of another scenario; one that is too small is refused, as is what is no plan."""
    (best, *_) = find_plans(load_scenario(FOUR_NODES, ["search.minimum_ranks=4"]))
    tables = best.setting.scenario.to_dict()["cluster"]
    faster = simulate(best, tables | {"network": {"bandwidth": "100 GB/s", "latency": "1 us"}})
    assert faster.step_s < best.step_s == simulate(best).step_s == simulate(best, best.setting.scenario).step_s
    with pytest.raises(ScenarioError, match="has slots 0 to 0"):
        simulate(best, tables | {"nodes": [tables["nodes"][0] | {"count": 1}]})
    with pytest.raises(ScenarioError, match="give one of find_plans"):
        simulate(3)  # type: ignore[arg-type]
    with pytest.raises(NoFeasiblePlanError, match=r"search\.minimum_ranks"):
        find_plans(load_scenario(FOUR_NODES, ["search.minimum_ranks=9"]))


def test_a_run_is_measured_compared_and_shown(tmp_path: Path) -> None:
    """20 steps for real: the comparison is of these and tells causes; the figure has both steps; the folder is that of a run."""
    (best, *_) = find_plans(MNIST)
    measured = run(best, tmp_path / "run", steps=20)
    assert len(measured.step_s) == 15
    assert {"plan.json", "measurement.json", "weights.pt"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert json.loads((tmp_path / "run" / "measurement.json").read_text())["step_s"] == list(measured.step_s)
    found = compare(best, measured)
    assert found.measured_step_s == measured.median_step_s and found.simulated_step_s == pytest.approx(best.step_s)
    assert found.attribution is not None and compare(best.timeline, measured).relative_error == pytest.approx(found.relative_error)
    shown = show(best, measured)
    svg = shown._repr_svg_()
    assert svg is not None and svg.startswith("<svg") and "measured step" in svg and svg in shown._repr_html_()
    assert repr(shown).count("one step, ") == 2
    assert show(found)._repr_svg_() is None and "relative error" in repr(show(found)) and show(found)._repr_html_().startswith("<pre>")
