"""Tables of an emulated cluster: its nodes, and what has gone over its links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_sim.report.table import Table
from chinchilla_sim.units import format_bytes


def hosts_table(nodes: Sequence[Mapping[str, Any]]) -> Table:
    """Every node with its address and the command that enters it."""
    rows = tuple((node["name"], node["address"], f"ip netns exec {node['namespace']} bash") for node in nodes)
    return Table("Emulated nodes", ("node", "address", "enter it by"), rows, text_columns=(0, 1, 2))


def traffic_table(traffic: Mapping[str, Any]) -> Table:
    """Bytes and packets of every link that carried any."""
    used = [(name, size) for name, size in traffic["wire_bytes"].items() if size]
    rows = tuple((name, format_bytes(size), str(traffic["wire_packets"][name])) for name, size in used)
    return Table("Traffic", ("link", "bytes", "packets"), rows, note=f"with all headers; {traffic['drops']} packets were lost")
