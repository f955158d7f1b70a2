"""What tests of real runs share: a small job of the user's own, and runs of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chinchilla_sim.graph.contract import factory_of, load_job
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.stage.batches import global_batches
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.schema import Scenario

JOB = '''
import torch
from torch import nn

class Net(nn.Module):
    """A skip over two layers and one from the input: three stages must pass both on."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(24, 4)

    def forward(self, x):
        skip = torch.relu(self.first(x))
        inner = torch.tanh(self.second(skip)) + skip
        return self.third(torch.cat([inner, x], dim=1))

class Job:
    def model(self):
        return Net()

    def example_batch(self, size):
        return torch.zeros(size, 12), torch.zeros(size, dtype=torch.int64)

    def loss(self, outputs, targets):
        {trouble}
        return nn.functional.cross_entropy(outputs, targets)

    def batches(self, split, seed, epoch):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        yield torch.randn(500, 12, generator=generator), torch.randint(0, 4, (500,), generator=generator)

    def evaluate(self, model):
        return {{"validation_accuracy": 0.5}}

def build():
    return Job()
'''

SCENARIO = """
[model]
factory = "job.py:build"

[job]
global_batch_size = 24
epochs = 2
steps = 30
optimizer = "sgd"
learning_rate = 0.5

[cluster]
kind = "this-machine"
ranks = 4
"""


@pytest.fixture
def write_scenario(tmp_path: Path) -> Callable[..., Scenario]:
    """Writes the job and its scenario; `trouble` is a statement of the loss function."""

    def write(trouble: str = "pass") -> Scenario:
        (tmp_path / "job.py").write_text(JOB.format(trouble=trouble))
        (tmp_path / "own.toml").write_text(SCENARIO)
        return load_scenario(tmp_path / "own.toml")

    return write


@pytest.fixture
def own(write_scenario: Callable[..., Scenario]) -> Scenario:
    """The scenario of a user's own job."""
    return write_scenario()


@pytest.fixture
def single_process() -> Callable[[Scenario, int], tuple[list[float], dict[str, torch.Tensor]]]:
    """Trains in this process with plain PyTorch."""
    return train_alone


@pytest.fixture
def with_job() -> Callable[..., PlanFile]:
    """The same plan with other values of [job]."""

    def change(file: PlanFile, **changes: object) -> PlanFile:
        job = file.scenario.job.model_copy(update=changes)
        return PlanFile(file.plan, file.scenario.model_copy(update={"job": job}))

    return change


def train_alone(scenario: Scenario, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final weights of plain PyTorch in this process; in bf16 with fp32 masters."""
    spec = scenario.job
    job = load_job(*factory_of(scenario), to_run=True)
    torch.manual_seed(spec.seed)
    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    model = job.model().to(dtype)
    weights = list(model.parameters())
    masters = weights if dtype == torch.float32 else [torch.nn.Parameter(weight.detach().float()) for weight in weights]
    optimizer = (
        torch.optim.Adam(masters, lr=spec.learning_rate)
        if spec.optimizer == "adam"
        else torch.optim.SGD(masters, lr=spec.learning_rate, momentum=spec.momentum)
    )
    losses: list[float] = []
    for epoch in range(spec.epochs):
        for inputs, targets in global_batches(job.batches("train", spec.seed, epoch), spec.global_batch_size):
            if len(losses) == steps:
                break
            loss = job.loss(model(inputs.to(dtype) if inputs.is_floating_point() else inputs), targets)
            model.zero_grad()
            loss.backward()
            for weight, master in zip(weights, masters, strict=True):
                master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
            if spec.clip_gradient_norm:
                torch.nn.utils.clip_grad_norm_(masters, spec.clip_gradient_norm)
            optimizer.step()
            with torch.no_grad():
                for weight, master in zip(weights, masters, strict=True):
                    weight.copy_(master)
            losses.append(float(loss.detach()))
    return losses, model.state_dict()
