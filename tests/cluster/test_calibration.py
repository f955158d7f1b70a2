"""Calibration: fitting finds planted constants, files keep every figure, stale ones say why."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chinchilla_sim.cluster.calibration import (
    Calibration,
    KernelRow,
    MachineKey,
    cache_path,
    fit_device,
    load_calibration,
    save_calibration,
    stale_entries,
)
from chinchilla_sim.cluster.curves import LinearCurve
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.errors import ScenarioError

PLANTED = Device(
    name="planted",
    flop_per_s=150e9,
    memory_bytes=8e9,
    memory_bandwidth_bytes_per_s=30e9,
    forward_launch_s=8e-6,
    backward_launch_s=20e-6,
    backward_fixed_s=50e-6,
    optimizer_bandwidth_bytes_per_s=12e9,
    optimizer_launch_s=40e-6,
    elementwise_bandwidth_bytes_per_s=9e9,
    elementwise_launch_s=5e-6,
)
FITTED = [name for name in PLANTED.__dataclass_fields__ if name.endswith(("launch_s", "per_s", "backward_fixed_s")) and name != "usd_per_s"]


def kernel_s(device: Device, row: KernelRow) -> float:
    """The model of the module's docstring, with a device's constants."""
    if row.direction in ("optimizer", "elementwise"):
        bandwidth, launch_s = getattr(device, f"{row.direction}_bandwidth_bytes_per_s"), getattr(device, f"{row.direction}_launch_s")
        return float(row.launches * launch_s + row.moved_bytes / bandwidth)
    launch_s = getattr(device, f"{row.direction}_launch_s")
    fixed_s = device.backward_fixed_s if row.direction == "backward" else 0.0
    return float(fixed_s + row.launches * launch_s + row.flop / device.flop_per_s + row.moved_bytes / device.memory_bandwidth_bytes_per_s)


def measured_rows(noise: float, seed: int = 0) -> list[KernelRow]:
    """Kernels of linear layers of many shapes, optimizer and elementwise passes, with relative noise."""
    generator = np.random.default_rng(seed)
    rows = []
    for batch in (1, 8, 64, 256):
        for i, o in ((16, 16), (784, 512), (512, 10), (2048, 2048), (64, 4096)):
            flop, moved = 2.0 * batch * i * o, 4.0 * (batch * i + i * o + batch * o)
            rows += [
                KernelRow("forward", 1, flop, moved, 0.0),
                KernelRow("backward", 1, flop, moved, 0.0),
                KernelRow("backward", 2, 2 * flop, 2 * moved, 0.0),
            ]
    sizes = (1e3, 1e4, 1e5, 1e6, 1e7)
    rows += [KernelRow(direction, 1, 0.0, size, 0.0) for direction in ("optimizer", "elementwise") for size in sizes]
    return [replace(row, measured_s=kernel_s(PLANTED, row) * float(1 + noise * generator.standard_normal())) for row in rows]


def test_exact_rows_give_the_planted_constants_back() -> None:
    """Without noise the fit is the model itself."""
    device, error = fit_device(measured_rows(0.0), "planted", 8e9)
    assert error < 1e-9
    assert {name: getattr(device, name) for name in FITTED} == pytest.approx({name: getattr(PLANTED, name) for name in FITTED}, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_noisy_rows_give_the_planted_constants_nearly(seed: int) -> None:
    """With 1 % noise every constant is within 5 %, and the error that the fit states is below 1 %."""
    device, error = fit_device(measured_rows(0.01, seed), "planted", 8e9)
    assert error < 0.01
    assert {name: getattr(device, name) for name in FITTED} == pytest.approx({name: getattr(PLANTED, name) for name in FITTED}, rel=0.05)
    assert (device.name, device.memory_bytes) == ("planted", 8e9)


def test_constant_that_does_not_show_is_free_and_not_negative() -> None:
    """Rows without launch time fit a launch time of 0, not of less; rows that move no bytes leave the bandwidth unlimited."""
    rows = [replace(row, launches=0) for row in measured_rows(0.0)]
    rows = [replace(row, measured_s=kernel_s(PLANTED, row)) for row in rows]
    device, _ = fit_device(rows, "free", 1.0)
    assert (device.forward_launch_s, device.backward_launch_s, device.optimizer_launch_s, device.elementwise_launch_s) == (0, 0, 0, 0)
    still = [replace(row, moved_bytes=0.0, measured_s=1e-3) for row in measured_rows(0.0)]
    assert fit_device(still, "still", 1.0)[0].memory_bandwidth_bytes_per_s == float("inf")


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calibration]:
    """A calibration, with the cache in a folder of the test."""
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path))
    yield Calibration(
        key=MachineKey("Xeon", 2, "2.13.0+cpu", 1),
        date="2026-11-23",
        devices={1: PLANTED, 2: replace(PLANTED, flop_per_s=90e9, memory_bandwidth_bytes_per_s=float("inf"))},
        transfer_latency_s=6e-5,
        transfer_bandwidth_bytes_per_s=2e9,
        collective_s={("all_reduce", 2): ((4.0, 1e-4), (1e6, 2e-3)), ("all_gather", 2): ((4.0, 1e-4),)},
        fit_error={1: 0.01, 2: 0.02},
    )


def test_file_keeps_every_figure(calibration: Calibration) -> None:
    """What is saved for a machine is what is loaded, to the digest, under the machine's own file name."""
    path = save_calibration(calibration)
    assert path == cache_path(calibration.key)
    assert load_calibration(path) == calibration
    assert load_calibration(path).digest == calibration.digest
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_calibration_covers_what_was_measured(calibration: Calibration) -> None:
    """Measurements with up to two busy ranks hold for one and two; for more where collectives beyond the cores were measured."""
    assert [calibration.covers(count) for count in (1, 2, 3)] == [True, True, False]
    exchanged = replace(calibration, collective_s={**calibration.collective_s, ("all_reduce", 4): ((4.0, 1e-4),)})
    assert exchanged.covers(4) and not exchanged.covers(5)


def test_stale_entries_say_what_differs(calibration: Calibration) -> None:
    """Another torch and other cores are named with old and new value; the same key is not stale; damage is told."""
    path = save_calibration(calibration)
    assert stale_entries(calibration.key) == []
    now = replace(calibration.key, torch="2.14.0", cores=4)
    assert stale_entries(now) == [f"{path} (2026-11-23): cores 2, now 4, torch '2.13.0+cpu', now '2.14.0'"]
    path.write_text("{")
    assert stale_entries(now) == [f"{path}: cannot be read"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\x00\x01",
        lambda text: text.replace("chinchilla-calibration", "something-else"),
        lambda text: text.replace('"version": 1', '"version": 99'),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "key"}),
        lambda text: json.dumps(json.loads(text) | {"devices": {"one": {}}}),
        lambda text: json.dumps(json.loads(text) | {"collective_s": {"all_reduce": [[1, 2]]}}),
    ],
    ids=["half", "empty", "list", "binary", "format", "version", "no-key", "bad-device", "bad-collective"],
)
def test_damaged_file_is_a_scenario_error(calibration: Calibration, damage: object) -> None:
    """Whatever is wrong with the file, its name and the cure are told."""
    path = save_calibration(calibration)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ScenarioError, match=r"cannot be read.*delete it and run chinchilla calibrate") as caught:
        load_calibration(path)
    assert caught.value.source == str(path)


def test_figures_in_a_file_are_numbers(calibration: Calibration) -> None:
    """A file whose figure is a text is damaged."""
    path = save_calibration(calibration)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transfer_latency_s": "fast"}))
    with pytest.raises(ScenarioError):
        load_calibration(path)


def test_formats_are_kept_and_may_be_missing() -> None:
    """A stored calibration has its linear layers in every format; one from before has none, and inference its old fixed time."""
    curve = LinearCurve("int8", 1e-6, 1e-11, 2e-11, 3e-11, (1, 8), (64,), (16,), (1.0, 1.1))
    measured = replace(PLANTED, linear=(curve,), inference_fixed_s=9e-6, inference_launch_s=2e-6, reread=((1e6, 1e-11), (2e6, 2e-11)))
    before, now = (
        Calibration(MachineKey("cpu", 2, "torch", 1), "2026-11-28", {1: device}, 1e-6, 1e9, {}) for device in (PLANTED, measured)
    )
    assert Calibration.from_dict(json.loads(json.dumps(now.to_dict()))) == now
    assert Calibration.from_dict(before.to_dict()).device(1) == PLANTED and "linear" not in before.to_dict()["devices"]["1"]
    alone = measured.for_inference()
    assert (alone.forward_fixed_s, alone.forward_launch_s) == (9e-6, 2e-6) and PLANTED.for_inference() == PLANTED
    assert measured.for_inference(profiled=True).forward_fixed_s == 0.0 and measured.for_training().linear == ()
