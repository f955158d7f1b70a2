"""Read checkpoints: tensors with `weights_only`, and an index that can name nothing but shapes and places."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.saved.pieces import Piece, PieceLoader, piece_of

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata


def read_metadata(path: Path) -> Metadata:
    """What a checkpoint holds; its index is a pickle, of which only plain records of shapes and places are accepted."""
    with (path / ".metadata").open("rb") as file:
        metadata = _IndexUnpickler(file).load()
    kinds = {type(one).__name__ for one in metadata.state_dict_metadata.values()}
    if kinds - {"TensorStorageMetadata"}:
        raise RunError(f"{path} holds something other than tensors ({', '.join(sorted(kinds))}): it is not a checkpoint of a run")
    return cast("Metadata", metadata)


class _IndexUnpickler(pickle.Unpickler):
    """Builds nothing but what torch.distributed.checkpoint writes into its index."""

    ALLOWED: Mapping[str, frozenset[str]] = {
        "torch": frozenset({"Size", "device"}),
        "torch.serialization": frozenset({"_get_layout"}),
        "torch.distributed.checkpoint.metadata": frozenset(
            {
                "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
                "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
            }
        ),
        "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
        "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath", "WindowsPath"}),
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything else."""
        if name in self.ALLOWED.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise RunError(f"the index of a checkpoint names {module}.{name}: it was not written by torch.distributed.checkpoint")


def read_pieces(path: Path, metadata: Metadata, wanted: Mapping[str, Piece]) -> None:
    """Fill pieces from a checkpoint; every process for itself."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        """Reads tensors with `weights_only`, and no other index than the checked one."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            return metadata

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(dict(wanted), storage_reader=Reader(path), planner=PieceLoader(), no_dist=True)


def read_tensors(path: Path, metadata: Metadata, keys: Iterable[str]) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint."""
    saved = saved_kinds(metadata)
    tensors = {key: torch.empty(*saved[key][:1], dtype=saved[key][1]) for key in keys}
    read_pieces(path, metadata, {key: piece_of(tensor) for key, tensor in tensors.items()})
    return tensors


def saved_kinds(metadata: Metadata) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of everything saved."""
    return {key: (one.size, one.properties.dtype) for key, one in metadata.state_dict_metadata.items()}  # type: ignore[union-attr]
