"""What steps take beyond their kernels: planted figures come back, whatever the fitted constants say."""

from dataclasses import replace

import pytest

from chinchilla_sim.cluster.calibration import KernelRow
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.compute import OPTIMIZER_BYTES_PER_VALUE, accumulation_s, backward_s, forward_s
from chinchilla_sim.graph.task import LOSS_OP
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.runtime.measurement.reference import (
    REFERENCE_BATCH,
    REFERENCE_COUNTS,
    REFERENCE_PARAMETERS,
    REFERENCE_WIDTHS,
    fit_fixed_times,
    reference_step_s,
)

DEVICE = Device("core", 100e9, 8e9, memory_bandwidth_bytes_per_s=50e9, backward_fixed_s=20e-6, elementwise_bandwidth_bytes_per_s=60e9)
GRAPH = mlp(REFERENCE_WIDTHS, REFERENCE_BATCH)
UPDATE_S, PER_MICROBATCH_S, PER_STEP_S = 300e-6, 40e-6, 70e-6


def planted(slower: float) -> tuple[list[KernelRow], float]:
    """Rows of the reference's kernels but its loss, each `slower` than the device says, and seconds of all in a microbatch."""
    rows, total_s = [], DEVICE.backward_fixed_s
    for task in GRAPH.compute_tasks:
        factor = 1.0 if task.op == LOSS_OP else slower
        ahead_s, back_s = factor * forward_s(task, 1.0, DEVICE), factor * backward_s(task, 1.0, DEVICE)
        total_s += ahead_s + back_s
        if task.op != LOSS_OP:
            rows.append(KernelRow("forward", 1, task.forward_flop, task.read_bytes + task.written_bytes, ahead_s))
            moved_bytes = task.backward_read_bytes + task.backward_written_bytes
            rows.append(KernelRow("backward", 1, task.backward_flop, moved_bytes, back_s + DEVICE.backward_fixed_s))
    rows.append(KernelRow("optimizer", 1, 0.0, OPTIMIZER_BYTES_PER_VALUE["adam"] * REFERENCE_PARAMETERS, UPDATE_S))
    return rows, total_s


@pytest.mark.parametrize("slower", [1.0, 1.3])
def test_planted_fixed_times_come_back(slower: float) -> None:
    """Kernels that take 30 % longer than the fitted constants say are not taken for fixed times of the program."""
    rows, kernels_s = planted(slower)
    addition_s = accumulation_s(GRAPH.total_parameter_bytes, DEVICE)
    steps = {m: m * (kernels_s + PER_MICROBATCH_S) + (m - 1) * addition_s + UPDATE_S + PER_STEP_S for m in REFERENCE_COUNTS}
    found = fit_fixed_times(DEVICE, steps, rows)
    assert (found.forward_fixed_s, found.backward_fixed_s - DEVICE.backward_fixed_s) == pytest.approx((PER_MICROBATCH_S / 2,) * 2)
    assert found.step_fixed_s == pytest.approx(PER_STEP_S)
    assert replace(found, forward_fixed_s=0.0, backward_fixed_s=DEVICE.backward_fixed_s, step_fixed_s=0.0) == DEVICE


def test_steps_of_more_microbatches_take_longer() -> None:
    """The reference runs here: eight microbatches take between one and twelve times as long as one."""
    steps = reference_step_s()
    assert list(steps) == list(REFERENCE_COUNTS)
    assert 1.0 < steps[8] / steps[1] < 12.0
