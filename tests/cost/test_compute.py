"""Seconds of computation, against the additive roofline worked out by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.curves import ProductCurve
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.compute import UNALIGNED_SHARE, accumulation_s, backward_s, forward_s, optimizer_s, with_host_s
from chinchilla_sim.graph.task import Task
from chinchilla_sim.graph.zoo import mlp

DEVICE = Device(
    name="slow",
    flop_per_s=1000.0,
    memory_bytes=1e9,
    memory_bandwidth_bytes_per_s=100.0,
    forward_launch_s=0.5,
    backward_launch_s=0.25,
    step_fixed_s=3.0,
    optimizer_bandwidth_bytes_per_s=10.0,
    optimizer_launch_s=2.0,
    elementwise_bandwidth_bytes_per_s=50.0,
)
LINEAR = Task(
    name="y", op="linear", forward_flop=2000, input_gradient_flop=2000, weight_gradient_flop=2000, output_bytes=20, read_bytes=10 + 40,
    written_bytes=20, backward_read_bytes=20 + 10 + 40, backward_written_bytes=40 + 10, weight_bytes=40,
    backward_weight_bytes=80, parameters=("w",), saved=("x",),
)  # fmt: skip
TASKS = mlp([6, 5, 4, 3], 8).tasks


@given(st.sampled_from(TASKS), st.floats(0.01, 10), st.floats(0.01, 10))
def test_more_samples_never_take_less_time(task: Task, scale: float, more: float) -> None:
    """Both passes grow with the microbatch."""
    for seconds in (forward_s, backward_s):
        assert seconds(task, scale, DEVICE) <= seconds(task, scale + more, DEVICE)


@given(st.sampled_from(TASKS), st.floats(0.01, 0.99))
def test_splitting_a_batch_never_saves_time(task: Task, share: float) -> None:
    """Two microbatches read the parameters and start the kernels twice: never faster than the whole at once."""
    for seconds in (forward_s, backward_s):
        whole_s = seconds(task, 1.0, DEVICE)
        parts_s = seconds(task, share, DEVICE) + seconds(task, 1 - share, DEVICE)
        assert parts_s >= whole_s * (1 - 1e-12)


@given(st.sampled_from(TASKS), st.floats(1, 10))
def test_faster_device_is_never_slower(task: Task, factor: float) -> None:
    """More flop/s and more bandwidth shorten both passes or leave them."""
    fast = replace(DEVICE, flop_per_s=factor * 1000, memory_bandwidth_bytes_per_s=factor * 100)
    for seconds in (forward_s, backward_s):
        assert seconds(task, 1.0, fast) <= seconds(task, 1.0, DEVICE)


def test_forward_by_hand() -> None:
    """Half a batch: one launch, 1,000 flop, and 40 B of weights with half of 10 + 20 B of activations."""
    assert forward_s(LINEAR, 0.5, DEVICE) == pytest.approx(0.5 + 1000 / 1000 + (40 + 15) / 100)


def test_backward_by_hand() -> None:
    """Half a batch: two launches and products; weights read and written whole, half of the 40 B of activations."""
    assert backward_s(LINEAR, 0.5, DEVICE) == pytest.approx(2 * 0.25 + 2000 / 1000 + (80 + 0.5 * 40) / 100)


def test_first_layer_backward_by_hand() -> None:
    """Without an input gradient: one launch, one product, weights are written but not read."""
    first = replace(LINEAR, input_gradient_flop=0, backward_read_bytes=30, backward_written_bytes=40, backward_weight_bytes=40)
    assert backward_s(first, 1.0, DEVICE) == pytest.approx(0.25 + 2.0 + (30 + 40) / 100)


def test_views_and_frozen_tasks_have_no_backward_pass() -> None:
    """What starts no kernel, or needs no gradient, takes no time on the way back."""
    assert backward_s(replace(LINEAR, needs_gradient=False), 1.0, DEVICE) == 0
    assert backward_s(Task("v", "view", launch_count=0), 1.0, DEVICE) == forward_s(Task("v", "view", launch_count=0), 1.0, DEVICE) == 0


def test_loss_starts_two_kernels_each_way() -> None:
    """An operator without products starts as many kernels back as forward."""
    loss = Task("loss", "loss", read_bytes=8, written_bytes=8, backward_read_bytes=8, backward_written_bytes=8, launch_count=2)
    assert forward_s(loss, 1.0, DEVICE) == pytest.approx(2 * 0.5 + 16 / 100)
    assert backward_s(loss, 1.0, DEVICE) == pytest.approx(2 * 0.25 + 16 / 100)


def test_accumulation_by_hand() -> None:
    """Adding 100 B of gradients to 100 B reads both and writes one: 300 B at 50 B/s."""
    assert (accumulation_s(100.0, DEVICE), accumulation_s(0.0, DEVICE)) == (6.0, 0.0)


@pytest.mark.parametrize(("optimizer", "momentum", "bytes_per_value"), [("adam", 0.0, 28), ("sgd", 0.0, 12), ("sgd", 0.9, 20)])
def test_optimizer_by_hand(optimizer: str, momentum: float, bytes_per_value: float) -> None:
    """Ten fp32 parameters: fixed time, one launch, and 7, 3 or 5 passes over 4 B each."""
    assert optimizer_s(40.0, optimizer, momentum, DEVICE) == pytest.approx(3.0 + 2.0 + 10 * bytes_per_value / 10.0)


def test_stage_without_parameters_pays_the_fixed_time_only() -> None:
    """Nothing to update, but the step still has its fixed cost."""
    assert optimizer_s(0.0, "adam", 0.0, DEVICE) == 3.0


CURVE = ProductCurve(0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 8.0)
TENSOR_CORES = replace(DEVICE, products=CURVE, peak_flop_per_s=1000.0, peak_bytes_per_s=1e12)


@pytest.mark.parametrize(("width", "value_bytes", "share"), [(48, 2, 1.0), (50, 2, UNALIGNED_SHARE), (50, 4, 1.0)])
def test_rows_that_tensor_cores_cannot_read_slow_a_product(width: int, value_bytes: int, share: float) -> None:
    """Rows of 50 values of 2 bytes start at no multiple of 16 bytes; fp32 does not care."""
    flop = 2 * 8 * 16 * width
    product = Task("y", "linear", forward_flop=flop, weight_gradient_flop=flop, output_bytes=8 * width * value_bytes, shapes=((8, width),))
    assert forward_s(product, 1.0, TENSOR_CORES) == pytest.approx(flop / (1000 * share))
    assert backward_s(product, 1.0, TENSOR_CORES) == pytest.approx(flop / (1000 * share))


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_pass_takes_as_long_as_host_or_device_and_never_both(device_s: float, host_s: float) -> None:
    """Neither less than the longer of the two nor more than their sum."""
    assert max(device_s, host_s) * (1 - 1e-12) <= with_host_s(device_s, host_s) <= (device_s + host_s) * (1 + 1e-12)


def test_mixed_precision_updates_move_more() -> None:
    """Beside Adam's 28 B a parameter 12 for gradients made fp32, weights rounded and the norm."""
    assert optimizer_s(40.0, "adam", 0.0, DEVICE, mixed=True) == pytest.approx(3.0 + 2.0 + 10 * 40 / 10.0)
