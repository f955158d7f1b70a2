"""Options of a formula, checked against its dataclass of shape parameters: all mistakes at once.

A field's annotation says what it may be: `int` at least 1 (or `metadata["minimum"]`), `float` a probability,
`int | None` and the like may be left out, and `metadata["choices"]` lists the words of a `str`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from chinchilla_sim.errors import Mistake, ScenarioError


class ShapeParameters(Protocol):
    """Shape parameters of one formula."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def mistakes(self) -> list[Mistake]:
        """What is wrong between fields that are each right."""


S = TypeVar("S", bound=ShapeParameters)


def mistake(key: str, what: str, cure: str = "") -> Mistake:
    """A mistake in `[model] options`."""
    return Mistake(f"model.options.{key}", what, cure)


def divisibility(shape: ShapeParameters, whole: str, part: str) -> list[Mistake]:
    """One mistake where field `whole` is no multiple of field `part`."""
    total, divisor = getattr(shape, whole), getattr(shape, part)
    if total % divisor == 0:
        return []
    return [mistake(whole, f"{total} is not divisible by {part} = {divisor}", f"write {divisor * max(round(total / divisor), 1)}")]


def shape_of(kind: type[S], options: Mapping[str, Any], batch_size: int) -> S:
    """The shape parameters that `options` describe, or ScenarioError with everything wrong in them."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    mistakes = [mistake(key, "is no option of this formula", f"write one of {', '.join(fields)}") for key in options if key not in fields]
    for key, field in fields.items():
        if key in options:
            mistakes += _value_mistakes(field, options[key])
        elif field.default is dataclasses.MISSING:
            mistakes.append(mistake(key, "is missing", f"write {key} = ..."))
    if batch_size < 1:
        mistakes.append(Mistake("batch_size", f"must be at least 1, not {batch_size}"))
    if mistakes:
        raise ScenarioError(mistakes)
    shape = kind(**options)
    if found := shape.mistakes():
        raise ScenarioError(found)
    return shape


def _value_mistakes(field: dataclasses.Field[Any], value: Any) -> list[Mistake]:
    wanted, _, optional = str(field.type).partition(" | ")
    if value is None and optional:
        return []
    right_type = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
    }[wanted]
    name = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}[wanted]
    if not right_type:
        return [mistake(field.name, f"must be {name}, not {value!r}")]
    minimum = field.metadata.get("minimum", 1)
    if wanted == "int" and value < minimum:
        return [mistake(field.name, f"must be at least {minimum}, not {value}")]
    if wanted == "float" and not 0 <= value < 1:
        return [mistake(field.name, f"must be from 0 up to but not including 1, not {value}")]
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        return [mistake(field.name, f"{value!r} is not known here", f"write one of {', '.join(map(str, choices))}")]
    return []
