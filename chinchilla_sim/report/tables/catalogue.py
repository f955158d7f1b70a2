"""Tables of the catalogue: all entries of a kind, and all keys of one name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_sim.cluster.catalogue import in_base_units
from chinchilla_sim.report.table import NONE, Table

_PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8")
_LISTED = {
    "devices": ("memory", "memory_bandwidth", "power", "node_link", "price", "source", "date"),
    "links": ("bandwidth", "latency", "source", "date"),
    "backends": ("header_factor", "rendezvous", "collective_hop", "collective_segment", "source", "date"),
}
_Entries = Mapping[str, Mapping[str, Mapping[str, Any]]]


def catalogue_tables(listed: _Entries) -> list[Table]:
    """One table per kind, one row per entry, figures as the file writes them."""
    tables = []
    for kind, entries in listed.items():
        peaks = _PRECISIONS if kind == "devices" else ()
        headers = (kind.removesuffix("s"), *peaks, *(key.replace("_", " ") for key in _LISTED[kind]))
        rows = [
            (name, *(entry["peak"].get(peak, NONE) for peak in peaks), *(_cell(entry.get(key, NONE)) for key in _LISTED[kind]))
            for name, entry in entries.items()
        ]
        texts = tuple(column for column, header in enumerate(headers) if column == 0 or header in ("node link", "source", "date"))
        tables.append(Table(f"{kind.capitalize()} of the catalogue", headers, tuple(rows), text_columns=texts))
    return tables


def entry_tables(name: str, found: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """All keys of the entries of one name; the title says what kind each is."""
    tables = []
    for kind, entry in found.items():
        what = f"curve of matrix products, {found['devices']['products']}'s" if kind == "products" else kind.removesuffix("s")
        tables.append(Table(f"{name}: {what}", ("key", "value"), tuple(_flat(entry)), text_columns=(0, 1)))
    return tables


def catalogue_dict(listed: _Entries) -> dict[str, Any]:
    """The entries by kind and name, in base units."""
    return {kind: {name: in_base_units(entry) for name, entry in entries.items()} for kind, entries in listed.items()}


def _flat(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        pair
        for key, value in entry.items()
        for pair in ([(f"{key} {part}", text) for part, text in value.items()] if isinstance(value, Mapping) else [(key, _cell(value))])
    ]


def _cell(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
