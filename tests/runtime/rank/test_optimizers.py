"""Learning rates over the steps of a run."""

import pytest
import torch

from chinchilla_sim.runtime.rank.optimizers import make_optimizer, set_learning_rate
from chinchilla_sim.scenario.job import JobSpec

STEPS = 40


def rates(**changes: object) -> list[float]:
    """The rate of every step."""
    spec = JobSpec.model_validate({"global_batch_size": 1, "learning_rate": 0.1, "optimizer": "sgd"} | changes)
    optimizer = make_optimizer(spec, [torch.nn.Parameter(torch.zeros(1))])
    found = []
    for step in range(STEPS):
        set_learning_rate(optimizer, spec, step, STEPS)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def theirs(*schedulers: object, milestone: int = 0) -> list[float]:
    """The same from torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    made = [scheduler(optimizer) for scheduler in schedulers]  # type: ignore[operator]
    scheduler = made[0] if len(made) == 1 else torch.optim.lr_scheduler.SequentialLR(optimizer, made, [milestone])
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def linear(steps: int) -> object:
    """Falling to 0 over some steps."""
    return lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)


def cosine(steps: int) -> object:
    """Half a cosine."""
    return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def rising(steps: int) -> object:
    """Up to the whole rate in the last of the warm-up's steps."""
    return lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0 / steps, 1.0, steps - 1)


def test_schedules_are_torchs() -> None:
    """constant, linear and cosine fall as torch.optim's schedulers do."""
    assert rates() == [0.1] * STEPS
    assert rates(learning_rate_schedule="linear") == pytest.approx(theirs(linear(STEPS)))
    assert rates(learning_rate_schedule="cosine") == pytest.approx(theirs(cosine(STEPS)))


@pytest.mark.parametrize(("name", "falling"), [("linear", linear), ("cosine", cosine)])
def test_warm_up_comes_first(name: str, falling: object) -> None:
    """The rate rises over the warm-up and falls over the rest."""
    expected = theirs(rising(8), falling(STEPS - 8), milestone=8)  # type: ignore[operator]
    assert rates(learning_rate_schedule=name, warmup_steps=8) == pytest.approx(expected)
    assert rates(warmup_steps=8)[7:] == pytest.approx([0.1] * (STEPS - 7))
