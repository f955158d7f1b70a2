"""Measured collectives against the simulator's seconds, and how well a thinned table does on sizes it has not seen.

Reads the columns of NVIDIA's AIConfigurator (one node, elements of 2 bytes) and those of collectives.csv (also several nodes). In both
sizes are those of nccl-tests: the result of an all-gather, the input of a reduce-scatter, what each rank sends in an all-to-all.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import fsum
from pathlib import Path
from statistics import fmean

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.catalogue import find_device
from chinchilla_sim.cluster.curves import Table
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.collective import collective_s, interpolate_s, measured_table
from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.units import plain_number
from chinchilla_sim.validation.published import INTERNODE_LATENCY_S, device_name_of
from chinchilla_sim.validation.published_model import NotPredictedError

KINDS = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all"}
NODE_COLUMNS = ("op_name", "num_gpus", "message_size_elems_fp16", "latency_ms")
COLUMNS = ("device", "version", "nodes", "gpus_per_node", "n_gpus", "op", "size_bytes", "time_us")
THINNED_ROWS = 5
FP16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Series:
    """One measured curve: a collective of so many ranks on so many nodes; `version` is the library's."""

    device: str
    version: str
    kind: str
    nodes: int
    ranks: int


@dataclass(frozen=True, slots=True)
class CollectiveLine:
    """Mean absolute relative errors on one series: as simulated, by the formula alone, and of thinned tables on sizes left out."""

    series: Series
    rows: int
    simulated_error: float | None
    formula_error: float | None
    left_out_error: float | None
    thinned: Table = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class CollectiveResult:
    """A line for every series, and why rows were not used."""

    lines: tuple[CollectiveLine, ...]
    unused: dict[str, int]

    def mean(self, name: str) -> float | None:
        """Mean of an error over the series (operations and rank counts weigh alike)."""
        errors = [value for line in self.lines if (value := getattr(line, name)) is not None]
        return fmean(errors) if errors else None


def check_collectives(path: Path, device: str = "a100-sxm-80gb", network_bytes_per_s: float | None = None) -> CollectiveResult:
    """A table of measured collectives; `device` where the table names none, `network` is what a node's interface carries.

    ScenarioError where the file cannot be read.
    """
    find_device(device, "bf16", "--device")
    measured, unused = read_collectives(path, device)
    lines = []
    for series, rows in measured.items():
        table = tuple(sorted(rows.items()))
        simulated = formula = left_out = None
        cluster = _cluster(series, network_bytes_per_s)
        if cluster:
            simulated, formula = (_mean_error(_seconds(cluster, series, table, plain), table) for plain in (False, True))
        elif series.nodes > 1:
            unused["several nodes, and --network is not given"] += len(table)
        else:
            unused[f"device {series.device} is not in the catalogue"] += len(table)
        if series.nodes == 1 and len(table) > THINNED_ROWS:
            left_out = left_out_error(table)
        thinned = thin(table) if series.nodes == 1 else ()
        lines.append(CollectiveLine(series, len(table), simulated, formula, left_out, thinned))
    return CollectiveResult(tuple(lines), dict(unused))


@lru_cache(maxsize=256)
def _cluster(series: Series, network_bytes_per_s: float | None) -> Cluster | None:
    """The ranks of a series on NCCL; None where the catalogue does not know the device, or the network is not known."""
    try:
        name = device_name_of(series.device)
    except NotPredictedError:
        return None
    if series.nodes > 1 and network_bytes_per_s is None:
        return None
    nodes = [{"name": "node", "count": series.nodes, "devices": max(2, series.ranks // series.nodes), "device": name}]
    network = {"backend": "nccl", "topology": "switch", "latency": f"{INTERNODE_LATENCY_S} s"}
    return build_cluster(
        ClusterSpec.model_validate({"nodes": nodes, "network": network | {"bandwidth": f"{network_bytes_per_s or 1.0} B/s"}}), "bf16"
    )


def _seconds(cluster: Cluster, series: Series, table: Table, plain: bool) -> list[float]:
    slots = range(series.ranks)
    measured = () if plain else measured_table(cluster, series.kind, slots)
    link = cluster.slowest_pair(slots)
    return [collective_s(series.kind, size, series.ranks, link, cluster.backend, measured) for size, _ in table]


def _mean_error(seconds: Sequence[float], table: Table) -> float:
    return fmean(abs(mine / measured - 1.0) for mine, (_, measured) in zip(seconds, table, strict=True))


def left_out_error(table: Table, count: int = THINNED_ROWS) -> float:
    """Mean error on every size, interpolated in a thinned table of the others."""
    errors = []
    for index, (size, seconds) in enumerate(table):
        errors.append(abs(interpolate_s(thin(table[:index] + table[index + 1 :], count), size) / seconds - 1.0))
    return fmean(errors)


def thin(table: Table, count: int = THINNED_ROWS) -> Table:
    """The rows, `count` at most, that tell most about the others: the least sum of relative errors, and no row faster than a smaller one.

    The last row stays. Exact dynamic programme over (rows chosen, last of them), O(count rows^3):

        best[1][k] = error of rows before k, taken to be as long as k
        best[j][k] = min over i < k with s_i <= s_k of  best[j-1][i] + error of the rows between i and k on their line
    """
    if len(table) <= 2:
        return table
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        index: (fsum(abs(row[1] / s - 1.0) for _, s in table[:index]), (index,)) for index, row in enumerate(table)
    }
    last = len(table) - 1
    found = best[last]
    for _ in range(count - 1):
        longer = {}
        for k in range(1, len(table)):
            ways = [
                (cost + _line_error(table, i, k), (*rows, k)) for i, (cost, rows) in best.items() if i < k and table[i][1] <= table[k][1]
            ]
            if ways:
                longer[k] = min(ways)
        best = longer
        found = min(found, best.get(last, found))
    return tuple(table[index] for index in found[1])


def _line_error(table: Table, first: int, last: int) -> float:
    ends = table[first], table[last]
    return sum(abs(interpolate_s(ends, size) / seconds - 1.0) for size, seconds in table[first + 1 : last])


# Reading


def read_collectives(path: Path, device: str) -> tuple[dict[Series, dict[float, float]], Counter[str]]:
    """Seconds by payload bytes of every series, and how many rows were not used, by reason."""
    measured: dict[Series, dict[float, float]] = {}
    unused: Counter[str] = Counter()
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            names = set(reader.fieldnames or ())
            if not names.issuperset(NODE_COLUMNS) and not names.issuperset(COLUMNS):
                raise ValueError("it has other columns, or none")
            for row in reader:
                if names.issuperset(NODE_COLUMNS):
                    row = _general(row, device)
                if KINDS.get(row["op"]) is None:
                    unused[f"{row['op']} is no collective of the simulator"] += 1
                elif not row["size_bytes"] or not row["time_us"]:
                    unused["size or time is not stated"] += 1
                else:
                    series, size, seconds = _measured(row)
                    measured.setdefault(series, {})[size] = seconds
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        what = f"cannot be read: {why_unreadable(error)}"
        raise ScenarioError([Mistake("", what, f"give columns {', '.join(NODE_COLUMNS)}; or {', '.join(COLUMNS)}")], str(path)) from error
    if not measured:
        raise ScenarioError([Mistake("", "holds no measured collective", f"op is one of {', '.join(KINDS)}")], str(path))
    return measured, unused


def _general(row: dict[str, str], device: str) -> dict[str, str]:
    """A row of AIConfigurator in the other columns."""
    size, time_us = float(row["message_size_elems_fp16"]) * FP16_BYTES, float(row["latency_ms"]) * 1e3
    return {
        "device": device, "version": "", "nodes": "1", "n_gpus": row["num_gpus"], "op": row["op_name"],
        "size_bytes": str(size), "time_us": str(time_us),
    }  # fmt: skip


def _measured(row: dict[str, str]) -> tuple[Series, float, float]:
    kind, ranks, size, seconds = KINDS[row["op"]], int(row["n_gpus"]), float(row["size_bytes"]), float(row["time_us"]) / 1e6
    nodes = int(row["nodes"])
    if ranks < 2 or nodes < 1 or not (0 < size < float("inf") and 0 < seconds < float("inf")):
        raise ValueError(f"{row['op']} of {ranks} ranks on {nodes} nodes, {plain_number(size)} B in {plain_number(seconds)} s")
    version = " ".join(part for part in (row.get("source_id", ""), row["version"]) if part)
    return Series(row["device"], version, kind, nodes, ranks), size / (ranks if kind == "all_gather" else 1), seconds
