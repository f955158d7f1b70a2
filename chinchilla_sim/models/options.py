"""Options of the built-in jobs: a preset, and single values on top of it; every mistake is told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.options import mistake, value_mistakes


@dataclasses.dataclass(frozen=True)
class Options:
    """Shape of one network and of its data; a job adds its fields."""

    def mistakes(self) -> list[Mistake]:
        """What is wrong between fields that are each right."""
        return []


O = TypeVar("O", bound=Options)  # noqa: E741


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
        found = value_mistakes(fields[key], value) if key in fields else [_unknown(key, [*fields, "preset"])]
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
