"""Which file is what, and what all of them say together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.interchange.arguments import Arguments, parse_arguments
from chinchilla_sim.interchange.deepspeed import is_deepspeed, read_deepspeed
from chinchilla_sim.interchange.huggingface import read_huggingface
from chinchilla_sim.interchange.keys import Keys, Parts, Said
from chinchilla_sim.interchange.megatron import is_megatron, read_megatron
from chinchilla_sim.scenario.fields import show_value

KINDS = "a config.json of Hugging Face, the arguments of Megatron-LM, or a DeepSpeed JSON"
DEEPEST = 16
HUGGING_FACE_MARKS = ("architectures", "model_type")


@dataclass(frozen=True, slots=True)
class _File:
    """A file by its kind: table of a Hugging Face or DeepSpeed JSON, or arguments."""

    source: str
    kind: str
    content: Any


def read_files(paths: Sequence[Path], devices: int | None = None, tokens: int | None = None) -> list[Parts]:
    """What each file says, the one with the model first; ScenarioError tells all that is wrong in all of them."""
    files, mistakes = list[_File](), list[Mistake]()
    for path in paths:
        try:
            files.append(_open(path))
        except ScenarioError as error:
            mistakes += error.mistakes
    mistakes += _mistakes_together(files) if not mistakes else []
    if mistakes:
        raise ScenarioError(mistakes)
    order = ("model", "arguments", "deepspeed")
    found: list[Parts] = []
    for file in sorted(files, key=lambda one: order.index(one.kind)):
        parts, keys = _read(file, found, devices, tokens)
        found.append(parts)
        mistakes += [replace(one, where=f"{file.source}: {one.where}") for one in keys.mistakes]
    if mistakes:
        raise ScenarioError(mistakes)
    return found


def combine(found: Sequence[Parts]) -> dict[str, Said]:
    """All that is said; ScenarioError where two files state different things."""
    said: dict[str, Said] = {}
    mistakes: list[Mistake] = []
    for parts in found:
        for place, one in parts.said.items():
            other = said.setdefault(place, one)
            if one.stated and not other.stated:
                said[place] = one
            elif other.value != one.value and one.stated:
                what = f"is {show_value(other.value)} by {other.by}, and {show_value(one.value)} by {one.by}"
                mistakes.append(Mistake(place, what, "make them agree, or leave one of the files out"))
    if mistakes:
        raise ScenarioError(mistakes)
    return said


def _open(path: Path) -> _File:
    source = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ScenarioError([Mistake(source, f"cannot be read: {why_unreadable(error)}", f"give {KINDS}")]) from error
    if text.lstrip().startswith(("{", "[")) or path.suffix == ".json":
        return _json_file(source, text)
    try:
        arguments = parse_arguments(text)
    except (ValueError, RecursionError) as error:
        what = f"is neither JSON nor arguments: {error}"
        raise ScenarioError([Mistake(source, what, f"give {KINDS}")]) from error
    if not is_megatron(arguments):
        raise ScenarioError([Mistake(source, "is neither JSON nor has arguments of Megatron-LM, such as --num-layers 24", f"give {KINDS}")])
    return _File(source, "arguments", arguments)


def _json_file(source: str, text: str) -> _File:
    try:
        table = json.loads(text)
        json.dumps(table, ensure_ascii=False).encode()  # half characters, which no file of ours can hold
    except json.JSONDecodeError as error:
        raise ScenarioError([Mistake(f"{source}: line {error.lineno}", f"is not JSON: {error.msg}", f"give {KINDS}")]) from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError([Mistake(source, f"is no JSON that a scenario can hold: {error}", f"give {KINDS}")]) from error
    if _depth(table) > DEEPEST:
        raise ScenarioError([Mistake(source, f"has tables and lists more than {DEEPEST} deep", f"give {KINDS}")])
    if isinstance(table, dict) and any(key in table for key in HUGGING_FACE_MARKS):
        return _File(source, "model", table)
    if isinstance(table, dict) and is_deepspeed(table):
        return _File(source, "deepspeed", table)
    what = "has none of the keys that tell its kind (architectures and model_type of Hugging Face, train_batch_size and such of DeepSpeed)"
    raise ScenarioError([Mistake(source, what, f"give {KINDS}")])


def _depth(value: Any) -> int:
    """Tables and lists within each other, counted as far as it matters."""
    depth, layer = 0, [value]
    while layer and depth <= DEEPEST:
        layer = [inner for one in layer if isinstance(one, dict | list) for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def _mistakes_together(files: Sequence[_File]) -> list[Mistake]:
    """Files that do not go together."""
    models = [file.source for file in files if file.kind != "deepspeed"]
    plans = [file.source for file in files if file.kind == "deepspeed"]
    found = []
    if len(models) > 1:
        found.append(Mistake("", f"{' and '.join(models)} each say a model", "give one of them, and perhaps a DeepSpeed JSON"))
    if not models:
        what = f"{' and '.join(plans) or 'no file'} says no model"
        found.append(Mistake("", what, "give a config.json of Hugging Face or the arguments of Megatron-LM too"))
    if len(plans) > 1:
        found.append(Mistake("", f"{' and '.join(plans)} are two DeepSpeed JSONs", "give one of them"))
    return found


def _read(file: _File, before: Sequence[Parts], devices: int | None, tokens: int | None) -> tuple[Parts, Keys]:
    if file.kind == "model":
        return read_huggingface(file.content, file.source, tokens)
    if isinstance(file.content, Arguments):
        return read_megatron(file.content, file.source, devices)
    (stated,) = next(
        (parts.value("search.data_parallel_degrees") for parts in before if parts.value("search.data_parallel_degrees")), [devices]
    )
    alone = all(parts.value("search.pipeline_parallel_degrees") is None for parts in before)
    return read_deepspeed(file.content, file.source, stated, alone)
