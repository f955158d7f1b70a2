"""Ranks keep to cores of their own, and network threads wait for short turns."""

import os
import subprocess
import sys
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
    """A thread of such a name pushes nobody away, in the shortest slices; the one that asks stays as it was."""
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
        assert threads.order_network_threads() == 1
        assert worker.native_id is not None and os.sched_getscheduler(worker.native_id) == os.SCHED_BATCH
        assert _slice_ns(worker.native_id) == threads.SLICE_NS
        assert _slice_ns(os.getpid()) == own_ns > threads.SLICE_NS and os.sched_getscheduler(0) == os.SCHED_OTHER
    finally:
        done.set()
        worker.join()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors whose system call is not known no thread is changed."""
    monkeypatch.setattr(threads.platform, "machine", lambda: "riscv64")
    assert threads.order_network_threads() == 0


def test_a_rank_keeps_to_its_share_of_the_cores() -> None:
    """In a process of its own, with a thread that was there before: both are on the second half of the cores afterwards."""
    cores = sorted(os.sched_getaffinity(0))
    code = (
        "import os, threading; from chinchilla_sim.runtime.launching.threads import keep_to_own_cores; done = threading.Event();"
        "one = threading.Thread(target=done.wait); one.start(); share = keep_to_own_cores(1, 2);"
        "print(sorted(share), sorted(os.sched_getaffinity(0)), sorted(os.sched_getaffinity(one.native_id))); done.set()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split("] ")
    expected = str(cores[len(cores) // 2 :] if len(cores) > 1 else cores)
    assert [text.strip().rstrip("]") + "]" for text in told] == 3 * [expected]
