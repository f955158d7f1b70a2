"""A user's own job: where it may live, and how every failure is told."""

from pathlib import Path

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.contract import load_job
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.graph.zoo import mlp

JOB = """
import torch
from torch import nn


class Job:
    def __init__(self, hidden, data):
        self.hidden, self.data = hidden, data

    def model(self):
        return nn.Sequential(nn.Linear(6, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 3))

    def example_batch(self, size):
        return torch.zeros(size, 6), torch.zeros(size, dtype=torch.int64)


def build(hidden=4, data=None):
    return Job(hidden, data)


def fail():
    raise OSError("no such disk")


class Half:
    example_batch = None

    def model(self):
        return nn.Linear(1, 1)


not_callable = 3
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A file with a job, as a user writes it."""
    path = tmp_path / "my_job.py"
    path.write_text(JOB)
    return path


def message_of(factory: str, **options: object) -> str:
    """Text of the ScenarioError that loading raises."""
    with pytest.raises(ScenarioError) as caught:
        load_job(factory, options, None)
    assert caught.value.mistakes[0].where == "model.factory"
    assert caught.value.mistakes[0].cure
    return str(caught.value)


def test_job_from_a_file_traces(job_file: Path) -> None:
    """A job in any folder becomes the graph of its model."""
    job = load_job(f"{job_file}:build", {"hidden": 5}, None)
    assert trace_job(job, 7, True, "mine").digest == mlp([6, 5, 3], 7).digest


def test_options_and_data_are_keyword_arguments(job_file: Path) -> None:
    """[model] options arrive as keywords, and [job] data as `data=` only where it is set."""
    job = load_job(f"{job_file}:build", {"hidden": 9}, "digits")
    assert (job.hidden, job.data) == (9, "digits")  # type: ignore[attr-defined]
    assert load_job(f"{job_file}:build", {}, None).data is None  # type: ignore[attr-defined]


def test_builtin_is_importable_by_name() -> None:
    """A factory may be a module that Python finds, and the built-in job can run."""
    assert load_job("chinchilla_sim.models.mnist_mlp:build", {}, None, to_run=True).model() is not None


@pytest.mark.parametrize(
    ("factory", "options", "part"),
    [
        ("no.such.module:build", {}, "cannot import no.such.module"),
        ("chinchilla_sim.models.mnist_mlp:bild", {}, "has no function 'bild'"),
        ("chinchilla_sim.models.mnist_mlp:build", {"widht": 3}, "TypeError"),
        ("chinchilla_sim.models.mnist_mlp", {}, "is not 'package.module:function'"),
        (":build", {}, "is not 'package.module:function'"),
        ("nowhere/job.py:build", {}, "no file nowhere/job.py"),
        ("FILE:fail", {}, "OSError: no such disk"),
        ("FILE:not_callable", {}, "has no function 'not_callable'"),
        ("FILE:Half", {}, "returned Half without example_batch()"),
    ],
)
def test_each_failure_names_its_cause(job_file: Path, factory: str, options: dict[str, object], part: str) -> None:
    """Missing module, function, file or method, a wrong name and a factory that raises: one ScenarioError each."""
    assert part in message_of(factory.replace("FILE", str(job_file)), **options)


def test_file_that_does_not_import_is_named(tmp_path: Path) -> None:
    """A syntax error in the user's file is told with the file's name."""
    (tmp_path / "broken.py").write_text("def build(:\n")
    assert "broken.py cannot be imported: SyntaxError" in message_of(f"{tmp_path}/broken.py:build")


def test_running_needs_more_than_planning(job_file: Path) -> None:
    """Without loss and batches a job can be planned, and is refused when it shall run."""
    load_job(f"{job_file}:build", {}, None)
    with pytest.raises(ScenarioError, match=r"without loss, batches\(\)"):
        load_job(f"{job_file}:build", {}, None, to_run=True)


@pytest.mark.parametrize("text", ["def build(:\n", "raise OSError('no such disk')\n"])
def test_package_that_does_not_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A package is told like a file: any error while it is imported is a ScenarioError."""
    (tmp_path / "chinchilla_broken_package.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    message_of("chinchilla_broken_package:build")


def test_file_may_import_its_neighbour(tmp_path: Path) -> None:
    """A job file that runs with Python alone also loads: it may import a module beside it."""
    (tmp_path / "chinchilla_neighbour.py").write_text(JOB)
    (tmp_path / "job.py").write_text("from chinchilla_neighbour import build\n")
    load_job(f"{tmp_path}/job.py:build", {}, None)
