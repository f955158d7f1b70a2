"""Orphans of a run end themselves."""

import os
import sys
from pathlib import Path

import pytest

from chinchilla_sim.runtime.launching.parent import leave_if_orphaned


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the death of a parent")
def test_an_orphan_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank whose launcher died while it was starting belongs to process 1; unless that is the launcher, it ends."""
    leave_if_orphaned("no such folder")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(SystemExit, match="launcher of this rank is dead"):
        leave_if_orphaned("no such folder")
    leave_if_orphaned(Path("/proc/1/cmdline").read_bytes().split(b"\0")[0].decode())
