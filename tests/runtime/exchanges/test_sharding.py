"""Pieces of parameters: every value belongs to one replica, and comes back to its place."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.runtime.exchanges.sharding import Pieces

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4)


@given(SHAPES, st.integers(1, 5))
def test_pieces_are_a_partition(shapes: list[tuple[int, ...]], count: int) -> None:
    """Rows of all replicas hold each value once beside zeros; pieces of a row are those that its replica owns; spread undoes rows."""
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(index)) for index, shape in enumerate(shapes)]
    pieces = Pieces([torch.zeros(shape) for shape in shapes], count)
    rows = pieces.rows(tensors)
    assert rows.shape == (count, pieces.row_length) and pieces.row_length * count < sum(t.numel() for t in tensors) + count * len(tensors)
    torch.testing.assert_close(rows.sum(), sum(tensor.sum() for tensor in tensors))
    for place in range(count):
        own = pieces.own(tensors, place)
        for ours, theirs in zip(pieces.split(rows[place], place), own, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(pieces.row(own), rows[place])
    pieces.spread(rows)
    assert all(map(torch.equal, pieces.parameters, tensors))


def test_own_pieces_are_the_parameters_memory() -> None:
    """fp32 masters cost nothing: an update of a piece is one of its parameter."""
    parameter = torch.zeros(3, 2)
    Pieces([parameter], 2).own([parameter], 1)[0].add_(1.0)
    assert parameter.flatten().tolist() == [0, 0, 0, 1, 1, 1]
