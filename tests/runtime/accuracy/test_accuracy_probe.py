"""Short runs with virtual replicas: what they are worth is that real ranks get the same losses, with every codec."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from chinchilla_sim.accuracy import Amount, listed_changes, measure_accuracy, rule_of
from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.errors import RunError, ScenarioError
from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.planner.accuracy import AS_IT_IS, Protocol, ShortRun, load_table, save_table
from chinchilla_sim.planner.executable import ACTIVATION_CODECS
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.accuracy import accuracy_probe
from chinchilla_sim.runtime.accuracy.accuracy_probe import AccuracyProbe, CodedModel, halves_of, one_thread
from chinchilla_sim.runtime.accuracy.short_training import Change
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import prepare
from tests.runtime.conftest import JOB, SCENARIO

STEPS = 25
RELATIVE = 1e-5
GRADIENTS = {f"gradients: {codec}": Change(f"gradients: {codec}", gradients=codec) for codec in CODECS}
LOSSY = [codec for codec in ACTIVATION_CODECS if codec != "none"]
ACTIVATIONS = {f"activations: {codec}": Change(f"activations: {codec}", activations=codec) for codec in LOSSY}
COUNTING = JOB.replace(
    'return {{"validation_accuracy": 0.5}}',
    """with torch.no_grad():
            inputs, targets = next(iter(self.batches("validation", 99, 0)))
            outputs = model(inputs)
        right = float((outputs.argmax(dim=1) == targets).double().mean())
        return {{"validation_accuracy": right, "validation_loss": float(self.loss(outputs, targets))}}""",
)
"""The job with an evaluation that looks at the model, and a last layer wide enough for factors."""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A small job of the user's own."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(COUNTING.format(trouble="pass").replace("nn.Linear(24, 4)", "nn.Linear(24, 6)"))
    (folder / "own.toml").write_text(SCENARIO + '\n[search]\ngradient_codecs = ["none", "int8", "top-k"]\nactivation_codecs = ["int8"]\n')
    return load_scenario(folder / "own.toml", [f"job.steps={STEPS}", "job.clip_gradient_norm=1000.0"])


def probe_of(scenario: Scenario, replicas: int = 2) -> AccuracyProbe:
    """Its probe."""
    return AccuracyProbe(scenario, Protocol(STEPS, replicas, 5))


@pytest.fixture(scope="module")
def played(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, torch.Tensor]:
    """Losses of real runs on two ranks by change, all in one launch: two replicas, or two stages."""
    folder, probe = tmp_path_factory.mktemp("plans"), probe_of(scenario)
    batch = scenario.job.global_batch_size
    for name, change in (GRADIENTS | ACTIVATIONS).items():
        halves = name in ACTIVATIONS
        plan: Plan = replace(probe.plan(halves, batch, training=True), clips_gradients=True)
        if halves:
            plan = replace(plan, activation_codecs=(change.activations,))
        else:
            plan = replace(plan, placement=((0, 1),), slots=(0, 1), gradient_codecs=(change.gradients,))
        (folder / name).mkdir()
        PlanFile(plan, scenario).save(folder / name / "plan.json")
    launch_ranks("tests.runtime.play_plans", [str(folder)], 2, folder)
    return {name: losses_of(folder / name) for name in GRADIENTS | ACTIVATIONS}


def losses_of(folder: Path) -> torch.Tensor:
    """Mean losses of a run: every rank that has the last stage records its share."""
    records = [json.loads((folder / f"rank{rank}.json").read_text())["losses"] for rank in (0, 1)]
    return torch.tensor([losses for losses in records if losses]).sum(0)


def virtual_losses(scenario: Scenario, change: Change, replicas: int) -> torch.Tensor:
    """The same in this process."""
    probe = probe_of(scenario, replicas)
    with one_thread():
        trainer = probe.trainer(probe.fresh_model(0), change)
        return torch.tensor([trainer.step(*batch, done) for done, batch in enumerate(probe.batches(0, STEPS))])


@pytest.mark.parametrize("name", [*GRADIENTS, *ACTIVATIONS])
def test_virtual_replicas_lose_what_real_ranks_lose(scenario: Scenario, played: Mapping[str, torch.Tensor], name: str) -> None:
    """Every loss of 25 steps equals that of two real ranks to 1e-5, with every codec of gradients and of activations."""
    change = (GRADIENTS | ACTIVATIONS)[name]
    losses = virtual_losses(scenario, change, 1 if name in ACTIVATIONS else 2)
    torch.testing.assert_close(losses, played[name], rtol=RELATIVE, atol=0)


def test_every_codec_changes_the_losses(played: Mapping[str, torch.Tensor]) -> None:
    """The equality above is none of runs without codecs: each has losses of its own."""
    plain = played["gradients: none"]
    assert all(float((losses / plain - 1).abs().max()) > RELATIVE for name, losses in played.items() if name != "gradients: none")


def test_a_measurement_goes_on_where_it_ended(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are stored one by one; what is there is not run again, what is added equals a measurement in one go; other steps start anew."""
    path, whole, told, left = tmp_path / "table.json", tmp_path / "whole.json", list[str](), [5]
    run = AccuracyProbe.run

    def breaking(self: AccuracyProbe, change: Change, seed: int) -> ShortRun:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return run(self, change, seed)

    amount = Amount(seeds=3, steps=6)
    with monkeypatch.context() as patch:
        patch.setattr(AccuracyProbe, "run", breaking)
        with pytest.raises(KeyboardInterrupt):
            measure_accuracy(scenario, amount, path, tell=told.append)
        assert len(load_table(path).runs) == 5
        left[0] = 7
        table, _ = measure_accuracy(scenario, amount, path, tell=told.append)
    assert left[0] == 0 and len(table.runs) == 12 and told == []
    assert measure_accuracy(scenario, amount, whole, tell=told.append)[0].runs == table.runs == load_table(path).runs
    assert table.changes == ["gradients: int8", "gradients: top-k", "activations: int8"]
    longer, _ = measure_accuracy(scenario, Amount(seeds=3, steps=7), path, tell=told.append)
    assert longer.runs[0].steps[-1] == 7 and "make way" in told[0]


def test_a_table_is_found_where_it_was_stored_and_refused_for_another_job(scenario: Scenario, tmp_path: Path) -> None:
    """The cache holds it by model and job, not by cluster; a named file of another job says what differs."""
    assert rule_of(prepare(scenario)) is None
    table, path = measure_accuracy(scenario, Amount(seeds=3, steps=2))
    rule = rule_of(prepare(scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"ranks": 2})})))
    assert rule and rule.table == table
    faster = scenario.job.model_copy(update={"learning_rate": 0.1})
    assert rule_of(prepare(scenario.model_copy(update={"job": faster}))) is None
    named = scenario.search.model_copy(update={"accuracy_table": str(path)})
    with pytest.raises(ScenarioError, match="is of another job: learning_rate differ"):
        rule_of(prepare(scenario.model_copy(update={"job": faster, "search": named})))
    with pytest.raises(ScenarioError, match="has runs of another job: learning_rate differ"):
        measure_accuracy(scenario.model_copy(update={"job": faster}), Amount(seeds=3, steps=2), path)


def test_changes_of_inference_are_made_to_a_trained_model(scenario: Scenario, tmp_path: Path) -> None:
    """Nothing changes the model as it is; a boundary without codec gives what the model gives; half the neurons gone are seen."""
    inference = scenario.model_copy(update={"job": scenario.job.model_copy(update={"kind": "inference"})})
    probe = probe_of(inference)
    plain = probe.run(Change(AS_IT_IS), 0)
    same = probe.run(Change("activations: none, in two halves", activations="fp16"), 0)
    pruned = probe.run(Change("variant", variant=Variant(prune=0.9)), 0)
    assert plain.metrics["validation_loss"][-1] == pytest.approx(same.metrics["validation_loss"][0], rel=1e-3)
    assert pruned.metrics["validation_loss"][0] != pytest.approx(plain.metrics["validation_loss"][-1], rel=1e-3)
    assert pruned.sent_bytes < pruned.plain_bytes and same.sent_bytes == same.plain_bytes / 2
    model = probe._trained_model(0)[1]
    coded = probe._changed(model, Change("activations", activations="none"))
    assert isinstance(coded, CodedModel)
    inputs = torch.randn(7, 12)
    torch.testing.assert_close(coded(inputs), model(inputs))


def test_given_weights_are_evaluated_as_they_are(scenario: Scenario, tmp_path: Path) -> None:
    """Inference with weights is not trained: every seed sees the same."""
    probe = probe_of(scenario)
    torch.save(probe.fresh_model(5).state_dict(), tmp_path / "weights.pt")
    model = scenario.model.model_copy(update={"weights": str(tmp_path / "weights.pt")})
    given = scenario.model_copy(update={"model": model, "job": scenario.job.model_copy(update={"kind": "inference"})})
    table, _ = measure_accuracy(given, Amount(seeds=3))
    assert table.protocol.steps == 0 and len({run.metrics["validation_loss"] for run in table.by_change[AS_IT_IS].values()}) == 1
    drop = table.drop(["activations: int8"])
    assert drop is not None and drop.low == drop.estimate == drop.high


def test_what_cannot_be_measured_says_why(
    scenario: Scenario, write_scenario: Callable[..., Scenario], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model cannot be made of is left out with its reason; a batch that replicas cannot share, and too few seeds, are mistakes."""
    search = scenario.search.model_copy(update={"gradient_codecs": ("none",), "activation_codecs": ("none",)})
    told: list[str] = []
    lists = ["search.variants=[{prune=0.5}]", "search.activation_codecs=['int8']"]
    variants = load_scenario(tmp_path / "own.toml", lists) if write_scenario() else scenario
    with monkeypatch.context() as patch:
        patch.setattr(accuracy_probe, "allowed_cuts", lambda graph, _: [False] * len(graph.compute_tasks))
        table, _ = measure_accuracy(variants, Amount(seeds=3, steps=2), tell=told.append)
    assert list(table.refused) == ["activations: int8"] and len(told) == 1
    pruned, plain = table.by_change["variant: pruned 50 %"][0], table.by_change[AS_IT_IS][0]
    assert pruned.sent_bytes < plain.sent_bytes == pruned.plain_bytes
    with pytest.raises(ScenarioError, match="5 virtual replicas cannot share 24 samples"):
        measure_accuracy(scenario.model_copy(update={"search": search}), Amount(seeds=3, replicas=5))
    with pytest.raises(ScenarioError, match="must be at least 3"):
        measure_accuracy(scenario, Amount(seeds=1))
    assert [change.name for change in listed_changes(scenario.model_copy(update={"search": search}))] == [AS_IT_IS]


def test_a_model_without_a_boundary_cannot_be_cut(scenario: Scenario) -> None:
    """A single layer has no middle."""
    graph = probe_of(scenario).graph(training=False)
    with pytest.raises(RunError, match="cannot be cut in two"):
        halves_of(replace(graph, tasks=graph.tasks[:2]), training=False)


def test_a_damaged_table_is_a_mistake(tmp_path: Path) -> None:
    """What is no table is told with the file and the cure."""
    (tmp_path / "table.json").write_text('{"format": "something else"}')
    with pytest.raises(ScenarioError, match=r"table\.json: accuracy table: cannot be read: not a chinchilla-accuracy file"):
        load_table(tmp_path / "table.json")


def test_batch_norm_keeps_the_statistics_of_the_first_replica(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running means are those of the first half of every batch, as rank 0 has them."""
    probe = probe_of(scenario)
    build = probe.job.model

    def with_norm() -> nn.Module:
        model = build()
        model.second = nn.Sequential(model.second, nn.BatchNorm1d(12))
        return model  # type: ignore[no-any-return]

    monkeypatch.setattr(type(probe.job), "model", lambda _: with_norm())
    model = probe.fresh_model(0)
    trainer = probe.trainer(model, Change(AS_IT_IS))
    inputs, targets = next(probe.batches(0, 1))
    with torch.no_grad():
        before = model.second[0](torch.relu(model.first(inputs)))  # type: ignore[index,operator]
    trainer.step(inputs, targets, 0)
    torch.testing.assert_close(model.second[1].running_mean, 0.1 * before[:12].mean(0))  # type: ignore[index,union-attr]


def test_a_table_survives_its_file(scenario: Scenario, tmp_path: Path) -> None:
    """What is read equals what was written."""
    table, path = measure_accuracy(scenario, Amount(seeds=3, steps=2))
    save_table(table, tmp_path / "copy.json")
    assert load_table(tmp_path / "copy.json") == table == load_table(path)


def test_clipping_is_part_of_the_short_runs(scenario: Scenario) -> None:
    """A small norm changes the losses as it does in real runs."""
    tight = scenario.model_copy(update={"job": scenario.job.model_copy(update={"clip_gradient_norm": 0.01})})
    plain, clipped = (virtual_losses(one, Change(AS_IT_IS), 2) for one in (scenario, tight))
    assert plain[0] == clipped[0] and plain[-1] < clipped[-1]
