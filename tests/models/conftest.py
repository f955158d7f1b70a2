"""What the tests of models share."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

WriteIdx = Callable[[Path, NDArray[Any]], Path]
_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def _write_idx(path: Path, items: NDArray[Any]) -> Path:
    header = struct.pack(f">HBB{items.ndim}I", 0, _CODES[items.dtype.str[1:]], items.ndim, *items.shape)
    content = header + items.astype(items.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def write_idx() -> WriteIdx:
    """A writer of IDX files that shares no code with the reader."""
    return _write_idx


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """A folder with 30 and 12 random images of 4 x 5 pixels and three classes, under two spellings of MNIST's names."""
    generator = np.random.default_rng(7)
    for name, shape, limit in (
        ("train-images-idx3-ubyte", (30, 4, 5), 256),
        ("train-labels.idx1-ubyte", (30,), 3),
        ("t10k-images.idx3-ubyte.gz", (12, 4, 5), 256),
        ("t10k-labels-idx1-ubyte.gz", (12,), 3),
    ):
        _write_idx(tmp_path / name, generator.integers(limit, size=shape, dtype=np.uint8))
    return tmp_path
