"""Types of single fields: text on the outside, checked values in base units inside."""

import json
import math
import re
from datetime import date, time
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from chinchilla_sim.errors import Mistake
from chinchilla_sim.units import (
    BANDWIDTH,
    BYTES,
    FLOP,
    FLOP_PER_S,
    KG_PER_JOULE,
    REQUESTS_PER_S,
    SECONDS,
    USD,
    USD_PER_S,
    WATT,
    QuantityKind,
)

_FACTORY = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*|.*\.py):[^\W\d]\w*", re.DOTALL)
_FOLDER_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")
_DEEPEST = 20
_STORABLE = f"use texts, finite numbers, true, false, and lists and tables less than {_DEEPEST} deep"


def show_value(value: object) -> str:
    """A value about as a person wrote it in TOML, shortened to what fits in a message."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, date | time):
        return value.isoformat()
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _quantity(kind: QuantityKind, positive: bool = False) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    """Annotations of a float that is text with a unit in scenario files and in plan.json alike."""

    def parse(value: object) -> float:
        cure = f'write for example "{kind.example}"'
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(Mistake("", f"{show_value(value)} has no unit", cure))
        if not isinstance(value, str):
            raise ValueError(Mistake("", f"must be a text with a unit, not {show_value(value)}", cure))
        number = kind.parse(value)
        if positive and number == 0:
            raise ValueError(Mistake("", f"must be more than 0, not {show_value(value)}", cure))
        return number

    schema = {"type": "string", "examples": [kind.example], "x-units": list(kind.factors), "x-above-zero": positive}
    return BeforeValidator(parse), PlainSerializer(kind.write, return_type=str, when_used="json"), WithJsonSchema(schema)


Bytes = Annotated[float, *_quantity(BYTES)]
MemoryBytes = Annotated[float, *_quantity(BYTES, positive=True)]
BytesPerSecond = Annotated[float, *_quantity(BANDWIDTH, positive=True)]
Seconds = Annotated[float, *_quantity(SECONDS)]
PositiveSeconds = Annotated[float, *_quantity(SECONDS, positive=True)]
Flop = Annotated[float, *_quantity(FLOP, positive=True)]
FlopPerSecond = Annotated[float, *_quantity(FLOP_PER_S, positive=True)]
Watt = Annotated[float, *_quantity(WATT)]
PositiveUsd = Annotated[float, *_quantity(USD, positive=True)]
UsdPerSecond = Annotated[float, *_quantity(USD_PER_S)]
RequestsPerSecond = Annotated[float, *_quantity(REQUESTS_PER_S, positive=True)]
KgPerJoule = Annotated[float, *_quantity(KG_PER_JOULE)]

Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
NodeName = Annotated[str, Field(min_length=1)]
LinkName = Annotated[str, Field(min_length=1)]


def _check_folder_name(name: str) -> str:
    if not _FOLDER_NAME.fullmatch(name):
        raise ValueError(Mistake("", f"{show_value(name)} cannot name a folder of reports", 'write for example name = "two-nodes"'))
    return name


def _check_factory(factory: str) -> str:
    if not _FACTORY.fullmatch(factory):
        cure = 'write "package.module:function" or "path/to/file.py:function"'
        raise ValueError(Mistake("", f"{show_value(factory)} does not name a function", cure))
    return factory


def refuse_for_activations(codec: object) -> object:
    """A mistake for codecs that need error feedback: an activation that was left out is never sent later."""
    if codec in ("one-bit", "top-k", "low-rank"):
        what = f"{show_value(codec)} is for gradients only: what it leaves out is made up for in later steps"
        raise ValueError(Mistake("", what, "write none, fp16, bf16 or int8 here, and allow it in gradient_codecs"))
    return codec


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    mistakes = [
        Mistake(".".join(path), f"{show_value(value)} cannot be stored in plan.json", _STORABLE)
        for path, value in _leaves(options, ())
        if not isinstance(value, str | int) and not (isinstance(value, float) and math.isfinite(value))
    ]
    if mistakes:
        raise ValueError(*mistakes)
    return options


def _leaves(value: object, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], object]]:
    if not isinstance(value, dict | list) or len(path) == _DEEPEST:
        return [(path, value)]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, item in inner for leaf in _leaves(item, (*path, str(key)))]


FolderName = Annotated[str, AfterValidator(_check_folder_name)]
Factory = Annotated[str, AfterValidator(_check_factory)]
Options = Annotated[dict[str, Any], AfterValidator(_check_options)]
