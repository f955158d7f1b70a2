"""Kill a run at random moments and look whether anything is lost: `chinchilla bench kills`.

Every run is a command of its own (`python -m chinchilla_sim.runtime.benchmark.kills PLAN FOLDER [resume]`) with a launcher and ranks below
it. One of these processes, drawn at random, gets SIGKILL at a moment drawn at random: one in four while the run starts, the others while
it makes steps. A run that did not go on by itself is resumed, as a user would.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile, load_plan
from chinchilla_sim.runtime.launching.launch import run_plan
from chinchilla_sim.runtime.launching.parent import die_with_parent
from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, newest_step
from chinchilla_sim.runtime.record.heartbeat import read_whereabouts
from chinchilla_sim.scenario.load import parse_scenario

LOSSES, STORY = "losses.json", "story.txt"
GONE_S = 20.0
"""In which the processes of a killed command must be gone."""
MOST_RESUMPTIONS = 5
MOST_TRIES = 4
STARTING_SHARE = 0.25

_SCENARIO = {
    "model": {"builtin": "mnist_mlp"},
    "job": {
        "global_batch_size": 64,
        "epochs": 8,
        "learning_rate_schedule": "linear",
        "data": "digits",
        "checkpoint_interval_steps": 40,
    },
    "cluster": {"kind": "this-machine", "ranks": 2},
}


def small_plans() -> list[PlanFile]:
    """A small network over two ranks: as two replicas, as a pipeline, under ZeRO 2, and with tensor parallelism."""
    scenario = parse_scenario(_SCENARIO, "bench kills")
    tasks = ("linear", "relu", "linear_1", "loss")
    replicas = Plan((tasks,), ((0, 1),), (0, 1), 64, 1, "1f1b", ("none",), ())
    pipeline = Plan((tasks[:1], tasks[1:]), ((0,), (1,)), (0, 1), 64, 2, "1f1b", ("none",) * 2, ("none",))
    tensor = Plan((tasks,), ((0,),), (0, 1), 64, 1, "1f1b", ("none",), (), tensor_parallel_degree=2)
    return [PlanFile(plan, scenario) for plan in (replicas, pipeline, replace(replicas, zero_stage=2), tensor)]


@dataclass(frozen=True, slots=True)
class Kill:
    """One run that lost a process at `at_s` seconds, and what became of it."""

    victim: str
    at_s: float
    step: int
    restarts: int
    resumptions: int
    same_losses: bool
    same_weights: bool
    left_processes: int

    @property
    def harmless(self) -> bool:
        """Whether nothing was lost, and nothing left behind."""
        return self.same_losses and self.same_weights and not self.left_processes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def measure_kills(file: PlanFile, times: int, seed: int, folder: Path) -> Iterator[Kill]:
    """`times` runs of a plan that each lose a process; the losses of a run without trouble are the measure."""
    folder.mkdir(parents=True, exist_ok=True)
    file.save(folder / "plan.json")
    draw, start_s = random.Random(seed), time.monotonic()
    undisturbed = _start(folder, "undisturbed", resume=False)
    _wait_until(lambda: undisturbed.poll() is not None or _steps(folder / "undisturbed") > 0, float("inf"))
    begun_s = time.monotonic()
    if undisturbed.wait():
        raise RunError(f"the run without trouble failed: {_story(folder / 'undisturbed')}")
    ended_s = time.monotonic()
    made = 0
    for number in range(MOST_TRIES * times):
        kill = _kill_once(folder, f"kill{number}", draw, begun_s - start_s, ended_s - begun_s)
        if kill:
            yield kill
            made += 1
        if made == times:
            return


def _kill_once(folder: Path, name: str, draw: random.Random, starting_s: float, running_s: float) -> Kill | None:
    """None where the run was over too soon."""
    start_s = time.monotonic()
    own, command = folder / name, _start(folder, name, resume=False)
    if draw.random() < STARTING_SHARE:
        _wait_until(lambda: command.poll() is not None, draw.uniform(0.0, starting_s))
    else:
        _wait_until(lambda: command.poll() is not None or _steps(own) > 0, float("inf"))
        _wait_until(lambda: command.poll() is not None, draw.uniform(0.0, running_s))
    at_s = time.monotonic() - start_s
    victim, pid = draw.choice(_family(command.pid))
    step = _steps(own)
    if command.poll() is not None:
        return None
    os.kill(pid, signal.SIGKILL)
    resumptions = 0
    while command.wait():
        if resumptions == MOST_RESUMPTIONS:
            raise RunError(f"{name} does not end: {_story(own)}")
        _wait_until(lambda: not living(own), GONE_S)
        resumptions += 1
        command = _start(folder, name, resume=newest_step(own / FOLDER) >= 0)
    _wait_until(lambda: not living(own), GONE_S)
    whole = folder / "undisturbed"
    return Kill(
        victim=victim,
        at_s=at_s,
        step=step,
        restarts=_story(own).count("starts again"),
        resumptions=resumptions,
        same_losses=(whole / LOSSES).read_bytes() == (own / LOSSES).read_bytes(),
        same_weights=_saved_weights(whole) == _saved_weights(own),
        left_processes=len(living(own)),
    )


def _start(folder: Path, name: str, resume: bool) -> subprocess.Popen[bytes]:
    """The command of a run; it dies with this process."""
    own = folder / name
    own.mkdir(exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "chinchilla_sim.runtime.benchmark.kills",
        str(folder / "plan.json"),
        str(own),
        *(["resume"] if resume else []),
    ]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with (own / STORY).open("a") as story:
        return subprocess.Popen(
            words, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=story, stderr=story,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )  # fmt: skip


def _steps(folder: Path) -> int:
    """Steps that the farthest rank has made."""
    return max((one.step for one in read_whereabouts(folder)), default=0)


def _story(folder: Path) -> str:
    return (folder / STORY).read_text()


def _saved_weights(folder: Path) -> Any:
    """Digest of every weight: files of equal weights may differ."""
    import hashlib

    import torch

    state = torch.load(folder / "weights.pt", weights_only=True)
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in state.items()}


def _family(command: int) -> list[tuple[str, int]]:
    """The command and all processes below it, by what they are."""
    launchers = _children(command)
    ranks = [rank for launcher in launchers for rank in _children(launcher)]
    named = [("command", command), *(("launcher", pid) for pid in launchers)]
    return [*named, *((f"rank {number}", pid) for number, pid in enumerate(ranks))]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def living(folder: Path) -> list[int]:
    """Processes that still run and name this folder in their command; one that is dead and was not yet asked for its exit code does not."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            named = str(folder).encode() in (entry / "cmdline").read_bytes()
            dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if named and not dead and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def _wait_until(condition: Callable[[], bool], patience_s: float) -> None:
    deadline_s = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)


def main(plan: Path, folder: Path, resume: bool) -> None:
    """Run or resume a plan, and leave its losses."""
    measurement = run_plan(load_plan(plan), folder, resume=folder if resume else None, tell=lambda text: print(text, flush=True))
    (folder / LOSSES).write_text(json.dumps(measurement.losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "resume" in sys.argv[3:])
