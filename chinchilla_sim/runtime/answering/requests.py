"""Run a plan on requests, and read what its processes recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.answering.serving import Orders
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.validation.served import Pass, ServedRun


def run_requests(file: PlanFile, folder: Path, orders: Orders) -> ServedRun:
    """Answer the job's requests on this machine; raises RunError with the failed rank's own traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [path for kind in ("rank*.json", "rank*.error", "answers*.pt", "metrics.jsonl") for path in folder.glob(kind)]:
        old.unlink()
    file.save(folder / "plan.json")
    orders.save(folder)
    count = len(file.plan.slots)
    try:
        launch_ranks("chinchilla_sim.runtime.worker", [str(folder)], count, folder)
    finally:
        # A later run of steps in the same folder is none on requests.
        orders.remove(folder)
    return read_run(file, [json.loads((folder / f"rank{process}.json").read_text()) for process in range(count)])


def read_run(file: PlanFile, records: Sequence[dict[str, Any]]) -> ServedRun:
    """What all processes recorded together; RunError where a request was answered never, or twice."""
    arrivals: dict[int, float] = {}
    answers: dict[int, float] = {}
    passes = []
    for process, record in enumerate(records):
        (stage, *_), replica = file.plan.position[process // file.plan.group_width]
        for first, _, _, times in record["taken"]:
            _enter(arrivals, first, times, "taken")
        for first, size, end_s in record["answered"]:
            _enter(answers, first, [end_s] * size, "answered")
        passes += [Pass(replica, stage, *row) for row in record["busy"] if process % file.plan.group_width == 0]
    if sorted(arrivals) != sorted(answers) or sorted(answers) != list(range(len(answers))):
        raise RunError(f"{len(arrivals)} requests were taken and {len(answers)} answered: report this with the folder of the run")
    return ServedRun(
        arrivals_s=tuple(arrivals[number] for number in sorted(arrivals)),
        answered_s=tuple(answers[number] for number in sorted(answers)),
        passes=tuple(passes),
        sent_bytes=sum(record["sent_bytes"] for record in records),
        fixed_sizes=tuple(records[0]["fixed_sizes"]),
        metrics=records[0]["metrics"],
    )


def _enter(times_of: dict[int, float], first: int, times: Sequence[float], what: str) -> None:
    for number, time_s in enumerate(times, start=first):
        if number in times_of:
            raise RunError(f"request {number} was {what} twice: report this with the folder of the run")
        times_of[number] = time_s
