"""Calibration: what measuring this machine taught, fitted to a few named constants, cached per machine.

Time of one kernel, fitted to measured rows by non-negative least squares on relative error:

    t = launches * launch_s + flop / flop_per_s + bytes / memory_bandwidth  (+ fixed_s of a backward pass)

(a sum, not a maximum: on the CPU cores that were measured, loading weights does not hide behind products).
Linear layers have, in each number format, a fit of their own and what it is off by at every size that was measured (`cost/linear.py`).
This module is given the rows; `runtime/measurement/probe.py` measures them. Rates depend on how many ranks are busy at
once, so each count has its own constants.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from sys import float_info
from typing import Any

import numpy as np

from chinchilla_sim.cluster.curves import LinearCurve, Table
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable

FORMAT = "chinchilla-calibration"
VERSION = 1


@dataclass(frozen=True, slots=True)
class MachineKey:
    """What a calibration holds for: any difference makes it stale."""

    cpu: str
    cores: int
    torch: str
    threads_per_rank: int

    @property
    def digest(self) -> str:
        """Short name of the key, for the cache's file name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One measured kernel: `direction` is forward, backward, optimizer or elementwise; seconds are a median."""

    direction: str
    launches: int
    flop: float
    moved_bytes: float
    measured_s: float


@dataclass(frozen=True, slots=True)
class EmulatedLinks:
    """Processor seconds of links that a machine emulates: of what carries them (the fabric), and of the socket at either end."""

    fabric_s_per_byte: float = 0.0
    fabric_s_per_message: float = 0.0
    socket_s_per_byte: float = 0.0
    socket_s_per_message: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """Constants of one machine; `devices[n]` holds while n ranks are busy, transfers are between two local ranks.

    `emulation` is what links take that it emulates.
    """

    key: MachineKey
    date: str
    devices: Mapping[int, Device]
    transfer_latency_s: float
    transfer_bandwidth_bytes_per_s: float
    collective_s: Mapping[tuple[str, int], Table]
    fit_error: Mapping[int, float] = field(default_factory=dict)
    emulation: EmulatedLinks = EmulatedLinks()
    other_cores: float | None = None
    """Cores that other programs kept busy meanwhile, where that was counted."""

    def device(self, busy_ranks: int) -> Device:
        """A rank's device while so many are busy: as measured with so many or the next higher count."""
        return self.devices[min((count for count in self.devices if count >= busy_ranks), default=max(self.devices))]

    def covers(self, rank_count: int) -> bool:
        """Whether so many ranks were measured, or more; beyond the cores only what they exchange is."""
        return max((*self.devices, *(count for _, count in self.collective_s)), default=0) >= rank_count

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "date": self.date,
            "key": asdict(self.key),
            "devices": {str(count): _figures_of(device) for count, device in self.devices.items()},
            "fit_error": {str(count): error for count, error in self.fit_error.items()},
            "transfer_latency_s": self.transfer_latency_s,
            "emulation": asdict(self.emulation),
            "transfer_bandwidth_bytes_per_s": self.transfer_bandwidth_bytes_per_s,
            "collective_s": {f"{name}/{count}": [list(row) for row in table] for (name, count), table in self.collective_s.items()},
            **({} if self.other_cores is None else {"other_cores": self.other_cores}),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_dict`; ValueError, KeyError, TypeError or AttributeError where it is something else."""
        collectives = {}
        for name, table in data["collective_s"].items():
            collective, _, count = name.rpartition("/")
            collectives[(collective, int(count))] = tuple((_number(size), _number(seconds)) for size, seconds in table)
        if not data["devices"]:
            raise ValueError("it has no devices")
        return Calibration(
            key=_key_of(data["key"]),
            date=str(data["date"]),
            devices={int(count): _device_of(device) for count, device in data["devices"].items()},
            transfer_latency_s=_number(data["transfer_latency_s"]),
            transfer_bandwidth_bytes_per_s=_number(data["transfer_bandwidth_bytes_per_s"]),
            collective_s=collectives,
            fit_error={int(count): _number(error) for count, error in data.get("fit_error", {}).items()},
            emulation=EmulatedLinks(**{name: _number(value) for name, value in data.get("emulation", {}).items()}),
            other_cores=_number(data["other_cores"]) if "other_cores" in data else None,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all constants."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _figures_of(device: Device) -> dict[str, Any]:
    """Name, numbers and linear layers of a device; this machine's have no other curves, and are whole cores."""
    figures = {key: value for key, value in asdict(device).items() if value is not None and key not in (*_MEASURED_FORMATS, "core_share")}
    return figures | (_formats_of(device) if device.linear else {})


_MEASURED_FORMATS = ("linear", "inference_fixed_s", "inference_launch_s", "reread")
"""What older calibrations do not have."""


def _formats_of(device: Device) -> dict[str, Any]:
    return {
        "linear": [curve.to_dict() for curve in device.linear],
        "inference_fixed_s": device.inference_fixed_s,
        "inference_launch_s": device.inference_launch_s,
        "reread": [list(row) for row in device.reread],
    }


def _device_of(data: Mapping[str, Any]) -> Device:
    numbers: dict[str, Any] = {key: _number(value) for key, value in data.items() if key not in ("name", "linear", "reread")}
    linear = tuple(LinearCurve.from_dict(curve) for curve in data.get("linear", ()))
    reread = tuple((_number(size), _number(seconds)) for size, seconds in data.get("reread", ()))
    return Device(name=str(data["name"]), **numbers, linear=linear, reread=reread)


def _number(value: Any) -> float:
    """A number >= 0; a rate may be infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= (value if value == inf else float_info.max):
        raise ValueError(f"{str(value)[:40]!r} is not a number >= 0")
    return float(value)


def _key_of(data: Mapping[str, Any]) -> MachineKey:
    key = MachineKey(**data)
    for name, value in asdict(key).items():
        if not isinstance(value, str if name in ("cpu", "torch") else int):
            raise ValueError(f"{name} of its machine is {str(value)[:40]!r}")
    return key


def fit_device(rows: Sequence[KernelRow], name: str, memory_bytes: float) -> tuple[Device, float]:
    """Constants of a device from measured kernels, and the median relative error of the fit on products.

    Forward and backward products share flop/s and memory bandwidth and have their own launch times; optimizer
    and elementwise kernels have their own bandwidth and launch time.
    """
    products = [row for row in rows if row.direction in ("forward", "backward")]
    columns = [[*_directions(row, row.launches), float(row.direction == "backward"), row.flop, row.moved_bytes] for row in products]
    measured = np.array([row.measured_s for row in products])
    solution = fit_relative(columns, measured)
    forward_s, backward_s, backward_fixed_s, flop_s, byte_s = solution
    error = float(np.median(np.abs(np.array(columns) @ np.array(solution) / measured - 1)))
    optimizer_launch_s, optimizer_byte_s = _fit_linear(rows, "optimizer")
    elementwise_launch_s, elementwise_byte_s = _fit_linear(rows, "elementwise")
    device = Device(
        name=name,
        flop_per_s=_rate(flop_s),
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=_rate(byte_s),
        forward_launch_s=forward_s,
        backward_launch_s=backward_s,
        backward_fixed_s=backward_fixed_s,
        optimizer_bandwidth_bytes_per_s=_rate(optimizer_byte_s),
        optimizer_launch_s=optimizer_launch_s,
        elementwise_bandwidth_bytes_per_s=_rate(elementwise_byte_s),
        elementwise_launch_s=elementwise_launch_s,
    )
    return device, error


def _directions(row: KernelRow, value: float) -> tuple[float, float]:
    return (value, 0.0) if row.direction == "forward" else (0.0, value)


def _fit_linear(rows: Sequence[KernelRow], direction: str) -> tuple[float, float]:
    chosen = [row for row in rows if row.direction == direction]
    launch_s, byte_s = fit_relative([[row.launches, row.moved_bytes] for row in chosen], np.array([row.measured_s for row in chosen]))
    return launch_s, byte_s


def fit_relative(columns: Sequence[Sequence[float]], measured_s: np.ndarray) -> list[float]:
    """Non-negative coefficients that minimise the sum of squared relative errors."""
    from scipy.optimize import nnls

    matrix = np.array(columns, dtype=float) / measured_s[:, None]
    scale = np.where(matrix.max(axis=0) > 0, matrix.max(axis=0), 1.0)
    solution, _ = nnls(matrix / scale, np.ones(len(measured_s)))
    return [float(value) for value in solution / scale]


def _rate(seconds_per_unit: float) -> float:
    return 1.0 / seconds_per_unit if seconds_per_unit > 0 else float("inf")


def cache_folder() -> Path:
    """Where calibrations are kept: $CHINCHILLA_CACHE, else chinchilla_sim in the user's cache folder."""
    base = os.environ.get("CHINCHILLA_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "chinchilla_sim"


def cache_path(key: MachineKey) -> Path:
    """File of the calibration for one machine key."""
    return cache_folder() / f"calibration-{key.digest}.json"


def load_calibration(path: Path) -> Calibration:
    """Read one calibration file; a damaged one is a ScenarioError."""
    try:
        data = json.loads(path.read_text())
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ValueError(f"not a {FORMAT} file of version {VERSION}")
        return Calibration.from_dict(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cure = "delete it and run chinchilla calibrate" if path.exists() else "run chinchilla calibrate, or unset CHINCHILLA_CALIBRATION"
        raise ScenarioError([Mistake("calibration", f"cannot be read: {why_unreadable(error)}", cure)], source=str(path)) from error


def save_calibration(calibration: Calibration) -> Path:
    """Write the calibration to the cache and return its path."""
    path = cache_path(calibration.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(calibration.to_dict(), indent=1))
    partial.replace(path)
    return path


def stale_entries(key: MachineKey) -> list[str]:
    """Cached calibrations that do not hold for this key, each with the reason."""
    reasons = []
    for path in sorted(cache_folder().glob("calibration-*.json")):
        try:
            other = load_calibration(path)
        except ScenarioError:
            reasons.append(f"{path}: cannot be read")
            continue
        differing = [
            f"{name} {value!r}, now {asdict(key)[name]!r}" for name, value in asdict(other.key).items() if asdict(key)[name] != value
        ]
        if differing:
            reasons.append(f"{path} ({other.date}): {', '.join(differing)}")
    return reasons


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine(torch_version: str, threads_per_rank: int = 1) -> MachineKey:
    """The key of this machine; cores are those that this process may use."""
    return MachineKey(cpu=_cpu_name(), cores=core_count(), torch=torch_version, threads_per_rank=threads_per_rank)


def _cpu_name() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model\t")), "")
    return f"{name} {model}".strip()
