"""Start one process per rank through torchrun, wait, and read what they recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import RankLostError, RunError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.notes import Tell, tell_nobody
from chinchilla_sim.runtime.parent import die_with_parent
from chinchilla_sim.runtime.recorder import representative_timeline, step_seconds
from chinchilla_sim.runtime.supervision import prepare_folder, supervise
from chinchilla_sim.validation.compare import Measurement

RANK_ENVIRONMENT = {
    # An idle OpenMP thread that spins beside a busy core made a step 30 times slower.
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    # Keep freed memory: returning it to the kernel and faulting it in again makes steps uneven.
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
GRACE_S = 5.0
POLL_S = 0.1
PEER_DIED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


Watch = Callable[[dict[str, Any]], None]
Check = Callable[[], None]


def run_plan(file: PlanFile, folder: Path, watch: Watch | None = None, resume: Path | None = None, tell: Tell = tell_nobody) -> Measurement:
    """Run the plan on this machine; raises RunError with the failed rank's own traceback.

    `watch` is called with every line of metrics as soon as an epoch is done, `tell` with what ranks have to say. The run goes on from
    the checkpoints in the folder `resume`; when ranks are killed it starts again from its own.
    """
    prepare_folder(file, folder, resume, tell)

    def launch(watch: Watch | None, check: Check) -> None:
        launch_ranks("chinchilla_sim.runtime.worker", [str(folder)], file.plan.rank_count, folder, watch, check)

    supervise(launch, folder, file.scenario.job.timeout_s, watch, tell)
    records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(file.plan.rank_count)]
    return _measurement(file, records, folder)


def _measurement(file: PlanFile, records: Sequence[dict[str, Any]], folder: Path) -> Measurement:
    last = file.plan.placement[-1]
    losses = [sum(parts) for parts in zip(*(records[rank]["losses"] for rank in last), strict=True)]
    weights = folder / "weights.pt"
    return Measurement(
        step_s=tuple(step_seconds(records)),
        timeline=representative_timeline(records),
        losses=tuple(losses),
        metrics=records[0]["metrics"],
        epoch_s=tuple(records[0]["epoch_s"]),
        weights=str(weights) if file.plan.training and weights.exists() else None,
    )


def launch_ranks(
    module: str, arguments: Sequence[str], rank_count: int, folder: Path, watch: Watch | None = None, check: Check | None = None
) -> None:
    """Run `python -m module arguments` on every rank; when one fails, or `check` raises, the others are stopped within seconds."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={rank_count}",
        "--monitor-interval=0.2", "-m", module, *arguments,
    ]  # fmt: skip
    environment = os.environ | RANK_ENVIRONMENT | {"PYTHONPATH": _python_path()}
    log = folder / "launcher.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True, preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )  # fmt: skip
        try:
            code = _wait(process, folder / "metrics.jsonl", watch, check)
        except BaseException:
            _stop(process)
            raise
    if code:
        raise _failure(folder, rank_count, log)


def _wait(process: subprocess.Popen[bytes], metrics: Path, watch: Watch | None, check: Check | None) -> int:
    seen = 0
    while True:
        code = process.poll()
        if check:
            check()
        if watch and metrics.exists():
            text = metrics.read_text()
            lines = text[: text.rfind("\n") + 1].splitlines()  # without a line that is being written
            for line in lines[seen:]:
                watch(json.loads(line))
            seen = len(lines)
        if code is not None:
            return code
        time.sleep(POLL_S)


def _python_path() -> str:
    """Ranks find the modules that this process finds, such as a user's own package in the working folder."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the launcher, which ends its ranks (they also die with it)."""
    process.terminate()
    deadline = time.monotonic() + GRACE_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()


def _failure(folder: Path, rank_count: int, log: Path) -> RunError:
    """What to tell the user: the traceback of the rank that failed first, or that one was killed."""
    errors = [path for rank in range(rank_count) if (path := folder / f"rank{rank}.error").exists()]
    # A rank whose peer has died fails too; that is not the reason.
    first_hand = [path for path in errors if not any(symptom in path.read_text() for symptom in PEER_DIED)]
    if first_hand:
        first = min(first_hand, key=lambda path: path.stat().st_mtime)
        return RunError(f"{first.stem} failed:\n{first.read_text().rstrip()}")
    lines = log.read_text().splitlines()
    told = [line.strip() for line in lines if "exitcode" in line or "Signal" in line] or lines[-15:]
    return RankLostError("a rank died without a traceback (killed, or out of memory); the launcher said:\n" + "\n".join(told))
