"""Read one IDX file, the format of the MNIST database.

All numbers are big-endian (LeCun, Cortes & Burges, <http://yann.lecun.com/exdb/mnist/>):

    bytes 0, 1   zero
    byte 2       type of the items: 08 uint8, 09 int8, 0B int16, 0C int32, 0D float32, 0E float64
    byte 3       number of dims, at least 1
    then         one uint32 per dim, then the items, last dim fastest
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.errors import Mistake, ScenarioError

_ITEM_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | Path) -> NDArray[Any]:
    """The array of an IDX file, plain or gzipped (known by its content), in the machine's byte order.

    ScenarioError where the file is missing, unreadable, not IDX, or shorter or longer than its header says.
    """
    content = _read_bytes(path)
    item_type, shape = _read_header(content, path)
    start = 4 + 4 * len(shape)
    expected_bytes = start + math.prod(shape) * item_type.itemsize
    if len(content) != expected_bytes:
        fault = "truncated" if len(content) < expected_bytes else "too long"
        raise _error(path, f"is {fault}: {len(content)} bytes instead of the {expected_bytes} of shape {shape}")
    items = np.frombuffer(content, item_type, offset=start).reshape(shape)
    return items.astype(item_type.newbyteorder("="))


def _read_bytes(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except FileNotFoundError as error:
        raise _error(path, "there is no such file", "check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _error(path, f"is truncated or damaged inside gzip ({error})") from error
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from error


def _read_header(content: bytes, path: str | Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    if len(content) < 4:
        raise _error(path, f"is truncated: {len(content)} bytes are no IDX header")
    zero, code, dim_count = struct.unpack_from(">HBB", content)
    if zero or code not in _ITEM_TYPES or not dim_count:
        raise _error(path, f"starts with the wrong magic number 0x{content[:4].hex()}", "give an IDX file, as MNIST is distributed")
    if len(content) < 4 + 4 * dim_count:
        raise _error(path, f"is truncated: {len(content)} bytes instead of a header of {4 + 4 * dim_count}")
    return np.dtype(_ITEM_TYPES[code]), struct.unpack_from(f">{dim_count}I", content, 4)


def _error(path: str | Path, what: str, cure: str = "copy or download the file again") -> ScenarioError:
    return ScenarioError([Mistake("", what, cure)], source=str(path))
