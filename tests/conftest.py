"""What all tests share: a stored calibration, so that no test depends on this machine's speed."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No test is about how long one example takes on a busy machine.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CALIBRATION = Path(__file__).parent / "data" / "calibration.json"


@pytest.fixture(autouse=True)
def stored_calibration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Plans for this-machine use the stored calibration; the user's cache is out of reach."""
    monkeypatch.setenv("CHINCHILLA_CALIBRATION", str(CALIBRATION))
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path / "cache"))
    yield CALIBRATION
