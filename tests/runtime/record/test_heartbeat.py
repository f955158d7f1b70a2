"""Who hangs, and where."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_sim.runtime.record.heartbeat import Heartbeat, Watchdog, read_whereabouts

PROCESS = """
import signal, sys, time
from pathlib import Path
from chinchilla_sim.runtime.record.heartbeat import Heartbeat

beat = Heartbeat(Path(sys.argv[1]), int(sys.argv[2]))
beat.step = 6
beat.at(sys.argv[3])

def endless():
    while True:
        time.sleep(0.01)

endless()
"""


def test_the_last_action_can_be_read(tmp_path: Path) -> None:
    """By any process, without the rank's help; long labels are cut."""
    beat = Heartbeat(tmp_path, 3)
    beat.step = 11
    beat.at("1SEND_F0")
    beat.at("2F1")
    (found,) = read_whereabouts(tmp_path)
    assert (found.process, found.pid, str(found)) == (3, os.getpid(), "step 12 at 2F1")
    beat.at("x" * 1000)
    assert read_whereabouts(tmp_path)[0].label.startswith("xxx")
    beat.close()


def test_the_watchdog_is_patient_while_anything_moves(tmp_path: Path) -> None:
    """Also while nothing has begun; only a pause of all ranks counts."""
    dog = Watchdog(tmp_path, 0.2)
    time.sleep(0.3)
    assert dog.moving()
    beat = Heartbeat(tmp_path, 0)
    for _ in range(4):
        beat.at("0F0")
        assert dog.moving()
        time.sleep(0.1)
    time.sleep(0.2)
    assert not dog.moving()
    beat.close()


@pytest.mark.parametrize("stop", [False, True])
def test_the_guilty_rank_is_named(tmp_path: Path, stop: bool) -> None:
    """A rank in code of the job is blamed with file and line; one that a signal has stopped is blamed before it."""
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(rank), f"0F{rank}"]) for rank in range(2)]
    try:
        deadline = time.monotonic() + 60
        while len(read_whereabouts(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        if stop:
            processes[1].send_signal(signal.SIGSTOP)
        lines = Watchdog(tmp_path, 5).explain().splitlines()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert "5 s" in lines[0]
    if stop:
        assert "rank 1" in lines[2] and "hangs in step 7 at 0F1: stopped by a signal" in lines[2] and "waits" in lines[1]
    else:
        assert "rank 0" in lines[1] and "hangs in step 7 at 0F0" in lines[1] and "in endless" in lines[1]
