"""Values of `[model] options`, checked against the fields of a dataclass, for formulas and built-in jobs alike.

A field's annotation says what it may be: `int` at least 1 (or `metadata["minimum"]`), `float` from 0 up to but not including 1, `bool`,
`str`, or `tuple[int, ...]` of at least one such int; `int | None` and the like may be left out. `metadata["choices"]` lists the values of
a field that has few.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from chinchilla_sim.errors import Mistake

_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "tuple[int, ...]": "a list of whole numbers",
}


def mistake(key: str, what: str, cure: str = "") -> Mistake:
    """A mistake in `[model] options`."""
    return Mistake(f"model.options.{key}", what, cure)


def divisibility(options: object, whole: str, part: str) -> list[Mistake]:
    """One mistake where field `whole` is no multiple of field `part`."""
    total, divisor = getattr(options, whole), getattr(options, part)
    if total % divisor == 0:
        return []
    return [mistake(whole, f"{total} is not divisible by {part} = {divisor}", f"write {divisor * max(round(total / divisor), 1)}")]


def value_mistakes(field: dataclasses.Field[Any], value: Any) -> list[Mistake]:
    """What is wrong with the value of a field by itself."""
    wanted, _, optional = str(field.type).partition(" | ")
    if value is None and optional:
        return []
    if not _has_type(wanted, value):
        return [mistake(field.name, f"must be {_NAMES[wanted]}, not {value!r}")]
    minimum = field.metadata.get("minimum", 1)
    if "int" in wanted and min(value if isinstance(value, list | tuple) else [value]) < minimum:
        return [mistake(field.name, f"must be at least {minimum}, not {value!r}")]
    if wanted == "float" and not 0 <= value < 1:
        return [mistake(field.name, f"must be from 0 up to but not including 1, not {value!r}")]
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        return [mistake(field.name, f"{value!r} is not known here", f"write one of {', '.join(map(str, choices))}")]
    return []


def _has_type(wanted: str, value: Any) -> bool:
    if wanted in ("bool", "str"):
        return isinstance(value, bool if wanted == "bool" else str)
    if wanted == "tuple[int, ...]":
        return isinstance(value, list | tuple) and len(value) > 0 and all(_has_type("int", item) for item in value)
    return isinstance(value, int if wanted == "int" else int | float) and not isinstance(value, bool)
