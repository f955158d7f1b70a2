"""Every shipped scenario reproduces its summary byte for byte."""

from pathlib import Path

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.report.pages.summary import summary_text
from chinchilla_sim.running import check_runnable, run_for_real
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.setting import prepare
from chinchilla_sim.workflow import make_best_plan, make_plan, plan_file, study_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.toml")), ids=lambda path: path.stem)
def test_scenario_reproduces_its_summary(path: Path) -> None:
    """`chinchilla report` with the stored calibration writes exactly reports/<scenario>/summary.txt."""
    setting, search = make_best_plan(prepare(load_scenario(path)))
    text = summary_text(study_of(setting, search))
    assert text == (ROOT / "reports" / path.stem / "summary.txt").read_text()


def test_one_node_wins_the_case_of_the_article() -> None:
    """1e10 flop are 1 ms on one node of 10 Tflop/s; every exchange with another costs 1 ms of latency alone."""
    setting = prepare(load_scenario(ROOT / "scenarios" / "seed_four_nodes.toml"))
    search = make_plan(setting)
    assert search.best.plan.rank_count == 1
    assert search.best.step_s == pytest.approx(1e-3)
    assert min(other.step_s for other in search.runner_ups) > 2e-3


def test_a_compressed_model_is_refused_where_it_cannot_be_run(tmp_path: Path) -> None:
    """bf16 weights are trained by precision, and no lane holds a part of a pruned weight: said before anything starts."""
    path = ROOT / "scenarios" / "mnist_mlp.toml"
    with pytest.raises(ScenarioError, match=r'model\.compression\.quantize: .* write job\.precision = "bf16"'):
        check_runnable(load_scenario(path, ["model.compression.quantize=bf16"]))
    lanes = ["search.tensor_parallel_degrees=[2]", "search.data_parallel_degrees=[1]"]
    setting = prepare(load_scenario(path, ["model.compression.prune=0.5", *lanes]))
    assert sum(weight.value_count for weight in setting.graph.weights.values()) == 784 * 256 + 256 + 256 * 10 + 10
    with pytest.raises(ScenarioError, match="does not play tensor parallelism of a compressed model yet"):
        run_for_real(plan_file(setting, make_plan(setting)), tmp_path)


def test_what_the_runtime_does_not_play_is_not_run(tmp_path: Path) -> None:
    """A plan with sequence parallelism is planned and simulated; the run is refused before anything starts."""
    scenario = load_scenario(
        ROOT / "scenarios" / "mnist_mlp.toml",
        [
            "search.tensor_parallel_degrees=[2]",
            "search.sequence_parallel=true",
            "search.data_parallel_degrees=[1]",
            "search.executable=false",
        ],
    )
    setting = prepare(scenario)
    file = plan_file(setting, make_plan(setting))
    assert file.plan.sequence_parallel
    with pytest.raises(ScenarioError, match="the runtime does not play sequence parallelism yet"):
        run_for_real(file, tmp_path)
