"""Tensors of a checkpoint as the pieces that a rank holds of them, in the model's own shape.

Whatever the plan, a tensor is saved as boxes of its full shape; torch.distributed.checkpoint writes each box once and reads what a
rank of another plan needs out of those that overlap it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from chinchilla_sim.graph.layout import Layout

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and lengths along every dimension."""


@dataclass(frozen=True)
class Piece:
    """Some boxes of a tensor of `shape`, each with its values; speaks the protocol of torch.distributed.checkpoint."""

    shape: tuple[int, ...]
    boxes: tuple[tuple[tuple[int, ...], Tensor], ...]

    def staged(self) -> Piece:
        """A copy in main memory."""
        return Piece(self.shape, tuple((offsets, values.detach().to("cpu", copy=True).contiguous()) for offsets, values in self.boxes))

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        size = torch.Size(self.shape)
        return [
            WriteItem(
                MetadataIndex(fqn, offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, TensorProperties.create_from_tensor(values), size),
            )
            for chunk, (offsets, values) in zip(self.__create_chunk_list__(), self.boxes, strict=True)
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offsets), values.size()) for offsets, values in self.boxes]

    def values_at(self, index: MetadataIndex) -> Tensor:
        """The box that an index points to."""
        return next(values for offsets, values in self.boxes if index.offset is not None and offsets == tuple(index.offset))


def piece_of(tensor: Tensor) -> Piece:
    """What this rank holds of a tensor: all of it, or its shard of a DTensor."""
    if isinstance(tensor, DTensor):
        return shard_of(tensor, tensor.to_local())
    return Piece(tuple(tensor.shape), (((0,) * tensor.dim(), tensor.detach()),))


def shard_of(tensor: DTensor, local: Tensor) -> Piece:
    """Values that lie in the whole as this rank's shard of `tensor` does."""
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Piece(tuple(tensor.shape), ((tuple(offsets), local.detach()),) if local.numel() else ())


def block_of(piece: Piece, layout: Layout, size: int, start: int) -> Piece:
    """A piece of one lane's part of a tensor as a piece of the whole, whose divided dimension has `size`.

    Of each of the layout's equal parts the lane has a block, which begins `start` values behind the part.
    """
    dim = layout.dim
    length, each = piece.shape[dim] // layout.parts, size // layout.parts
    found = []
    for offsets, values in piece.boxes:
        for part in range(layout.parts):
            first, end = max(offsets[dim], part * length), min(offsets[dim] + values.shape[dim], (part + 1) * length)
            if first < end:
                place = part * each + start + first - part * length
                within = values.narrow(dim, first - offsets[dim], end - first)
                found.append(((*offsets[:dim], place, *offsets[dim + 1 :]), within))
    return Piece((*piece.shape[:dim], size, *piece.shape[dim + 1 :]), tuple(found))


def range_of(shape: Sequence[int], start: int, values: Tensor) -> Piece:
    """What this rank holds of a tensor: a run of its values, from the `start`-th on, in the order in which they lie in memory."""
    found, position = [], 0
    for offsets, lengths in boxes_of(tuple(shape), start, start + values.numel()):
        count = prod(lengths)
        found.append((offsets, values.detach()[position : position + count].view(lengths)))
        position += count
    return Piece(tuple(shape), tuple(found))


def boxes_of(shape: tuple[int, ...], start: int, end: int) -> Iterator[Box]:
    """Boxes that hold the values `start` to `end` of a tensor, in their order.

    >>> list(boxes_of((3, 4), 2, 9))
    [((0, 2), (1, 2)), ((1, 0), (1, 4)), ((2, 0), (1, 1))]
    """
    if start >= end:
        return
    if len(shape) <= 1:
        yield ((start,), (end - start,)) if shape else ((), ())
        return
    row = prod(shape[1:])
    first, last = -(-start // row), end // row
    if start < first * row:
        for offsets, lengths in boxes_of(shape[1:], start - (first - 1) * row, min(end - (first - 1) * row, row)):
            yield (first - 1, *offsets), (1, *lengths)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if end > last * row and last >= first:
        for offsets, lengths in boxes_of(shape[1:], 0, end - last * row):
            yield (last, *offsets), (1, *lengths)


class PieceSaver(DefaultSavePlanner):
    """Plans the writing of flat dictionaries of pieces."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """Values of one box."""
        piece: Piece = self.state_dict[index.fqn]
        return piece.values_at(index)


class PieceLoader(DefaultLoadPlanner):
    """Plans the reading into flat dictionaries of pieces."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        """Take note of what is wanted."""
        self.state_dict = self.original_state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Where the values of one box go."""
        piece: Piece = self.state_dict[index.fqn]
        return piece.values_at(index)
