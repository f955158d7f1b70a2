"""From a cluster and a time, or a sum of money, to a model size, on a node whose plans are found quickly."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from chinchilla_sim.budget import answer_budget, scenario_of
from chinchilla_sim.cli import app
from chinchilla_sim.cost.scaling import find_law
from chinchilla_sim.errors import NoFeasiblePlanError, ScenarioError
from chinchilla_sim.report.drawing.budget_figure import budget_svg
from chinchilla_sim.report.tables.budget import Budget, BudgetStudy, budget_answer, budget_dict, budget_remarks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.setting import prepare
from chinchilla_sim.workflow import make_plan

HOUR_S, DAY_S = 3600.0, 86400.0
NODE = """
[model]
formula = "gpt"
options = { preset = "gpt2", tokens = 512 }

[job]
global_batch_size = 64
precision = "bf16"
steps = 10

[[cluster.nodes]]
name = "node"
devices = 8
device = "a100-sxm-80gb"

[cluster.network]
bandwidth = "100 Gbit/s"
latency = "10 us"
backend = "nccl"

[search]
executable = false
minimum_ranks = 8
data_parallel_degrees = [8]
microbatch_counts = [1]
zero_stages = [1]
deadline = "1 h"
"""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The scenario's file."""
    path = tmp_path / "node.toml"
    path.write_text(NODE)
    return path


def asked(path: Path, amount: float, *overrides: str, money: bool = False, family: str = "gpt", law: str = "besiroglu-2024") -> BudgetStudy:
    """The answer to a budget."""
    scenario, silent = load_scenario(path, overrides), lambda *_: None
    return answer_budget(scenario, str(path), family, find_law(law), Budget(amount, money), silent, silent)


def run(*arguments: str) -> None:
    """The command, raising its mistakes."""
    app(["budget", *arguments], exit_on_error=False, result_action="return_value")


def test_the_answer_holds_what_it_says(node: Path) -> None:
    """Whole steps within the time, tokens of the scenario's batches, the least loss of all sizes, between neighbours that were planned."""
    study = asked(node, DAY_S)
    best, trade = study.best, study.trade(study.best)
    assert best.batch_tokens == 64 * 512
    assert best.steps(study.budget) * best.wall_s <= DAY_S < (best.steps(study.budget) + 1) * best.wall_s
    assert trade.tokens == best.steps(study.budget) * best.batch_tokens
    assert trade.loss == min(study.trade(one).loss for one in study.sizes)
    assert study.sizes[0].size.parameters < study.parameters.p5 < study.ideal.parameters < study.parameters.p95
    assert study.parameters.p95 <= study.sizes[-1].size.parameters
    assert study.ideal.loss <= trade.loss * (1 + 1e-6)
    assert 5 <= trade.tokens / trade.parameters <= 40
    assert all(0.05 < one.utilization < 0.7 for one in study.sizes)
    tokens, loss = study.futures_of(best)
    assert tokens.p5 < trade.tokens < tokens.p95 and loss.p5 < trade.loss < loss.p95


def test_a_size_has_the_plan_that_the_planner_finds(node: Path) -> None:
    """The step of a size is that of its own scenario, planned alone; the plan file holds that scenario."""
    study = asked(node, DAY_S)
    for one in study.sizes[:2]:
        scenario = scenario_of(load_scenario(node), str(node), one.size, study.budget)
        assert one.file.scenario == scenario and scenario.job.steps is None and scenario.search.deadline_s is None
        assert make_plan(prepare(scenario)).best.step_s == one.step_s == one.wall_s
        assert prepare(scenario).graph.parameter_count == one.size.parameters


def test_more_time_trains_larger_models_to_less_loss(node: Path) -> None:
    """Eight times the days: both grow; as the loss of any size falls, so does the best."""
    less, more = asked(node, DAY_S), asked(node, 8 * DAY_S)
    assert more.ideal.parameters > less.ideal.parameters and more.ideal.tokens > less.ideal.tokens
    assert more.trade(more.best).loss < less.trade(less.best).loss
    assert budget_dict(less) == budget_dict(asked(node, DAY_S))


def test_lost_time_is_no_training(node: Path) -> None:
    """Nodes that fail leave fewer tokens to the same size; the simulated step is the same."""
    failures = 'disturbances.failures={mean_time_between_failures = "12 h", checkpoint = "5 min", restart = "30 min"}'
    calm, failing = asked(node, DAY_S), asked(node, DAY_S, failures)
    by_size = {one.size.parameters: one for one in calm.sizes}
    both = [(by_size[one.size.parameters], one) for one in failing.sizes if one.size.parameters in by_size]
    assert both
    for before, after in both:
        assert after.step_s == before.step_s and 1.1 < after.wall_s / before.wall_s < 2.0
    assert failing.ideal.loss > calm.ideal.loss


def test_money_buys_the_cheapest_plans(node: Path) -> None:
    """A sum is spent to the last step; over a slow link fewer devices take longer and train more for it."""
    degrees = ("search.data_parallel_degrees=[1, 8]", "search.zero_stages=[0, 1]", "search.microbatch_counts=[1, 8]")
    slow = 'cluster.intra_node={ bandwidth = "2 GB/s", latency = "5 us" }'
    few = asked(node, 200.0, slow, *degrees, "search.minimum_ranks=1", money=True)
    all_eight = asked(node, 200.0, slow, money=True)
    for study in (few, all_eight):
        best = study.best
        assert best.step_usd and 200.0 - best.step_usd < best.steps(study.budget) * best.step_usd <= 200.0
    assert few.best.file.plan.rank_count == 1 and all_eight.best.file.plan.rank_count == 8
    assert few.best.steps(few.budget) * few.best.wall_s > all_eight.best.steps(all_eight.budget) * all_eight.best.wall_s
    assert few.trade(few.best).loss <= all_eight.trade(all_eight.best).loss
    unpriced = ("cluster.nodes.0.device=gtx-1080-ti", "cluster.nodes.0.price=0 USD/h", "job.precision=fp32")
    with pytest.raises(ScenarioError, match=r"cluster\.nodes: a device has no price"):
        asked(node, 200.0, *unpriced, money=True)


def test_memory_bounds_the_size(node: Path) -> None:
    """Eight devices of 4 GB without pipeline: larger sizes are listed with the reason, the largest that fits is trained too long."""
    study = asked(node, 30 * DAY_S, "cluster.nodes.0.memory=6 GB")
    assert study.bounded and study.unfit and study.best is study.sizes[-1]
    assert "memory" in study.unfit[0][1]
    assert study.parameters.p95 <= study.sizes[-1].size.parameters
    assert any("largest size that fits" in remark for remark in budget_remarks(study))
    assert study.trade(study.best).tokens / study.best.size.parameters > 40


def test_a_cluster_that_fits_nothing_is_an_answer(node: Path) -> None:
    """The smallest size's own refusal, with its cure."""
    with pytest.raises(NoFeasiblePlanError, match="memory: even of the smallest size, 51"):
        asked(node, DAY_S, "cluster.nodes.0.memory=300 MB")


def test_a_budget_too_small_says_how_much_is_enough(node: Path) -> None:
    """What the message asks for is enough, and not much too much: the best size is then among the smallest."""
    with pytest.raises(NoFeasiblePlanError, match="give about") as refusal:
        asked(node, 10.0)
    number, unit = refusal.value.cure.removeprefix("give about ").partition(",")[0].split()
    enough_s = float(number) * {"s": 1.0, "min": 60.0, "h": 3600.0}[unit]
    study = asked(node, enough_s * 1.1)
    assert study.sizes[0].size.options["width"] == 512
    assert 1.0 <= study.ideal.parameters / study.sizes[0].size.parameters < 2.5
    with pytest.raises(NoFeasiblePlanError, match="give about"):
        asked(node, enough_s * 0.5)


def test_families_and_laws_differ(node: Path) -> None:
    """Llama has its own tokens where the scenario is of another family; Hoffmann's coefficients ask for smaller models, without a range of
    their own."""
    llama = asked(node, DAY_S, family="llama")
    assert llama.best.batch_tokens == 64 * 4096 and llama.best.size.family == "llama"
    refit, hoffmann = asked(node, DAY_S), asked(node, DAY_S, law="hoffmann-2022")
    assert hoffmann.ideal.parameters < refit.ideal.parameters
    assert any("is not published" in remark for remark in budget_remarks(hoffmann))
    widths = [study.parameters.p95 / study.parameters.p5 for study in (hoffmann, refit)]
    assert 1.0 < widths[0] < widths[1]


def test_lossy_plans_are_told(node: Path) -> None:
    """The law is of exact training: a plan that rounds gradients says that it is not."""
    slow = ('cluster.intra_node={ bandwidth = "1 GB/s", latency = "5 us" }', 'search.gradient_codecs=["int8"]')
    assert any("(gradients: int8)" in remark for remark in budget_remarks(asked(node, DAY_S, *slow)))
    assert not any("what is learned" in remark for remark in budget_remarks(asked(node, DAY_S)))


def test_figure_is_stable_and_tells_itself(node: Path) -> None:
    """The same answer gives the same bytes; title and description hold what the picture shows, which shows every size."""
    study = asked(node, DAY_S)
    svg = budget_svg(study)
    assert svg == budget_svg(study)
    root = ElementTree.fromstring(svg)
    words = {element.tag.rpartition("}")[2]: element.text or "" for element in root[:2]}
    assert words["title"] == "node: gpt by size, trained for 1.00 d"
    assert budget_answer(study)[0] in words["desc"]
    assert words["desc"].count("parameters on") >= len(study.sizes) and "(best)" in words["desc"]
    assert "<use" not in svg and "<defs" not in svg and "currentColor" in svg


def test_command_answers_in_words_json_and_files(node: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same answer as table, JSON and files; 24 hours are a day."""
    output = tmp_path / "out"
    run(str(node), "--days", "1", "-o", str(output))
    shown = capsys.readouterr()
    assert "In 1.00 d: train gpt" in shown.out and "(best)" in shown.out and "besiroglu-2024" in shown.out
    assert "tokens, loss" in shown.err
    written = json.loads((output / "budget.json").read_text())
    assert (output / "budget.svg").read_text().startswith("<svg")
    plan = json.loads((output / "plan.json").read_text())
    assert plan["scenario"]["model"]["options"] == written["best"]["options"]
    run(str(node), "--time", "24 h", "--json")
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told == written
    assert told["ideal"]["parameters_range"]["p5"] < told["ideal"]["parameters"] < told["ideal"]["parameters_range"]["p95"]


def test_mistakes_are_named_with_their_cure(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly one budget of more than nothing, a known law, a job that trains; no answer is said in JSON too."""
    for arguments, mistake in (
        ((), "no budget is given; write one of --days"),
        (("--days", "1", "--usd", "5"), "--days and --usd are given together"),
        (("--days", "0"), "--days: must be more than 0"),
        (("--usd", "nan"), "--usd: must be more than 0"),
        (("--time", "long"), "--time: 'long' is no time"),
        (("--days", "1", "--law", "kaplan"), "--law: 'kaplan' is not known"),
        (("--days", "1", "--set", "job.kind=inference", "--set", "search.deadline=1 h"), r"job\.kind: inference trains no model"),
        (("--days", "1", "--set", "model.options.preset=gpt9"), r"model\.options\.preset: 'gpt9' is no preset"),
    ):
        with pytest.raises(ScenarioError, match=mistake) as refused:
            run(str(node), *arguments)
        assert refused.value.exit_code == 2
    with pytest.raises(NoFeasiblePlanError) as answer:
        run(str(node), "--time", "5 s", "--json")
    assert answer.value.exit_code == 1
