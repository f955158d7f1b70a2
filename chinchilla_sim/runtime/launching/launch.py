"""Start one process per rank through torchrun, wait, and read what they recorded.

A run is on this machine, on nodes that it emulates (a testbed), or on several machines, each of which starts its own ranks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_sim.cluster.build import emulated, emulated_core_of, slot_nodes
from chinchilla_sim.cluster.calibration import core_count
from chinchilla_sim.errors import Mistake, RankLostError, RunError, ScenarioError
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.runtime.emulated.namespaces import INTERFACE
from chinchilla_sim.runtime.emulated.testbed import Host, Testbed, open_testbed
from chinchilla_sim.runtime.engine.engines import Engine
from chinchilla_sim.runtime.launching.parent import die_with_parent
from chinchilla_sim.runtime.launching.rendezvous import INTERFACE_VARIABLE, Rendezvous, check_first_node, interface_towards
from chinchilla_sim.runtime.launching.start import CGROUPS_VARIABLE, CORES_VARIABLE, PROCESSES_VARIABLE
from chinchilla_sim.runtime.launching.supervision import prepare_folder, supervise
from chinchilla_sim.runtime.record.alignment import align
from chinchilla_sim.runtime.record.notes import Tell, tell_nobody
from chinchilla_sim.runtime.record.recorder import (
    COUNT_VARIABLE,
    answer_window,
    cycle_timeline,
    exchanges,
    kept_timelines,
    representative_timeline,
    step_seconds,
)
from chinchilla_sim.scenario.cluster import THIS_MACHINE
from chinchilla_sim.validation.compare import Measurement
from chinchilla_sim.validation.peaks import MeasuredPeak

RANK_ENVIRONMENT = {
    # An idle OpenMP thread that spins beside a busy core made a step 30 times slower.
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "1",
    # Keep freed memory: returning it to the kernel and faulting it in again makes steps uneven.
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
GRACE_S = 5.0
POLL_S = 0.1
TESTBED_PORT = 29500
"""Where launchers meet in a testbed: its nodes have no other programs."""

PEER_DIED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


Watch = Callable[[dict[str, Any]], None]
Check = Callable[[], None]


@dataclass(frozen=True)
class NodeLaunch:
    """What one launcher starts: some processes of the run, on this machine or in an emulated node, and where launchers meet.

    In an emulated node each runs on one of the `cores` of this machine (any, where none are named).
    """

    processes: tuple[int, ...]
    node_rank: int = 0
    node_count: int = 1
    endpoint: str = "127.0.0.1:0"
    interface: str = "lo"
    host: Host | None = None
    cores: tuple[int, ...] = ()

    def command(self, module: str, arguments: Sequence[str]) -> list[str]:
        """The launcher's command line."""
        start = ["chinchilla_sim.runtime.launching.start"] if self.node_count > 1 or self.host else []
        command = [
            sys.executable, "-m", "chinchilla_sim.runtime.launching.agent", f"--nnodes={self.node_count}",
            f"--nproc-per-node={len(self.processes)}", "--rdzv-backend=one-address", f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-conf=rank={self.node_rank}", "--monitor-interval=0.2", "-m", *start, module, *arguments,
        ]  # fmt: skip
        return self.host.command(command) if self.host else command

    @property
    def environment(self) -> dict[str, str]:
        """What its ranks must know."""
        own = {"PYTHONPATH": _python_path(), INTERFACE_VARIABLE: self.interface, PROCESSES_VARIABLE: ",".join(map(str, self.processes))}
        share = {CGROUPS_VARIABLE: os.pathsep.join(self.host.cgroups)} if self.host and self.host.cgroups else {}
        pinned = {CORES_VARIABLE: ",".join(map(str, self.cores))} if self.cores else {}
        return RANK_ENVIRONMENT | own | share | pinned

    def log(self, folder: Path) -> Path:
        """Where the launcher's and its ranks' output goes."""
        return folder / (f"launcher{self.node_rank}.log" if self.node_count > 1 else "launcher.log")


def run_plan(
    file: PlanFile,
    folder: Path,
    watch: Watch | None = None,
    *,
    testbed: Testbed | None = None,
    count_memory: bool = False,
    engine: Engine = "chinchilla",
    resume: Path | None = None,
    tell: Tell = tell_nobody,
) -> Measurement:
    """Run the plan on this machine; raises RunError with the failed rank's own traceback.

    `watch` is called with every line of metrics as soon as an epoch is done, `tell` with what ranks have to say. Where the scenario's
    nodes are emulated, the plan runs in `testbed`, or in one that is set up for it. `count_memory` counts tensors in a warm-up step.
    The run goes on from the checkpoints in the folder `resume`; when ranks are killed it starts again from its own.
    """
    spec = file.scenario.cluster
    if testbed is None and emulated(spec):
        with open_testbed(spec) as own:
            return run_plan(file, folder, watch, testbed=own, count_memory=count_memory, engine=engine, resume=resume, tell=tell)
    prepare_folder(file, folder, resume, tell)
    launches = testbed_launches(file, testbed) if testbed else [NodeLaunch(tuple(range(len(file.plan.slots))))]
    variables = {COUNT_VARIABLE: str(int(count_memory))}

    def launch(watch: Watch | None, check: Check) -> None:
        launch_nodes("chinchilla_sim.runtime.worker", [f"--engine={engine}", str(folder)], launches, folder, watch, variables, check)

    supervise(launch, folder, file.scenario.job.timeout_s, watch, tell)
    return _read_measurement(file, folder)


def testbed_launches(file: PlanFile, testbed: Testbed) -> list[NodeLaunch]:
    """A launcher in every emulated node that the plan uses."""
    nodes = node_processes(file)
    hosts = [testbed.hosts[node] for node in nodes]
    endpoint = f"{hosts[0].address}:{TESTBED_PORT}"
    available = sorted(os.sched_getaffinity(0))
    core_of = emulated_core_of(file.scenario.cluster, len(available))
    return [
        NodeLaunch(
            processes, number, len(nodes), endpoint, INTERFACE, host,
            cores=tuple(available[core_of[file.plan.slots[process]]] for process in processes),
        )
        for number, (processes, host) in enumerate(zip(nodes.values(), hosts, strict=True))
    ]  # fmt: skip


def join_run(file: PlanFile, folder: Path, rendezvous: Rendezvous, watch: Watch | None = None) -> Measurement | None:
    """Run this machine's part of a plan for several; the measurement on the first node, None on the others."""
    nodes = node_processes(file)
    if rendezvous.node_rank >= len(nodes):
        names = ", ".join(f"{number} is {node}" for number, node in enumerate(nodes))
        raise ScenarioError([Mistake("--node-rank", f"is {rendezvous.node_rank}, but the plan uses {len(nodes)} nodes", names)])
    check_first_node(rendezvous)
    prepare_folder(file, folder, None, tell_nobody)
    processes = list(nodes.values())[rendezvous.node_rank]
    interface = interface_towards(rendezvous.host)
    launch = NodeLaunch(processes, rendezvous.node_rank, len(nodes), rendezvous.endpoint, interface)
    launch_nodes("chinchilla_sim.runtime.worker", [str(folder)], [launch], folder, watch)
    return None if rendezvous.node_rank else _read_measurement(file, folder)


def node_processes(file: PlanFile) -> dict[str, tuple[int, ...]]:
    """Processes of the run on every node that the plan uses; the node of process 0 comes first."""
    names = slot_nodes(file.scenario.cluster)
    nodes: dict[str, list[int]] = {}
    for process, slot in enumerate(file.plan.slots):
        nodes.setdefault(names[slot], []).append(process)
    return {node: tuple(processes) for node, processes in nodes.items()}


def _read_measurement(file: PlanFile, folder: Path) -> Measurement:
    # The first process of a rank stands for those that work in lockstep with it.
    first = range(0, len(file.plan.slots), file.plan.group_width)
    records = [align(json.loads((folder / f"rank{process}.json").read_text())) for process in first]
    return _measurement(file, records, folder)


def _measurement(file: PlanFile, records: Sequence[dict[str, Any]], folder: Path) -> Measurement:
    last = file.plan.placement[-1]
    losses = [sum(parts) for parts in zip(*(records[rank]["losses"] for rank in last), strict=True)]
    weights, plan, local_steps = folder / "weights.pt", file.plan, file.plan.local_steps
    replicas = [plan.pipeline(replica) for replica in range(plan.data_parallel_degree)]
    apart = () if plan.training else replicas
    window = answer_window(records) if apart and _ranks_take_turns(file) else local_steps
    timeline = cycle_timeline(records, local_steps, replicas) if local_steps > 1 else representative_timeline(records, apart, window)
    return Measurement(
        step_s=tuple(step_seconds(records, window, apart)),
        timeline=timeline,
        losses=tuple(losses),
        metrics=records[0]["metrics"],
        epoch_s=tuple(records[0]["epoch_s"]),
        weights=str(weights) if file.plan.training and weights.exists() else None,
        peaks=tuple(MeasuredPeak(rank, **record["memory"]) for rank, record in enumerate(records)),
        kept=tuple(one for one in kept_timelines(records, apart) if local_steps == 1 or exchanges(one)),
    )


def _ranks_take_turns(file: PlanFile) -> bool:
    """Whether this machine has fewer cores than a plan for it has ranks."""
    return file.scenario.cluster.kind == THIS_MACHINE and len(file.plan.slots) > core_count()


def launch_ranks(module: str, arguments: Sequence[str], rank_count: int, folder: Path, watch: Watch | None = None) -> None:
    """Run `python -m module arguments` on every rank here; when one fails the others are stopped within seconds."""
    launch_nodes(module, arguments, [NodeLaunch(tuple(range(rank_count)))], folder, watch)


def launch_nodes(
    module: str,
    arguments: Sequence[str],
    launches: Sequence[NodeLaunch],
    folder: Path,
    watch: Watch | None = None,
    variables: Mapping[str, str] | None = None,
    check: Check | None = None,
) -> None:
    """Run `python -m module arguments` on the ranks of all nodes that this process starts.

    When one fails, or `check` raises, all are stopped within seconds.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for launch in launches:
            with launch.log(folder).open("w") as stream:
                started.append(
                    subprocess.Popen(
                        launch.command(module, arguments), env=os.environ | launch.environment | dict(variables or {}),
                        stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                        start_new_session=True, preexec_fn=lambda: die_with_parent(signal.SIGTERM),
                    )
                )  # fmt: skip
        failed = _wait(started, folder / "metrics.jsonl", watch, check)
    finally:
        for process in started:
            _stop(process)
    if failed:
        raise _failure(folder, launches)


def _wait(started: Sequence[subprocess.Popen[bytes]], metrics: Path, watch: Watch | None, check: Check | None) -> bool:
    """Wait for all launchers, or for the first that fails; whether one did.

    What the ranks of the others have to say of a failure they say within GRACE_S.
    """
    seen, until_s = 0, float("inf")
    while True:
        codes = [process.poll() for process in started]
        if check:
            check()
        if watch and metrics.exists():
            text = metrics.read_text()
            lines = text[: text.rfind("\n") + 1].splitlines()  # without a line that is being written
            for line in lines[seen:]:
                watch(json.loads(line))
            seen = len(lines)
        if any(codes):
            until_s = min(until_s, time.monotonic() + GRACE_S)
        if None not in codes or time.monotonic() > until_s:
            return any(codes)
        time.sleep(POLL_S)


def _python_path() -> str:
    """Ranks find the modules that this process finds, such as a user's own package in the working folder."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a launcher that still runs, which ends its ranks (they also die with it)."""
    process.terminate()
    deadline = time.monotonic() + GRACE_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()


def _failure(folder: Path, launches: Sequence[NodeLaunch]) -> RunError:
    """What to tell the user: the traceback of the rank that failed first, or that one was killed."""
    processes = [process for launch in launches for process in launch.processes]
    errors = [path for process in processes if (path := folder / f"rank{process}.error").exists()]
    # A rank whose peer has died fails too; that is not the reason.
    first_hand = [path for path in errors if not any(symptom in path.read_text() for symptom in PEER_DIED)]
    if first_hand:
        first = min(first_hand, key=lambda path: path.stat().st_mtime)
        return RunError(f"{first.stem} failed:\n{first.read_text().rstrip()}")
    lines = [line for launch in launches for line in launch.log(folder).read_text().splitlines()]
    told = [line.strip() for line in lines if "exitcode" in line or "Signal" in line] or lines[-15:]
    return RankLostError("a rank died without a traceback (killed, or out of memory); the launcher said:\n" + "\n".join(told))
