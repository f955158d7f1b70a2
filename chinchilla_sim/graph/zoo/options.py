"""Options of a formula, checked against its dataclass of shape parameters: all mistakes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.options import mistake, value_mistakes


class ShapeParameters(Protocol):
    """Shape parameters of one formula."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def mistakes(self) -> list[Mistake]:
        """What is wrong between fields that are each right."""


S = TypeVar("S", bound=ShapeParameters)


def shape_of(kind: type[S], options: Mapping[str, Any], batch_size: int) -> S:
    """The shape parameters that `options` describe, or ScenarioError with everything wrong in them."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    mistakes = [mistake(key, "is no option of this formula", f"write one of {', '.join(fields)}") for key in options if key not in fields]
    for key, field in fields.items():
        if key in options:
            mistakes += value_mistakes(field, options[key])
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
