"""What one foreign file says: values by their dotted place in a scenario, and the keys that nobody used."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import Mistake
from chinchilla_sim.scenario.fields import show_value

MOST = 10**12
"""No count of a model or a job is larger."""


@dataclass(frozen=True, slots=True)
class Said:
    """A value of a scenario, and who says it, such as `config.json: n_layer`; a default that a file leaves in place is not `stated`."""

    value: Any
    by: str
    stated: bool = True


@dataclass(frozen=True, slots=True)
class Parts:
    """What one file says about a scenario.

    `said` is by dotted place, such as `job.precision`. `devices` is how many devices the file is for, `layer_counts` the layers of each
    stage where it says so, and `replicas_first` whether neighbouring devices are replicas of a stage, not stages of a replica.
    """

    source: str
    form: str
    said: Mapping[str, Said]
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    devices: int | None = None
    devices_per_node: int | None = None
    layer_counts: tuple[int, ...] = ()
    replicas_first: bool = True

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return Path(self.source).name

    def value(self, place: str) -> Any:
        """The value at a place, or None."""
        return self.said[place].value if place in self.said else None


@dataclass
class Keys:
    """Takes the keys of one file one by one, and remembers which were used, what is wrong, and what cannot be expressed.

    Values are those of JSON; those of a command line are texts (`textual`), and are read as numbers here.
    """

    source: str
    values: Mapping[str, Any]
    textual: bool = False
    said: dict[str, Said] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def say(self, place: str, value: Any, by: str, stated: bool = True) -> None:
        """A value of the scenario, unless it is None; what is only a default gives way to what another file states."""
        if value is None:
            return
        if self.textual and by.startswith("--") and " " not in by and by[2:] not in self.values:
            by = f"no {by}"
        name = Path(self.source).name
        self.said[place] = Said(value, f"{name}: {by}" if by else name, stated)

    def warn(self, key: str, what: str) -> None:
        """A value that a scenario cannot express, and what is taken instead."""
        self.used.add(key)
        self.warnings.append(f"{key} {what}")

    def wrong(self, key: str, what: str, cure: str = "") -> None:
        """A mistake in the file."""
        self.used.add(key)
        self.mistakes.append(Mistake(key, what, cure))

    def take(self, key: str) -> Any:
        """A value as it stands; None where the file does not have it, or says null."""
        self.used.add(key)
        return self.values.get(key)

    def whole(self, key: str, least: int = 1) -> int | None:
        """A whole number."""
        value = self._parsed(key, int)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(key, f"must be a whole number, not {show_value(value)}", self._cure(value, max(least, 8)))
        elif value > MOST:
            self.wrong(key, f"{show_value(value)} is more than anything has", self._cure(value, max(least, 8)))
        elif value < least:
            self.wrong(key, f"must be at least {least}, not {value}", self._cure(value, max(least, 8)))
        else:
            return value
        return None

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self._parsed(key, float)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.wrong(key, f"must be a number, not {show_value(value)}", self._cure(value, 0.1))
            return None
        return float(value)

    def word(self, key: str, known: Collection[str] = ()) -> str | None:
        """A text, one of the `known` if those are given."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.wrong(key, f"must be a text, not {show_value(value)}")
        elif known and value not in known:
            self.wrong(key, f"{show_value(value)} is not known here", f"write one of {', '.join(known)}")
        else:
            return value
        return None

    def flag(self, key: str) -> bool:
        """Whether a switch is on: of a command line by being there, of JSON by being true."""
        if self.textual:
            self.used.add(key)
            return key in self.values
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            self.wrong(key, f"must be true or false, not {show_value(value)}")
        return value is True

    def ignored(self) -> tuple[str, ...]:
        """Names of keys that nobody used."""
        return tuple(sorted(set(self.values) - self.used))

    def _cure(self, value: Any, example: float) -> str:
        if self.textual and isinstance(value, str) and "$" in value:
            return "the text does not set this variable: write its value"
        return f"write for example {example:g}"

    def _parsed(self, key: str, kind: type[int] | type[float]) -> Any:
        value = self.take(key)
        if not self.textual or not isinstance(value, str):
            return value
        try:
            return kind(value)
        except ValueError:
            return value
