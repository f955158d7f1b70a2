"""IDX files come back as they were written, and wrong ones are named."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.models.idx import read_idx

WriteIdx = Callable[[Path, NDArray[Any]], Path]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("item_type", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_round_trip(tmp_path: Path, write_idx: WriteIdx, item_type: str, ending: str) -> None:
    """Every type of item survives, plain and gzipped, with its shape and in the machine's byte order."""
    items = np.arange(24).reshape(2, 3, 4).astype(item_type)
    read = read_idx(write_idx(tmp_path / f"items{ending}", items))
    np.testing.assert_array_equal(read, items)
    assert read.dtype == items.dtype


def test_by_hand(tmp_path: Path) -> None:
    """Two int16 after a header of eight bytes, spelled out."""
    path = tmp_path / "two"
    path.write_bytes(bytes([0, 0, 0x0B, 1, 0, 0, 0, 2, 1, 0, 0xFF, 0xFF]))
    assert read_idx(str(path)).tolist() == [256, -1]


def test_gzip_is_known_by_content(tmp_path: Path, write_idx: WriteIdx) -> None:
    """A file that a browser unpacked without renaming it is read as well."""
    packed = write_idx(tmp_path / "packed.gz", np.arange(5, dtype=np.uint8))
    packed.write_bytes(gzip.decompress(packed.read_bytes()))
    assert read_idx(packed).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_every_truncation_is_refused(tmp_path: Path, write_idx: WriteIdx, ending: str) -> None:
    """A file cut anywhere, in header or items, is an error that says so and names the file."""
    path = write_idx(tmp_path / f"cut{ending}", np.arange(6, dtype=np.int16).reshape(2, 3))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ScenarioError, match="truncated") as caught:
            read_idx(path)
        assert caught.value.source == str(path)


def test_longer_than_its_header_is_refused(tmp_path: Path, write_idx: WriteIdx) -> None:
    """Bytes after the last item mean that header and items do not belong together."""
    path = write_idx(tmp_path / "long", np.zeros(3, dtype=np.uint8))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ScenarioError, match="too long: 12 bytes instead of the 11"):
        read_idx(path)


@pytest.mark.parametrize("magic", ["01000801", "00010801", "00000a01", "00000800", "89504e47"])
def test_wrong_magic_is_refused(tmp_path: Path, magic: str) -> None:
    """Two zeros, a known type and at least one dim, or it is no IDX file."""
    path = tmp_path / "wrong"
    path.write_bytes(bytes.fromhex(magic) + bytes(16))
    with pytest.raises(ScenarioError, match=f"wrong magic number 0x{magic}"):
        read_idx(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A path without a file is an error of the scenario, not a traceback."""
    with pytest.raises(ScenarioError, match="there is no such file"):
        read_idx(tmp_path / "nowhere")


def test_unreadable_path_is_refused(tmp_path: Path) -> None:
    """A folder in place of a file is an error of the scenario, too."""
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_idx(tmp_path)
