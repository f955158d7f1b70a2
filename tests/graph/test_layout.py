"""A split survives a view exactly where every device can make the view from its own part."""

from math import prod

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chinchilla_sim.graph.layout import Layout, block, blocks_fit, local_shape, local_size, reshaped

SIZES = st.sampled_from([1, 2, 3, 4, 6, 8])
SHAPES = st.lists(SIZES, min_size=1, max_size=4).map(tuple)


def part(array: np.ndarray, layout: Layout, degree: int, device: int) -> np.ndarray:
    """A device's part of a whole array, by the definition."""
    pieces = np.split(array, layout.parts, axis=layout.dim)
    start, end = block(pieces[0].shape[layout.dim], degree, device)
    return np.concatenate([piece.take(range(start, end), axis=layout.dim) for piece in pieces], axis=layout.dim)


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same number of values: dimensions cut in two or joined."""
    shape = list(draw(SHAPES))
    output = list(shape)
    for _ in range(draw(st.integers(0, 3))):
        dim = draw(st.integers(0, len(output) - 1))
        if draw(st.booleans()) and dim + 1 < len(output):
            output[dim : dim + 2] = [output[dim] * output[dim + 1]]
        else:
            factor = draw(st.sampled_from([factor for factor in (1, 2, 3, 4) if output[dim] % factor == 0]))
            output[dim : dim + 1] = [factor, output[dim] // factor]
    return tuple(shape), tuple(output)


@given(views(), st.integers(0, 3), st.sampled_from([1, 2, 3]), st.sampled_from([2, 3, 4]))
def test_view_of_the_part_is_the_part_of_the_view(shapes: tuple[tuple[int, ...], ...], dim: int, parts: int, degree: int) -> None:
    """Whatever layout is found, each device's own view is its part of the whole view."""
    shape, output = shapes
    assume(dim < len(shape) and shape[dim] % parts == 0 and blocks_fit(shape[dim] // parts, degree))
    layout = Layout(dim, parts)
    found = reshaped(shape, output, layout, degree)
    assume(found is not None)
    assert found is not None
    whole = np.arange(prod(shape)).reshape(shape)
    for device in range(degree):
        own = part(whole, layout, degree, device).reshape(local_shape(output, found, degree, device))
        np.testing.assert_array_equal(own, part(whole.reshape(output), found, degree, device))


@given(views(), st.integers(0, 3), st.sampled_from([2, 4]))
def test_view_that_joins_nothing_else_keeps_an_even_split(shapes: tuple[tuple[int, ...], ...], dim: int, degree: int) -> None:
    """Joining the divided dimension with those behind it never loses the split."""
    shape, _ = shapes
    assume(dim < len(shape) and shape[dim] % degree == 0)
    joined = (*shape[:dim], prod(shape[dim:]))
    assert reshaped(shape, joined, Layout(dim), degree) == Layout(dim)


@pytest.mark.parametrize(("size", "degree", "sizes"), [(130, 4, [33, 33, 33, 31]), (8, 2, [4, 4]), (5, 4, None), (7, 4, [2, 2, 2, 1])])
def test_blocks_are_as_torch_chunks_them(size: int, degree: int, sizes: list[int] | None) -> None:
    """All but the last are equal; a size that leaves a device with nothing does not fit."""
    assert blocks_fit(size, degree) == (sizes is not None)
    if sizes is not None:
        assert [local_size(size, Layout(0), degree, device) for device in range(degree)] == sizes
