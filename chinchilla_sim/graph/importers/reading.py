"""What all readers share: a file's text, JSON objects whose fields are checked one by one, a topological order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import Repr
from sys import float_info
from typing import Any

import networkx as nx

from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.scenario.check import suggest

NOT_WHOLE = "the file is not whole, or of another format than [model] format says"

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


@dataclass
class Report:
    """The mistakes of one file, collected while it is read."""

    path: Path
    mistakes: list[Mistake] = field(default_factory=list)
    _known: set[Mistake] = field(default_factory=set)

    def add(self, where: str, what: str, cure: str = "") -> None:
        """Note one mistake; a field that is read twice is wrong once."""
        mistake = Mistake(where, what, cure)
        if mistake not in self._known:
            self._known.add(mistake)
            self.mistakes.append(mistake)

    def stop_if_wrong(self) -> None:
        """Raise all mistakes so far, if there are any."""
        if self.mistakes:
            raise ScenarioError(self.mistakes, str(self.path))

    def fail(self, where: str, what: str, cure: str = "") -> ScenarioError:
        """The error of a mistake after which nothing more can be read."""
        self.add(where, what, cure)
        return ScenarioError(self.mistakes, str(self.path))


def read_text(report: Report) -> str:
    """The whole file."""
    try:
        return report.path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise report.fail("", "is not a text file", NOT_WHOLE) from error
    except (OSError, ValueError) as error:
        raise report.fail("", f"cannot be read: {why_unreadable(error)}", "check [model] graph") from error


def read_object(report: Report) -> Fields:
    """The JSON object that is the file."""
    try:
        data = json.loads(read_text(report), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise report.fail(f"line {error.lineno}", error.msg, NOT_WHOLE) from error
    except RecursionError as error:
        raise report.fail("", "is nested too deeply", NOT_WHOLE) from error
    except ValueError as error:
        raise report.fail("", str(error), "correct the file") from error
    if not isinstance(data, dict):
        raise report.fail("", f"holds {show(data)}, not a JSON object", NOT_WHOLE)
    return Fields(data, "", report)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {show(twice)} is written twice in one object")
    return table


def show(value: object) -> str:
    """A value of the file, shortened."""
    return _SHORT.repr(value)


def is_amount(value: object) -> bool:
    """A finite number that is not negative.

    >>> [is_amount(value) for value in (0, 1.5, -1, float("nan"), float("inf"), 10**400, True, "1")]
    [True, True, False, False, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= float_info.max


def is_count(value: object, least: int = 0) -> bool:
    """A whole number of at least `least`, that a machine counts in."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


@dataclass(frozen=True)
class Fields:
    """One JSON object of a file. A getter whose field is missing or of the wrong kind reports that and returns a harmless value."""

    data: Mapping[str, Any]
    path: str
    report: Report

    def at(self, key: str | int) -> str:
        """Dotted path of a field."""
        return f"{self.path}.{key}" if self.path else str(key)

    def wrong(self, key: str, kind: str) -> None:
        """Report a field that is not of the kind."""
        if key in self.data:
            self.report.add(self.at(key), f"is {show(self.data[key])}", f"write {kind}")
        else:
            self.report.add(self.at(key), "is missing", f"write {kind}")

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Report fields of other names."""
        known = list(known)
        for key in self.data:
            if key not in known:
                self.report.add(self.at(key), "is not known here", suggest(key, known))

    def amount(self, key: str) -> float:
        """A number >= 0 as a float."""
        return float(self._get(key, is_amount, "a number >= 0", 0.0))

    def count(self, key: str, least: int = 0) -> int:
        """A whole number."""
        value: int = self._get(key, lambda value: is_count(value, least), f"a whole number >= {least}", least)
        return value

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value: str = self._get(key, lambda value: isinstance(value, str) and value != "", "a text", "")
        return value

    def flag(self, key: str) -> bool:
        """true or false, or 1 or 0."""
        return bool(self._get(key, lambda value: isinstance(value, int) and value in (0, 1), "true or false", False))

    def table(self, key: str) -> Fields:
        """An object; what is missing in one that is not there is not reported again."""
        data = self._get(key, lambda value: isinstance(value, dict), "an object { }", None)
        return Fields({}, self.at(key), Report(self.report.path)) if data is None else Fields(data, self.at(key), self.report)

    def tables(self, key: str) -> list[Fields]:
        """A list of objects; entries that are no objects are reported and left out."""
        rows = self._get(key, lambda value: isinstance(value, list), "a list [ ]", [])
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                self.report.add(f"{self.at(key)}.{index}", f"is {show(row)}", "write an object { }")
        return [Fields(row, f"{self.at(key)}.{index}", self.report) for index, row in enumerate(rows) if isinstance(row, dict)]

    def amounts(self, key: str) -> dict[str, float]:
        """An object of numbers >= 0."""
        table = self.table(key)
        return {name: table.amount(name) for name in table.data}

    def _get(self, key: str, good: Callable[[Any], bool], kind: str, harmless: Any) -> Any:
        if key in self.data and good(self.data[key]):
            return self.data[key]
        self.wrong(key, kind)
        return harmless


def edges_between(file: Fields, name_of: Mapping[int, str]) -> dict[tuple[str, str], Fields]:
    """Rows of `edges` with `sourceId` and `destId`, by the names (producer, consumer) of these ids."""
    edges: dict[tuple[str, str], Fields] = {}
    places = []
    for row in file.tables("edges"):
        ids = (row.count("sourceId"), row.count("destId"))
        for key, number in zip(("sourceId", "destId"), ids, strict=True):
            if number not in name_of and is_count(row.data.get(key)):
                file.report.add(row.at(key), f"is {number}, the id of no node", "give the id of a node")
        if set(ids) <= set(name_of):
            edge = name_of[ids[0]], name_of[ids[1]]
            edges[edge] = row
            places.append((edge, row.path))
    refuse_twice(places, file.report, "the edge")
    return edges


def topological_order(names: Sequence[str], edges: Mapping[tuple[str, str], str], report: Report) -> list[str]:
    """Names in dependency order, and as in the file where that leaves a choice; `edges` gives the place of each pair in the file.

    Reports edges to unknown names, or a cycle, and stops there.
    """
    known = set(names)
    for (producer, consumer), where in edges.items():
        for name in (producer, consumer):
            if name not in known:
                report.add(where, f"names {show(name)}, which is no node of the file", "give both ends of an edge")
    report.stop_if_wrong()
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(edges)
    position = {name: index for index, name in enumerate(names)}
    try:
        return list(nx.lexicographical_topological_sort(graph, key=position.__getitem__))
    except nx.NetworkXUnfeasible as error:
        cycle = [pair[0] for pair in nx.find_cycle(graph)]
        where = edges[cycle[0], cycle[1 % len(cycle)]]
        raise report.fail(where, f"closes a cycle: {show(' -> '.join([*cycle, cycle[0]]))}", "remove one edge of it") from error


def refuse_twice(places: Iterable[tuple[Any, str]], report: Report, what: str) -> None:
    """Report every name (or pair) that an earlier place gave already."""
    first: dict[Any, str] = {}
    for name, where in places:
        if name in first:
            report.add(where, f"{what} {show(name)} is already given by {first[name]}", "leave one of them out")
        first.setdefault(name, where)
