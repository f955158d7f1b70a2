"""Measured products against the catalogue's curve, and how well a fresh fit does on products it has not seen."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chinchilla_sim.cluster.catalogue import find_device
from chinchilla_sim.cluster.curves import ProductCurve
from chinchilla_sim.cost.products import ProductTable, curve_seconds, fit_curve
from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable

COLUMNS = ("m", "n", "k", "latency_ms")
FOLDS = 5


@dataclass(frozen=True, slots=True)
class KernelResult:
    """Mean absolute relative errors: of the shipped curve, and of fits on rows that were left out; and the fit on all rows."""

    rows: int
    shipped_error: float | None
    cross_validated_error: float
    fitted: ProductCurve


def check_kernels(path: Path, device_name: str, precision: str = "bf16") -> KernelResult:
    """A table of products (columns m, n, k, latency_ms) on a device of the catalogue; ScenarioError where it cannot be read."""
    device, table = find_device(device_name, precision, "--device"), read_products(path)
    peak = device.peak_flop_per_s, device.peak_bytes_per_s
    fold = np.random.default_rng(0).integers(0, FOLDS, len(table.m))
    errors = []
    for index in range(FOLDS):
        curve, held_back = fit_curve(table.rows(fold != index), *peak), table.rows(fold == index)
        errors.append(np.abs(curve_seconds(curve, held_back, *peak) / held_back.seconds - 1.0))
    shipped = None
    if device.products:
        shipped = float(np.abs(curve_seconds(device.products, table, *peak) / table.seconds - 1.0).mean())
    return KernelResult(len(table.m), shipped, float(np.concatenate(errors).mean()), fit_curve(table, *peak))


def read_products(path: Path) -> ProductTable:
    """Products from CSV."""
    try:
        with path.open(newline="") as file:
            rows = [[float(row[column]) for column in COLUMNS] for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = why_unreadable(error) if isinstance(error, OSError | UnicodeDecodeError) else f"{type(error).__name__} {error}"
        what = f"cannot be read: {said}"
        raise ScenarioError([Mistake("", what, f"give numbers in columns {', '.join(COLUMNS)}")], str(path)) from error
    if len(rows) < 10 * FOLDS or min(min(row) for row in rows) <= 0:
        raise ScenarioError([Mistake("", f"holds {len(rows)} rows", f"give {10 * FOLDS} or more positive ones")], str(path))
    columns = np.array(rows).T
    return ProductTable(columns[0], columns[1], columns[2], columns[3] / 1000.0)
