"""Recalibration: what real runs of one model taught about a machine, as factors on what calibration and profile say.

A factor is measured over simulated seconds, so that it holds for other microbatch sizes, partitions and numbers of
ranks too. What a later run teaches multiplies what earlier ones did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chinchilla_sim.cluster.topology import Cluster, Device, Link
from chinchilla_sim.errors import Mistake, ScenarioError

FORMAT = "chinchilla-recalibration"
VERSION = 1


@dataclass(frozen=True)
class Recalibration:
    """Factors on seconds; `between_passes_s` is what the program takes before each pass, beside the pass itself.

    `task_scales` are of each task's forward and backward seconds, `optimizer_scale` of an update with what is fixed per step,
    `codec_scale` of all elementwise kernels beside the model's own. Messages have a factor for their latency and one for the seconds
    of their bytes; `collective_scales["all_reduce/2"]` is of measured tables of two ranks. A rank
    takes `input_s` to get its part of a batch.
    """

    task_scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    between_passes_s: float = 0.0
    optimizer_scale: float = 1.0
    codec_scale: float = 1.0
    latency_scale: float = 1.0
    byte_scale: float = 1.0
    collective_scales: Mapping[str, float] = field(default_factory=dict)
    input_s: float = 0.0
    date: str = ""

    def correct_cluster(self, cluster: Cluster) -> Cluster:
        """The cluster with the factors applied."""
        graph = cluster.graph.copy()
        for *_, edge in graph.edges(data=True):
            edge["link"] = self._correct_link(edge["link"])
        tables = {
            node: {key: self._correct_table(key, table) for key, table in rows.items()} for node, rows in cluster.node_collectives.items()
        }
        return replace(
            cluster,
            graph=graph,
            devices=tuple(map(self._correct_device, cluster.devices)),
            crowded={count: self._correct_device(device) for count, device in cluster.crowded.items()},
            node_collectives=tables,
        )

    def _correct_link(self, link: Link) -> Link:
        bandwidth = link.bandwidth_bytes_per_s / self.byte_scale
        return replace(link, latency_s=link.latency_s * self.latency_scale, bandwidth_bytes_per_s=bandwidth)

    def _correct_table(self, key: tuple[str, int], table: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        scale = self.collective_scales.get(collective_name(*key), 1.0)
        return tuple((size, seconds * scale) for size, seconds in table)

    def _correct_device(self, device: Device) -> Device:
        return replace(
            device,
            forward_fixed_s=device.forward_fixed_s + self.between_passes_s,
            backward_fixed_s=device.backward_fixed_s + self.between_passes_s,
            step_fixed_s=device.step_fixed_s * self.optimizer_scale,
            optimizer_launch_s=device.optimizer_launch_s * self.optimizer_scale,
            optimizer_bandwidth_bytes_per_s=device.optimizer_bandwidth_bytes_per_s / self.optimizer_scale,
            elementwise_launch_s=device.elementwise_launch_s * self.codec_scale,
            elementwise_bandwidth_bytes_per_s=device.elementwise_bandwidth_bytes_per_s / self.codec_scale,
        )

    def after(self, earlier: Recalibration) -> Recalibration:
        """Both: this one was learnt from predictions that the `earlier` one had corrected."""
        tasks = {**earlier.task_scales, **self.task_scales}
        collectives = {**earlier.collective_scales, **self.collective_scales}
        return Recalibration(
            task_scales={name: _product(name, self.task_scales, earlier.task_scales) for name in tasks},
            between_passes_s=self.between_passes_s,
            optimizer_scale=self.optimizer_scale * earlier.optimizer_scale,
            codec_scale=self.codec_scale * earlier.codec_scale,
            latency_scale=self.latency_scale * earlier.latency_scale,
            byte_scale=self.byte_scale * earlier.byte_scale,
            collective_scales={
                name: self.collective_scales.get(name, 1.0) * earlier.collective_scales.get(name, 1.0) for name in collectives
            },
            input_s=self.input_s,
            date=self.date or earlier.date,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Recalibration:
        """Inverse of `to_dict`; ValueError where it is something else."""
        values = dict(data)
        if values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
            raise ValueError(f"not a {FORMAT} file of version {VERSION}")
        values["task_scales"] = {name: (float(forward), float(backward)) for name, (forward, backward) in values["task_scales"].items()}
        return Recalibration(**values)

    @property
    def digest(self) -> str:
        """SHA-256 of all factors."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _product(name: str, *scales: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    forward = backward = 1.0
    for one in scales:
        forward *= one.get(name, (1.0, 1.0))[0]
        backward *= one.get(name, (1.0, 1.0))[1]
    return forward, backward


def collective_name(kind: str, rank_count: int) -> str:
    """Key of `collective_scales`.

    >>> collective_name("all_reduce", 2)
    'all_reduce/2'
    """
    return f"{kind}/{rank_count}"


def load_recalibration(path: Path) -> Recalibration:
    """Read one file; a damaged one is a ScenarioError."""
    try:
        return Recalibration.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cure = "delete it and run chinchilla validate run PLAN --recalibrate"
        raise ScenarioError([Mistake("recalibration", f"cannot be read: {error}", cure)], str(path)) from error


def save_recalibration(recalibration: Recalibration, path: Path) -> None:
    """Write the file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(recalibration.to_dict(), indent=1))
    partial.replace(path)
