"""Local steps and late gradients of virtual replicas: they train like the loops of plain PyTorch that real ranks train like."""

from pathlib import Path

import pytest
import torch

from chinchilla_sim.accuracy import Amount, job_of, listed_changes, measure_accuracy
from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.compress import Variant
from chinchilla_sim.planner.accuracy import Protocol
from chinchilla_sim.runtime.accuracy.accuracy_probe import AccuracyProbe, one_thread
from chinchilla_sim.runtime.accuracy.short_training import Change, ShortTraining
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import build_graph
from tests.runtime.conftest import JOB, SCENARIO
from tests.runtime.test_asynchrony import DILOCO, RELATIVE, Replicas, train_late, train_locally

STEPS = 18
ADAM = {"optimizer": "adam", "learning_rate": 0.01}
LOCAL, LATE = {"local_steps": 4}, {"gradient_delay": 1}
CASES: dict[str, tuple[dict[str, int], dict[str, object], int]] = {
    "local": (LOCAL, {}, 2),
    "local-adam-momentum": (LOCAL, DILOCO | ADAM, 2),
    "local-of-three": ({"local_steps": 3}, DILOCO | {"momentum": 0.5}, 3),
    "late": (LATE, {}, 2),
    "late-adam": (LATE, ADAM, 2),
    "late-of-three": (LATE, {"momentum": 0.5, "learning_rate": 0.1}, 3),
}
"""What changes, the job's own keys, and the number of replicas."""
LOSSY = [codec for codec in CODECS if codec != "none"]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """A small job that may exchange seldom or late, whose last layer is wide enough for factors of low rank."""
    folder = tmp_path_factory.mktemp("job")
    job = JOB.format(trouble="pass").replace("nn.Linear(24, 4)", "nn.Linear(24, 6)")
    (folder / "job.py").write_text(
        job.replace('"validation_accuracy": 0.5', '"validation_accuracy": float(model.first.weight.detach().mean())')
    )
    (folder / "own.toml").write_text(SCENARIO + "\n[search]\nlocal_steps = [1, 4]\ngradient_delays = [0, 1]\n")
    return load_scenario(folder / "own.toml", [f"job.steps={STEPS}"])


def with_job(scenario: Scenario, **changes: object) -> Scenario:
    """The scenario with other values of [job]."""
    return scenario.model_copy(update={"job": scenario.job.model_copy(update=changes)})


def trained(scenario: Scenario, change: Change, replicas: int) -> tuple[ShortTraining, list[float]]:
    """A short training behind its last step, and its losses."""
    probe = AccuracyProbe(scenario, Protocol(STEPS, replicas, 1))
    with one_thread():
        trainer = probe.trainer(probe.fresh_model(scenario.job.seed), change)
        losses = [trainer.step(*batch, done) for done, batch in enumerate(probe.batches(scenario.job.seed, STEPS))]
    trainer.settle()
    return trainer, losses


def check(scenario: Scenario, change: Change, replicas: int) -> None:
    """Losses and weights of a short training are those of the loops."""
    trainer, losses = trained(scenario, change, replicas)
    train = train_locally if change.local_steps > 1 else train_late
    expected, weights = train(Replicas(scenario, trainer.plan))
    assert losses == pytest.approx(expected, rel=RELATIVE) and len(losses) == STEPS
    for key, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[key], rtol=RELATIVE, atol=RELATIVE / 5)


@pytest.mark.parametrize("name", CASES)
def test_trains_like_a_loop_of_plain_pytorch(scenario: Scenario, name: str) -> None:
    """Losses of 18 steps, and weights behind them (means, as the last steps are local), equal to 1e-5."""
    changes, job, replicas = CASES[name]
    check(with_job(scenario, **job), Change(name, **changes), replicas)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("changes", [LOCAL, LATE], ids=["local", "late"])
def test_codecs_keep_their_residuals_between_exchanges(scenario: Scenario, changes: dict[str, int], codec: str) -> None:
    """The same with every codec of what is exchanged."""
    check(scenario, Change(codec, gradients=codec, **changes), 2)


def test_bf16_has_masters_of_its_own_on_each_replica(scenario: Scenario) -> None:
    """Weights in bf16 are the rounded means of fp32 masters, which are not those of steps that exchange."""
    half = with_job(scenario, precision="bf16")
    (plain, losses), (local, others) = (trained(half, change, 2) for change in (Change("as it is"), Change("local", **LOCAL)))
    assert {one.dtype for one in local.owned} == {torch.bfloat16} and losses[:1] == others[:1] and losses[2:] != others[2:]
    assert others == pytest.approx(trained(scenario, Change("local", **LOCAL), 2)[1], rel=0.03)
    assert local.sent_bytes == local.plain_bytes / 4 and plain.sent_bytes == plain.plain_bytes


def test_sparse_variants_are_thinned_while_they_train(scenario: Scenario) -> None:
    """Behind the last step the share of zeros is the variant's own, as in a run: not only what is evaluated is thinned."""
    trainer, losses = trained(scenario, Change("sparse", variant=Variant(sparsity=0.75)), 2)
    assert [float((one == 0).double().mean()) for one in trainer.owned if one.dim() > 1] == pytest.approx([0.75] * 3)
    assert losses[:1] == (dense := trained(scenario, Change("as it is"), 2)[1])[:1] and losses[-1] != dense[-1]


def test_lists_of_the_search_are_measured(scenario: Scenario, tmp_path: Path) -> None:
    """A row for each listed number but 1 and 0, which are the job as it is; a fourth of the bytes travels, or all of them."""
    assert [change.name for change in listed_changes(scenario)] == ["as it is", "local_steps: 4", "gradient_delay: 1"]
    assert len(listed_changes(with_job(scenario, kind="inference"))) == 1
    table, _ = measure_accuracy(scenario, Amount(seeds=3, steps=9), tmp_path / "table.json")
    assert table.changes == ["local_steps: 4", "gradient_delay: 1"] and table.refused == {}
    local, late = (table.by_change[change][0] for change in table.changes)
    assert local.sent_bytes == local.plain_bytes / 4 and late.sent_bytes == late.plain_bytes > 0
    values = {run.metrics["validation_accuracy"][-1] for run in (local, late, table.by_change["as it is"][0])}
    assert len(values) == 3


def test_what_real_ranks_do_not_play_is_not_measured(scenario: Scenario, tmp_path: Path) -> None:
    """Clipping with either of them, and a single replica, are told with their reason; the job as it is has its rows."""
    told: list[str] = []
    clipping = with_job(scenario, clip_gradient_norm=1.0)
    table, _ = measure_accuracy(clipping, Amount(seeds=3, steps=1), tmp_path / "table.json", tell=told.append)
    assert list(table.refused) == ["local_steps: 4", "gradient_delay: 1"] and table.seed_count == 3
    assert all("does not play local steps or late gradients with gradient clipping" in words for words in told)
    with pytest.raises(RunError, match="write --replicas 2"):
        trained(scenario, Change("late", **LATE), 1)


def test_the_outer_optimizer_is_part_of_the_job(scenario: Scenario) -> None:
    """Tables are of one rate and momentum of agreements; plain averages are what older tables mean."""
    graph = build_graph(scenario)[0]
    plain, other = (job_of(one, graph) for one in (scenario, with_job(scenario, **DILOCO)))
    assert not {*DILOCO} & {*plain} and {key: other[key] for key in DILOCO} == DILOCO
