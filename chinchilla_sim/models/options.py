"""Options of the built-in jobs: a preset, and single values on top of it; every mistake is told at once.

A field's annotation says what it may be: `int` at least 1, `float` from 0 up to but not including 1, `bool`, or
`tuple[int, ...]` of at least one such int; `metadata["choices"]` lists the values of a field that has few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from chinchilla_sim.errors import Mistake, ScenarioError

_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple[int, ...]": "a list of whole numbers"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Shape of one network and of its data; a job adds its fields."""

    def mistakes(self) -> list[Mistake]:
        """What is wrong between fields that are each right."""
        return []


O = TypeVar("O", bound=Options)  # noqa: E741


def mistake(key: str, what: str, cure: str = "") -> Mistake:
    """A mistake in `[model] options`."""
    return Mistake(f"model.options.{key}", what, cure)


def divisibility(options: Options, whole: str, part: str) -> list[Mistake]:
    """One mistake where field `whole` is no multiple of field `part`."""
    total, divisor = getattr(options, whole), getattr(options, part)
    if total % divisor == 0:
        return []
    return [mistake(whole, f"{total} is not divisible by {part} = {divisor}", f"write {divisor * max(round(total / divisor), 1)}")]


def read_options(presets: Mapping[str, O], preset: str, given: Mapping[str, Any], *, data: str | None = None) -> O:
    """The preset with the given values in place of its own; ScenarioError with everything that is wrong.

    Jobs that read no file leave `data` to this function, which refuses it.
    """
    known = next(iter(presets.values()))
    mistakes = [] if preset in presets else [mistake("preset", f"{preset!r} is not known here", f"write one of {', '.join(presets)}")]
    if data is not None:
        mistakes.append(Mistake("job.data", f"is {data!r}, but this model makes its own data", "leave it out"))
    base = presets.get(preset, known)
    fields = {field.name: field for field in dataclasses.fields(base)}
    right: dict[str, Any] = {}
    for key, value in given.items():
        found = _value_mistakes(fields[key], value) if key in fields else [_unknown(key, [*fields, "preset"])]
        mistakes += found
        if not found:
            right[key] = tuple(value) if isinstance(value, list) else value
    options = dataclasses.replace(base, **right)
    told = {one.where for one in mistakes}
    mistakes += [one for one in options.mistakes() if one.where not in told]
    if mistakes:
        raise ScenarioError(mistakes)
    return options


def _unknown(key: str, known: list[str]) -> Mistake:
    return mistake(key, "is no option of this model", f"write one of {', '.join(known)}")


def _value_mistakes(field: dataclasses.Field[Any], value: Any) -> list[Mistake]:
    wanted = str(field.type)
    if not _has_type(wanted, value):
        return [mistake(field.name, f"must be {_NAMES[wanted]}, not {value!r}")]
    if "int" in wanted and min(value if isinstance(value, list | tuple) else [value]) < 1:
        return [mistake(field.name, f"must be at least 1, not {value!r}")]
    if wanted == "float" and not 0 <= value < 1:
        return [mistake(field.name, f"must be from 0 up to but not including 1, not {value!r}")]
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        return [mistake(field.name, f"{value!r} is not known here", f"write one of {', '.join(map(str, choices))}")]
    return []


def _has_type(wanted: str, value: Any) -> bool:
    if wanted == "bool":
        return isinstance(value, bool)
    if wanted == "tuple[int, ...]":
        return isinstance(value, list | tuple) and len(value) > 0 and all(_has_type("int", item) for item in value)
    return isinstance(value, int if wanted == "int" else int | float) and not isinstance(value, bool)
