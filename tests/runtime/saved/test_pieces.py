"""Tensors saved in pieces of any kind are read back in pieces of any other."""

import itertools
import pickle
import warnings
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.layout import Layout, block
from chinchilla_sim.runtime.saved.checkpoint_reader import read_metadata, read_pieces, read_tensors
from chinchilla_sim.runtime.saved.pieces import Piece, PieceSaver, block_of, boxes_of, piece_of, range_of
from chinchilla_sim.runtime.stage.lanes import in_parts

SHAPES = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@given(shape=SHAPES, data=st.data())
def test_boxes_are_the_range(shape: tuple[int, ...], data: st.DataObject) -> None:
    """The boxes of a range hold exactly its values, in their order, with a few boxes per dimension."""
    count = prod(shape)
    start, end = sorted((data.draw(st.integers(0, count)), data.draw(st.integers(0, count))))
    tensor = torch.arange(count).view(shape)
    found, boxes = [], list(boxes_of(shape, start, end))
    for offsets, lengths in boxes:
        found += tensor[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))].flatten().tolist()
    assert found == list(range(start, end))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


def write(path: Path, pieces: dict[str, Piece]) -> None:
    """A checkpoint of one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save(dict(pieces), storage_writer=FileSystemWriter(path), planner=PieceSaver(), no_dist=True)


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (3, 2, 5)])
@pytest.mark.parametrize(("saved", "read"), [(1, 3), (3, 1), (2, 3)])
def test_thirds_are_read_from_halves(tmp_path: Path, shape: tuple[int, ...], saved: int, read: int) -> None:
    """A tensor that some ranks saved as equal runs of its values is whole again for ranks of another count."""
    values = torch.randn(shape)
    flat = values.reshape(-1)

    def cuts(count: int) -> list[tuple[int, int]]:
        return list(itertools.pairwise(round(part * len(flat) / count) for part in range(count + 1)))

    whole = [range_of(shape, start, flat[start:end]) for start, end in cuts(saved)]
    write(tmp_path / "c", {"w": Piece(shape, tuple(box for piece in whole for box in piece.boxes))})
    metadata = read_metadata(tmp_path / "c")
    again = torch.zeros_like(flat)
    for start, end in cuts(read):
        if end > start:
            read_pieces(tmp_path / "c", metadata, {"w": range_of(shape, start, again[start:end])})
    assert torch.equal(again, flat)
    assert torch.equal(read_tensors(tmp_path / "c", metadata, ["w"])["w"], values)


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple), parts=st.integers(1, 3), data=st.data())
def test_lanes_pieces_are_the_whole(shape: tuple[int, ...], parts: int, data: st.DataObject) -> None:
    """Flat pieces of every lane's part, whose blocks lie in each of the parts of a dimension, tell where each value is in the whole."""
    dim, degree = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(1, 3))
    size = parts * shape[dim]
    layout, blocks = Layout(dim, parts), [block(shape[dim], degree, lane) for lane in range(degree)]
    whole = torch.arange(prod(shape) * parts).view(*shape[:dim], size, *shape[dim + 1 :])
    found = torch.full_like(whole, -1)
    for start, end in blocks:
        part = in_parts(whole, layout).narrow(dim + 1, start, end - start).flatten(dim, dim + 1).contiguous()
        middle = data.draw(st.integers(0, part.numel()))
        for first, flat in ((0, part.flatten()[:middle]), (middle, part.flatten()[middle:])):
            piece = block_of(range_of(part.shape, first, flat), layout, size, start)
            assert piece.shape == whole.shape
            for offsets, values in piece.boxes:
                found[tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))] = values
    assert torch.equal(found, whole)


def test_a_piece_is_copied_before_it_is_written() -> None:
    """What the next step changes does not reach the checkpoint that is being written."""
    weight = torch.ones(3)
    staged = piece_of(weight).staged()
    weight.add_(1)
    assert staged.boxes[0][1].tolist() == [1, 1, 1]


class Spy:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/never",)


def test_an_index_cannot_run_code(tmp_path: Path) -> None:
    """DCP's index is a pickle: one that names anything but shapes and places is refused before it is built."""
    write(tmp_path / "c", {"w": piece_of(torch.ones(2))})
    (tmp_path / "c" / ".metadata").write_bytes(pickle.dumps(Spy()))
    with pytest.raises(RunError, match="system"):
        read_metadata(tmp_path / "c")


def test_a_checkpoint_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    """Everything in a run's checkpoint is a tensor; DCP would unpickle the rest."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save({"w": torch.ones(2), "o": {"any": "object"}}, storage_writer=FileSystemWriter(tmp_path / "c"), no_dist=True)
    with pytest.raises(RunError, match="other than tensors"):
        read_metadata(tmp_path / "c")
