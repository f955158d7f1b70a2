"""A plan with all that it needs in one folder: paths of code, weights and data are inside the folder and relative to it."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.plan_file import PlanFile

CODE = "code"
DATA_LIMIT_BYTES = 256 * 1024 * 1024
"""Larger data stay where they are: the folder's README says where the run looks for them."""


@dataclass(frozen=True)
class Bundle:
    """A folder with the plan; `plan` reads like plan.json there, `notes` are what a person still has to see to."""

    folder: Path
    file: PlanFile
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the job: letters, digits and hyphens, as DNS has them."""
        return safe_name(self.file.scenario.name)


def safe_name(name: str) -> str:
    """Letters, digits and hyphens, at most 40, beginning with a letter: good for shells, DNS and file names alike.

    >>> safe_name("Two sites $(rm)")
    'two-sites-rm'
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (words if words[:1].isalpha() else f"job-{words}")[:40].strip("-")


def bundle(file: PlanFile, folder: Path) -> Bundle:
    """Write plan.json and copy what it names; the plan is not signed, whoever runs the folder decides to."""
    folder.mkdir(parents=True, exist_ok=True)
    model, job, notes = file.scenario.model, file.scenario.job, list[str]()
    changes: dict[str, Any] = {}
    if model.factory:
        changes["factory"], found = _bundle_code(model.factory, folder)
        notes += found
    if model.weights:
        changes["weights"] = "initial_weights.pt"
        _copy(Path(model.weights), folder / changes["weights"], "model.weights")
    data = job.data
    if data and data != "digits":
        data, found = _bundle_data(Path(data), folder)
        notes += found
    scenario = file.scenario.model_copy(
        update={"model": model.model_copy(update=changes), "job": job.model_copy(update={"data": data})},
    )
    portable = replace(file, scenario=scenario, made_here=False)
    portable.save(folder / "plan.json")
    return Bundle(folder, portable, tuple(notes))


def _bundle_code(factory: str, folder: Path) -> tuple[str, list[str]]:
    """The factory's name inside the folder."""
    place, _, function = factory.rpartition(":")
    if not place.endswith(".py"):
        return factory, [f"Install the package of {factory} on every machine."]
    source = Path(place)
    _copy(source, folder / CODE / source.name, "model.factory")
    for neighbour in imported_neighbours(source):
        _copy(neighbour, folder / CODE / neighbour.relative_to(source.parent), "model.factory")
    return f"{CODE}/{source.name}:{function}", [f"What {CODE}/{source.name} imports besides its neighbours must be installed."]


def imported_neighbours(source: Path) -> list[Path]:
    """Files and packages beside a Python file that it imports, directly or through one another."""
    found: dict[Path, None] = {}
    waiting = [source]
    while waiting:
        for name in _imported_names(waiting.pop()):
            module, package = source.parent / f"{name}.py", source.parent / name
            files = sorted(package.rglob("*.py")) if (package / "__init__.py").is_file() else [module] if module.is_file() else []
            fresh = [path for path in files if path not in found and path != source]
            found |= dict.fromkeys(fresh)
            waiting += fresh
    return list(found)


def _imported_names(path: Path) -> Iterator[str]:
    """First parts of the absolute imports in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _bundle_data(source: Path, folder: Path) -> tuple[str, list[str]]:
    """Where the folder's plan looks for the data."""
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    if not source.exists() or sum(path.stat().st_size for path in files) > DATA_LIMIT_BYTES:
        return str(source), [f"The data are not in this folder: put them at {source} on every machine, or change job.data in plan.json."]
    target = folder / "data" / source.name
    for path in files:
        _copy(path, target / path.relative_to(source) if source.is_dir() else target, "job.data")
    return f"data/{source.name}", []


def _copy(source: Path, target: Path, field: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ScenarioError([Mistake(field, f"cannot copy {source}: {error.strerror}", "plan again where the file is")]) from error


@cache
def _templates() -> Environment:
    loader = PackageLoader("chinchilla_sim.runtime.export")
    # Shell scripts and YAML, not HTML: what is put in is made of safe names and numbers, or quoted as JSON.
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)


def write(bundle: Bundle, template: str, name: str, executable: bool = False, **values: Any) -> Path:
    """One file of the folder from its template."""
    path = bundle.folder / name
    path.write_text(_templates().get_template(template).render(name=bundle.name, **values), encoding="utf-8")
    if executable:
        path.chmod(0o755)
    return path


def quoted(value: object) -> str:
    """A JSON literal, which YAML and Python read alike."""
    return json.dumps(value)
