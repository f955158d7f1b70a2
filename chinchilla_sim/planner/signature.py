"""Was a plan file made here? A plan that names a user's Python function is believed only if this user's own key signed it.

The signature is HMAC-SHA256 over the file's content, with a key that lies in the user's cache folder and is readable by nobody
else. A plan from elsewhere, one written by hand, and one that was changed afterwards are not signed with it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_sim.cluster.calibration import cache_folder

KEY_BYTES = 32
PURPOSE = b"chinchilla-plan-1\0"
FIELD = "signature"


def sign(data: Mapping[str, Any]) -> str | None:
    """Signature of a plan file's content (without its `signature`); None where no key can be kept."""
    key = _read_key() or _make_key()
    return _mac(key, data) if key else None


def signed_here(data: Mapping[str, Any]) -> bool:
    """Whether the `signature` of a plan file's content is this user's own."""
    key, given = _read_key(), data.get(FIELD)
    return bool(key) and isinstance(given, str) and given.isascii() and hmac.compare_digest(_mac(key or b"", data), given)


def _mac(key: bytes, data: Mapping[str, Any]) -> str:
    content = {name: value for name, value in data.items() if name != FIELD}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, PURPOSE + text.encode(), hashlib.sha256).hexdigest()


def key_path() -> Path:
    """Where the key lies."""
    return cache_folder() / "plan-key"


def _read_key() -> bytes | None:
    """The key, or None where there is none, or one that others could have read or written."""
    try:
        with key_path().open("rb") as file:
            about = os.fstat(file.fileno())
            key = file.read()
    except OSError:
        return None
    private = about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077
    return key if private and len(key) == KEY_BYTES else None


def _make_key() -> bytes | None:
    """A fresh key in place of none, or of one that is not private; of two processes that make one at once, both get the first."""
    path, key = key_path(), secrets.token_bytes(KEY_BYTES)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
        if _read_key() is None:
            path.unlink(missing_ok=True)
        try:
            os.link(partial, path)
        finally:
            partial.unlink()
    except FileExistsError:
        return _read_key()
    except OSError:
        return None
    return key
