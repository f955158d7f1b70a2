"""Measured linear layers: the curve gives back what was measured, and lies between the points of its grid."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.curves import LinearCurve
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.compute import forward_s, rereading_s
from chinchilla_sim.cost.linear import FP32, LinearRow, fit_linear, linear_s
from chinchilla_sim.graph.compress import Variant, compress
from chinchilla_sim.graph.zoo import linear_task, mlp

ROWS, INPUTS, OUTPUTS = (1, 8, 64), (64, 512), (16, 256)
GRID = list(product(ROWS, INPUTS, OUTPUTS))
DEVICE = Device("core", flop_per_s=1e11, memory_bytes=1e9, elementwise_launch_s=1e-6, elementwise_bandwidth_bytes_per_s=1e10)


def true_s(rows: int, inputs: int, outputs: int, format_speed: float = 1.0) -> float:
    """A machine whose single rows are no products."""
    flop, moved = 2.0 * rows * inputs * outputs, 4.0 * (inputs * outputs + rows * (inputs + outputs))
    return 2e-6 + moved / 5e10 + (flop / (1e11 * format_speed) if rows > 1 else 0.0)


def curve_of(number_format: str, speed: float = 1.0) -> LinearCurve:
    """Fitted to the whole grid."""
    return fit_linear([LinearRow(number_format, *point, true_s(*point, speed)) for point in GRID])


@pytest.mark.parametrize("number_format", [FP32, "bf16", "int8", "int8-static", "int8-weights", "int4"])
def test_measured_sizes_take_what_was_measured(number_format: str) -> None:
    """Whatever the fit is off by."""
    curve = curve_of(number_format)
    assert [linear_s(curve, *point) for point in GRID] == pytest.approx([true_s(*point) for point in GRID])
    assert LinearCurve.from_dict(curve.to_dict()) == curve


@given(st.floats(1, 64), st.floats(64, 512), st.floats(16, 256))
def test_sizes_between_lie_between(rows: float, inputs: float, outputs: float) -> None:
    """The factor is an average of those of the corners around; beyond the grid it is the nearest one's."""
    curve = curve_of(FP32)
    plain = replace(curve, off=(1.0,) * len(curve.off))
    factor = linear_s(curve, rows, inputs, outputs) / linear_s(plain, rows, inputs, outputs)
    assert min(curve.off) * (1 - 1e-9) <= factor <= max(curve.off) * (1 + 1e-9)
    beyond = linear_s(curve, 1e4, 1e4, 1e4) / linear_s(plain, 1e4, 1e4, 1e4)
    assert beyond == pytest.approx(curve.off[-1])


def test_a_damaged_curve_is_told() -> None:
    """A grid without all of its factors is no curve."""
    with pytest.raises(ValueError, match="curve of int8 has 11 factors for another grid"):
        LinearCurve.from_dict(curve_of("int8").to_dict() | {"off": [1.0] * 11})


def test_a_layer_takes_the_time_of_its_weights_format() -> None:
    """int8 at eight times the speed; a format that was not measured follows the roofline, as do devices without any measurement."""
    device = replace(DEVICE, linear=(curve_of(FP32), curve_of("int8", 8.0)))
    graph = mlp([512, 256], 64, training=False)
    small = compress(graph, Variant(quantize="int8"))
    plain, packed = (forward_s(one.compute_tasks[0], 1.0, device) for one in (graph, small))
    assert plain == pytest.approx(true_s(64, 512, 256)) and packed == pytest.approx(true_s(64, 512, 256, 8.0))
    assert forward_s(small.compute_tasks[0], 1.0, replace(device, core_share=0.5)) == pytest.approx(2 * packed)
    task = linear_task(64, 512, 256, input_needs_gradient=False)
    assert forward_s(task, 1.0, DEVICE) == pytest.approx(task.forward_flop / 1e11)
    four = compress(graph, Variant(quantize="int4")).compute_tasks[0]
    assert forward_s(four, 1.0, device) == pytest.approx(four.forward_flop / 1e11)


def test_weights_that_fill_a_cache_come_from_farther_away() -> None:
    """By hand: 1 MB among 4 MB is read at the speed of 4 MB, of which its own measurement knew that of 1 MB alone."""
    device = replace(DEVICE, reread=((1e6, 1e-11), (4e6, 5e-11)))
    task = linear_task(1, 1000, 250, input_needs_gradient=False)
    assert task.weight_bytes == 1e6 + 1000
    assert rereading_s(task, 4e6, device) == pytest.approx(task.weight_bytes * 4e-11, rel=0.01)
    assert rereading_s(task, 1e6, device) == rereading_s(task, 0.0, device) == rereading_s(task, 4e6, DEVICE) == 0.0


def test_training_for_integers_costs_the_rounding() -> None:
    """Forward takes longer by passes over weight and input, backward as long as before."""
    graph = mlp([512, 256], 64)
    whole, rounded = (compress(graph, variant).compute_tasks[0] for variant in (Variant(), Variant(quantize="int8")))
    weights_only = compress(graph, Variant(quantize="int4")).compute_tasks[0]
    seconds = [forward_s(task, 1.0, DEVICE) for task in (whole, weights_only, rounded)]
    assert seconds == sorted(seconds) and seconds[0] < seconds[1] < seconds[2]
