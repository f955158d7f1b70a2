"""The scenarios that come with chinchilla_sim: in a wheel beside the code, in a checkout in `scenarios/`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from os.path import normpath
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.scenario.check import suggest

PACKAGED, CHECKOUT = "example_scenarios", "scenarios"
SUFFIX = ".toml"
_SENTENCE_END = re.compile(r"\.(?=\s+[A-Z`]|$)")


@dataclass(frozen=True, slots=True)
class Example:
    """A scenario, or a folder of them, that comes with the package; `line` says what it is about."""

    name: str
    line: str
    question: str = ""

    def to_dict(self) -> dict[str, str]:
        """JSON-ready form."""
        return {"name": self.name, "line": self.line, "question": self.question}


def example_folder() -> Traversable:
    """Where they are."""
    package = files("chinchilla_sim")
    packaged = package / PACKAGED
    checkout = Path(str(package)).parent / CHECKOUT
    if not packaged.is_dir() and not checkout.is_dir():
        what = f"neither {packaged} nor {checkout} is there"
        raise ScenarioError([Mistake("examples", what, "install the package again: its wheel holds them")])
    return packaged if packaged.is_dir() else checkout


def list_examples() -> tuple[Example, ...]:
    """All of them by name; folders of scenarios last."""
    folder = example_folder()
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    single = [_example(entry) for entry in entries if entry.name.endswith(SUFFIX)]
    groups = [_group(entry) for entry in entries if entry.is_dir() and any(_scenarios_in(entry))]
    return (*single, *groups)


def _example(entry: Traversable) -> Example:
    text = entry.read_text(encoding="utf-8")
    question = tomllib.loads(text).get("question", "")
    return Example(entry.name.removesuffix(SUFFIX), first_comment(text) or question, question)


def _group(entry: Traversable) -> Example:
    inside = list(_scenarios_in(entry))
    first = first_comment(inside[0].read_text(encoding="utf-8"))
    return Example(entry.name, f"A folder of {len(inside)} scenarios, such as {inside[0].name.removesuffix(SUFFIX)}: {first}")


def _scenarios_in(folder: Traversable) -> Iterator[Traversable]:
    yield from sorted((entry for entry in folder.iterdir() if entry.name.endswith(SUFFIX)), key=lambda entry: entry.name)


def first_comment(text: str) -> str:
    """The first sentence of the comment at the head of a scenario.

    >>> first_comment("# BERT (Devlin et al. 2018) on two\\n# cards. More of it.\\n\\n[model]")
    'BERT (Devlin et al. 2018) on two cards'
    """
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    words = " ".join(lines)
    end = _SENTENCE_END.search(words)
    return words[: end.start()] if end else words


def copy_examples(names: Sequence[str], folder: Path, force: bool = False) -> tuple[Path, ...]:
    """Copy examples, with the files that they name, to a folder; ScenarioError where one is unknown or would replace a file."""
    source = example_folder()
    known = [example.name for example in list_examples()]
    mistakes = [Mistake("examples", f"there is none called {name!r}", suggest(name, known)) for name in names if name not in known]
    if mistakes:
        raise ScenarioError(mistakes)
    wanted = dict(pair for name in names for pair in _files_of(source, name))
    there = [folder / place for place in wanted if (folder / place).exists()]
    if there and not force:
        cure = "name another folder by --output, or replace them by --force"
        raise ScenarioError([Mistake(str(path), "is there already", cure) for path in there])
    try:
        for place, entry in wanted.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(entry.read_bytes())
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise ScenarioError([Mistake("--output", f"cannot write to {folder}: {why}", "name another folder")]) from error
    return tuple(folder / place for place in wanted)


def _files_of(source: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    """An example's files, each with its place below the folder of all."""
    whole = source / name
    scenarios = [(f"{name}/{entry.name}", entry) for entry in _scenarios_in(whole)] if whole.is_dir() else []
    for place, entry in scenarios or [(f"{name}{SUFFIX}", source / f"{name}{SUFFIX}")]:
        yield place, entry
        for path in _named_paths(tomllib.loads(entry.read_text(encoding="utf-8"))):
            beside = normpath(Path(place).parent / path)
            if not beside.startswith("..") and (file := source.joinpath(*Path(beside).parts)).is_file():
                yield beside, file


def _named_paths(tables: dict[str, Any]) -> list[str]:
    """Files that a scenario names relative to its folder."""
    model, search = tables.get("model", {}), tables.get("search", {})
    factory = str(model.get("factory", "")).rpartition(":")[0]
    named = [model.get("graph"), model.get("weights"), search.get("accuracy_table"), factory if factory.endswith(".py") else None]
    return [path for path in named if path and not Path(path).is_absolute()]
