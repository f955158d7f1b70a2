"""Network threads ask for short turns."""

import os
import threading
from pathlib import Path

import pytest

from chinchilla_sim.runtime.launching import threads


def _slice_ns(thread: int) -> int:
    """What the kernel says of a thread's slice; skips where it does not."""
    try:
        lines = Path(f"/proc/self/task/{thread}/sched").read_text().splitlines()
    except OSError:
        pytest.skip("this kernel does not show how it schedules")
    found = [line for line in lines if line.startswith("se.slice")]
    return int(found[0].split(":")[1]) if found else pytest.skip("this kernel has no slices of their own (Linux 6.12)")


def test_named_threads_get_short_slices_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of such a name has the shortest slice afterwards; the one that asks keeps its own."""
    ready, done = threading.Event(), threading.Event()

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("gloo_tcp_loop")
        ready.set()
        done.wait()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert ready.wait(10)
        own_ns = _slice_ns(os.getpid())
        assert threads.hurry_network_threads() == 1
        assert worker.native_id is not None and _slice_ns(worker.native_id) == threads.SLICE_NS
        assert _slice_ns(os.getpid()) == own_ns > threads.SLICE_NS
    finally:
        done.set()
        worker.join()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors whose system call is not known no thread is changed."""
    monkeypatch.setattr(threads.platform, "machine", lambda: "riscv64")
    assert threads.hurry_network_threads() == 0
