"""A user's own job: the one contract between a scenario and somebody's PyTorch code.

`[model] factory = "package.module:build"` (or `"path/to/file.py:build"`) names a function. It is called
with the keyword arguments in `[model] options`, plus `data=` when `[job] data` is set, and returns an
object with

    model() -> nn.Module                         a fresh model; drawn from torch's seeded global generator
    example_batch(size) -> (inputs, targets)     tensors of the right shape and dtype, any values

which is enough to plan, and, to run,

    loss(outputs, targets) -> scalar tensor      the mean over the batch
    batches(split, seed, epoch) -> iterable      of (inputs, targets) chunks of any size, the same on every
                                                 rank; split is "train" or "validation"
    evaluate(model) -> dict[str, float]          optional; such as {"validation_accuracy": 0.97}

`inputs` is one tensor or a tuple of tensors whose first dimension is the batch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.scenario.schema import Scenario

BUILTIN_FACTORIES = {
    "mnist_mlp": "chinchilla_sim.models.mnist_mlp:build",
    "huggingface": "chinchilla_sim.models.huggingface:build",
    "bert": "chinchilla_sim.models.bert:build",
    "dlrm": "chinchilla_sim.models.dlrm:build",
    "fraud": "chinchilla_sim.models.fraud:build",
    "gpt": "chinchilla_sim.models.gpt:build",
    "resnet": "chinchilla_sim.models.resnet:build",
    "translation": "chinchilla_sim.models.translation:build",
    "unet": "chinchilla_sim.models.unet:build",
}
NEEDED_TO_PLAN = ("model", "example_batch")
NEEDED_TO_RUN = ("loss", "batches")


class TrainingJob(Protocol):
    """What a factory returns (`evaluate` is optional)."""

    def model(self) -> Any:
        """A fresh `nn.Module`."""

    def example_batch(self, size: int) -> tuple[Any, Any]:
        """Inputs and targets of one batch of `size` samples."""

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Mean loss over the batch, a scalar tensor."""

    def batches(self, split: str, seed: int, epoch: int) -> Iterable[tuple[Any, Any]]:
        """Chunks of (inputs, targets), the same bytes for the same arguments."""


def factory_of(scenario: Scenario) -> tuple[str, Mapping[str, Any], str | None]:
    """Factory, options and data of a scenario: the first three arguments of `load_job`."""
    model = scenario.model
    factory = model.factory or BUILTIN_FACTORIES.get(model.builtin or "")
    if factory is None:
        cure = "name a builtin or a factory to run it; a formula or graph can be planned and simulated"
        raise ScenarioError([Mistake("model", f"a {model.kind} has no code to run", cure)])
    return factory, model.options, scenario.job.data


def load_job(factory: str, options: Mapping[str, Any], data: str | None, *, to_run: bool = False) -> TrainingJob:
    """Import the factory and build the job; every failure is a `ScenarioError` that names the cure."""
    module_name, _, function_name = factory.rpartition(":")
    if not module_name or not function_name:
        raise _error(f"{factory!r} is not 'package.module:function' or 'path/to/file.py:function'", 'write for example "jobs.py:build"')
    module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    build = getattr(module, function_name, None)
    if not callable(build):
        raise _error(f"{module_name} has no function {function_name!r}", "name the function that builds the job")
    arguments = dict(options) | ({"data": data} if data is not None else {})
    try:
        job = build(**arguments)
    except Exception as error:
        raise _error(f"{factory}({arguments}) failed: {type(error).__name__}: {error}", "check [model] options and [job] data") from error
    needed = NEEDED_TO_PLAN + (NEEDED_TO_RUN if to_run else ())
    missing = [name for name in needed if not callable(getattr(job, name, None))]
    if missing:
        raise _error(f"{factory} returned {type(job).__name__} without {', '.join(missing)}()", "see chinchilla_sim/graph/contract.py")
    return cast(TrainingJob, job)


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _error(
            f"cannot import {name}: {type(error).__name__}: {error}", "install the package, or give the path of the file"
        ) from error


def _import_file(path: Path) -> Any:
    name = f"chinchilla_job_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise _error(f"no file {path}", "give the path relative to the scenario")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the file may import its neighbours, as when Python runs it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _error(f"{path} cannot be imported: {type(error).__name__}: {error}", "run it with Python alone first") from error
    return module


def _error(what: str, cure: str) -> ScenarioError:
    return ScenarioError([Mistake("model.factory", what, cure)])
