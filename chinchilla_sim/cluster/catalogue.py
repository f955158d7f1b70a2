"""The catalogue files: devices, links, backends and measured collectives, each figure with its source."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn

from chinchilla_sim.cluster.curves import CollectiveTables, ProductCurve
from chinchilla_sim.cluster.topology import Backend, Device, Link
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.units import parse_bandwidth, parse_bytes, parse_flop_per_s, parse_seconds, parse_usd_per_s, parse_watt

CPU_CORE = "cpu-core"
KINDS = ("devices", "links", "backends")
TF32 = "tf32"
"""Products of fp32 values on tensor cores; devices without them compute in fp32."""

FP8 = "fp8"
"""Products with weights in fp8, all else in bf16."""


@cache
def _raw() -> bytes:
    folder = files("chinchilla_sim.cluster")
    return folder.joinpath("catalogue.toml").read_bytes() + folder.joinpath("collectives.toml").read_bytes()


@cache
def _catalogue() -> dict[str, Any]:
    """The file, where a device has the figures of the `kernels` that it names beside its own, and their source behind its own."""
    tables = tomllib.loads(_raw().decode())
    for name, entry in tables["devices"].items():
        if "kernels" in entry:
            shared = tables["kernels"][entry.pop("kernels")]
            origin = {"source": f"{entry.pop('source')}; {shared['source']}", "date": entry.pop("date")}
            tables["devices"][name] = entry | {key: value for key, value in shared.items() if key not in entry} | origin
    return tables


def catalogue_digest() -> str:
    """SHA-256 of the catalogue files."""
    return hashlib.sha256(_raw()).hexdigest()


def device_names() -> list[str]:
    """Names that `device = "..."` accepts."""
    return sorted(_catalogue()["devices"])


def source_of(kind: str, name: str) -> str:
    """Where an entry's figures are from, with date."""
    entry = _catalogue()[kind][name]
    return f"{name}: {entry['source']} ({entry['date']})"


def price_source_of(name: str) -> str | None:
    """Where a device's price is from, with date; None where the catalogue has none."""
    entry = _catalogue()["devices"][name]
    return f"{name}: {entry['price']}: {entry['price_source']} ({entry['price_date']})" if "price" in entry else None


def entries(kind: str) -> dict[str, dict[str, Any]]:
    """All entries of a kind, in the order of the file, with the keys and texts of the file."""
    return {name: dict(entry) for name, entry in _catalogue()[kind].items()}


def find_entries(name: str) -> dict[str, dict[str, Any]]:
    """The entries of that name by kind; a device's curve of products is among them."""
    found = {kind: _catalogue()[kind][name] for kind in KINDS if name in _catalogue()[kind]}
    if not found:
        _refuse(name, [known for kind in KINDS for known in _catalogue()[kind]], "name")
    curve = found.get("devices", {}).get("products")
    return found | ({"products": _catalogue()["products"][curve]} if curve else {})


_UNITS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "peak": ("flop_per_s", parse_flop_per_s),
    "memory": ("bytes", parse_bytes),
    "memory_bandwidth": ("bytes_per_s", parse_bandwidth),
    "bandwidth": ("bytes_per_s", parse_bandwidth),
    "power": ("watt", parse_watt),
    "price": ("usd_per_s", parse_usd_per_s),
    "first_bytes": ("", parse_bytes),
    "collective_segment": ("bytes", parse_bytes),
    **{
        key: ("s", parse_seconds)
        for key in (
            "forward_launch",
            "backward_launch",
            "step_fixed",
            "host_launch",
            "host_microbatch",
            "launch",
            "fill",
            "latency",
            "collective_hop",
        )
    },
}


def in_base_units(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with numbers in place of texts with units, and the unit in the key.

    >>> in_base_units({"bandwidth": "1 GB/s", "peak": {"fp32": "1 Gflop/s"}, "date": "2025-01"})
    {'bandwidth_bytes_per_s': 1000000000.0, 'peak_flop_per_s': {'fp32': 1000000000.0}, 'date': '2025-01'}
    """
    converted: dict[str, Any] = {}
    for key, value in entry.items():
        unit, parse = _UNITS.get(key, ("", None))
        name = f"{key}_{unit}" if unit else key
        if parse is None:
            converted[key] = value
        else:
            converted[name] = {part: parse(text) for part, text in value.items()} if isinstance(value, dict) else parse(value)
    return converted


def find_device(name: str, precision: str, where: str) -> Device:
    """The device at one precision; an unknown name is a ScenarioError that offers the nearest one, as is a precision without a rate."""
    entry = _entry("devices", name, where)
    quantized_flop_per_s = _peak_flop_per_s(name, entry["peak"], FP8, where) if precision == FP8 else 0.0
    peak_flop_per_s = _peak_flop_per_s(name, entry["peak"], "bf16" if precision == FP8 else precision, where)
    efficiency = entry["memory_efficiency"]
    bandwidth = parse_bandwidth(entry["memory_bandwidth"]) * efficiency
    return Device(
        name=name,
        flop_per_s=peak_flop_per_s * entry["compute_efficiency"],
        memory_bytes=parse_bytes(entry["memory"]),
        memory_bandwidth_bytes_per_s=bandwidth,
        forward_launch_s=parse_seconds(entry["forward_launch"]),
        backward_launch_s=parse_seconds(entry["backward_launch"]),
        step_fixed_s=parse_seconds(entry.get("step_fixed", "0 s")),
        optimizer_bandwidth_bytes_per_s=bandwidth,
        optimizer_launch_s=parse_seconds(entry["forward_launch"]),
        elementwise_bandwidth_bytes_per_s=bandwidth,
        elementwise_launch_s=parse_seconds(entry["forward_launch"]),
        power_watt=parse_watt(entry["power"]),
        usd_per_s=parse_usd_per_s(entry.get("price", "0 USD/h")),
        overlap_slowdown=float(entry.get("overlap_slowdown", 0.0)),
        sustained_share=float(entry.get("sustained_share", 1.0)),
        streaming_share=float(entry.get("streaming_share", 1.0)),
        host_launch_s=parse_seconds(entry.get("host_launch", "0 s")),
        host_microbatch_s=parse_seconds(entry.get("host_microbatch", "0 s")),
        products=_curve(entry.get("products")),
        peak_flop_per_s=peak_flop_per_s,
        quantized_flop_per_s=quantized_flop_per_s,
        peak_bytes_per_s=parse_bandwidth(entry["memory_bandwidth"]),
    )


def _peak_flop_per_s(name: str, peak: Mapping[str, str], precision: str, where: str) -> float:
    if precision == TF32 and TF32 not in peak:
        precision = "fp32"
    if precision not in peak:
        raise ScenarioError([Mistake(where, f"{name!r} does not compute in {precision}", f"it has {', '.join(peak)}")])
    return parse_flop_per_s(peak[precision])


def _curve(name: str | None) -> ProductCurve | None:
    """A curve by the name of the device that it was fitted on."""
    if name is None:
        return None
    entry = _catalogue()["products"][name]
    return ProductCurve(
        launch_s=parse_seconds(entry["launch"]),
        fill_s=parse_seconds(entry["fill"]),
        fill_depth=entry["fill_depth"],
        compute_efficiency=entry["compute_efficiency"],
        compute_depth=entry["compute_depth"],
        memory_efficiency=entry["memory_efficiency"],
        first_bytes=parse_bytes(entry["first_bytes"]),
        corner=entry["corner"],
    )


def node_link(device_name: str) -> Link:
    """What joins the devices of a node, where the scenario does not say."""
    return find_link(_node_link_name(device_name))


def _node_link_name(device_name: str) -> str:
    name: str = _catalogue()["devices"].get(device_name, {}).get("node_link", "pcie-4-x16")
    return name


def node_collectives(device_name: str, backend: str, bandwidth_share: float = 1.0) -> tuple[str, CollectiveTables] | None:
    """Collectives measured on the link within this device's nodes, with the name of their source; None where there are none.

    Tables of another link with other bandwidth are borrowed: there, as many times the bytes take the same time. So it is with a
    `bandwidth_share` of the link that arrives.
    """
    link = _node_link_name(device_name)
    name = _catalogue()["links"][link].get("collectives")
    if name is None or _catalogue()["collectives"][name]["backend"] != backend:
        return None
    entry = _catalogue()["collectives"][name]
    share = bandwidth_share * find_link(link).bandwidth_bytes_per_s / find_link(entry["link"]).bandwidth_bytes_per_s
    return name, {
        (kind, int(count)): tuple((size * share, us / 1e6) for size, us in zip(table["bytes"], table["us"], strict=True))
        for kind, by_count in entry["ranks"].items()
        for count, table in by_count.items()
    }


def find_link(name: str, where: str = "cluster") -> Link:
    """A link class by name; an unknown one is a ScenarioError that offers the nearest one."""
    entry = _entry("links", name, where)
    return Link(parse_seconds(entry["latency"]), parse_bandwidth(entry["bandwidth"]))


def find_backend(name: str) -> Backend:
    """A communication backend by name."""
    entry = _entry("backends", name, "cluster.network.backend")
    return Backend(
        name=name,
        header_factor=entry["header_factor"],
        rendezvous=entry["rendezvous"],
        collective_hop_s=parse_seconds(entry["collective_hop"]),
        collective_segment_bytes=parse_bytes(entry["collective_segment"]),
        message_s=parse_seconds(entry.get("message", "0 s")),
        concurrent_collectives=entry.get("concurrent_collectives", 1),
    )


def _entry(kind: str, name: str, where: str) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = _catalogue()[kind]
    if name not in known:
        _refuse(name, list(known), where)
    return known[name]


def _refuse(name: str, known: Sequence[str], where: str) -> NoReturn:
    """ScenarioError that offers up to five members of the family of that name, else the nearest name, else all."""
    near = [other for other in sorted(known) if name.lower() in other] or difflib.get_close_matches(name.lower(), known, n=1)
    cure = f"did you mean {' or '.join(map(repr, near[:5]))}?" if near else f"known: {', '.join(sorted(known))}"
    raise ScenarioError([Mistake(where, f"{name!r} is not in the catalogue", cure)])
