"""Checkpoints of a run: saved beside the computation, and taken up again by the same or another plan.

A checkpoint is made before a step, so that there is always one left to do behind it. The tensors are copied, and a thread writes them
through torch.distributed.checkpoint, whose messages travel in a group of their own: the program's order of communication stays
as it is. (`async_save` does the same, but knows no moment at which all ranks' files are there and can be sealed.) Only whoever
wants the next checkpoint waits for the one before.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from chinchilla_sim.runtime.launching.launch import PEER_DIED
from chinchilla_sim.runtime.record.checkpoint_files import (
    FOLDER,
    Entry,
    checkpoint_path,
    digest,
    job_facts,
    prune,
    seal,
    sealed_checkpoints,
    step_of,
)
from chinchilla_sim.runtime.record.notes import note
from chinchilla_sim.runtime.saved.parts import parts_of
from chinchilla_sim.runtime.saved.pieces import Piece, PieceSaver, piece_of
from chinchilla_sim.runtime.saved.rank_state import (
    RUN_FACTS,
    exchange_tensors,
    losses_key,
    model_pieces,
    optimizer_pieces,
    pack,
    plan_digest,
    random_states,
    replica_tensors,
)

if TYPE_CHECKING:
    from chinchilla_sim.runtime.rank.training import RankRun

WARM_UP_STEPS = 5
TIMED_STEPS = 32


class Checkpoints:
    """Those that one rank of a run takes part in; all ranks call everything at the same step."""

    def __init__(self, run: RankRun) -> None:
        self.run, self.root = run, run.folder / FOLDER
        self.every, self.interval_s = run.spec.checkpoint_interval_steps, run.spec.checkpoint_interval_s
        self._next = -1
        self._group: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: Future[None] | None = None

    def before_step(self, epoch: int, step_of_epoch: int, epoch_s: float) -> float:
        """Save where it is time to; `epoch_s` are the seconds of the epoch so far. Returns how long that held up the run."""
        start_s = monotonic()
        if self._is_due():
            self.save(epoch, step_of_epoch, epoch_s)
        return monotonic() - start_s

    def _is_due(self) -> bool:
        run, steps = self.run, self.run.steps
        made = steps - run.first_step
        if not run.plan.training or not made:
            return False
        # Between two exchanges of local steps replicas hold different weights.
        local_steps = run.plan.local_steps
        if self.every:
            return steps % local_steps == 0 and steps // self.every > (steps - local_steps) // self.every
        if made == WARM_UP_STEPS and self.interval_s:
            self._next = self._agree_on_next()
        return steps % local_steps == 0 and 0 <= self._next <= steps

    def _agree_on_next(self) -> int:
        """The step before which the interval will be over: the first process says it, so that all save at the same one."""
        times = [end for _, end in self.run.recorder.intervals[-TIMED_STEPS:]]
        step_s = median(b - a for a, b in pairwise(times))
        ahead = torch.tensor([max(1, ceil(self.interval_s / max(step_s, 1e-6)))], device=self.run.device)
        dist.broadcast(ahead, src=0)
        return self.run.steps + int(ahead)

    def save(self, epoch: int, step_of_epoch: int, epoch_s: float) -> None:
        """Copy what must be kept, and write it in the background."""
        self.finish()
        if self._pool is None:
            self._group = dist.new_group(backend="gloo")
            self._pool = ThreadPoolExecutor(1, "checkpoint")
        pieces = {key: piece.staged() for key, piece in self._pieces(epoch, step_of_epoch, epoch_s).items()}
        self._under_way = self._pool.submit(self._write, checkpoint_path(self.root, self.run.steps), pieces)
        if not self.every:
            self._next = self._agree_on_next()

    def _pieces(self, epoch: int, step_of_epoch: int, epoch_s: float) -> dict[str, Piece]:
        run = self.run
        parts = parts_of(run.plan, run.stages, run.updates, run.names)
        pieces = model_pieces(run.plan, run.seat, parts) | optimizer_pieces(run.plan, run.seat, parts, run.optimizers)
        gradients = run.interpreter.gradients
        tensors = exchange_tensors(run.seat, gradients) | replica_tensors(run.seat, gradients) | random_states(run.seat, run.device)
        if run.interpreter.last:
            tensors[losses_key(run.seat.process)] = torch.tensor(run.losses, dtype=torch.float64)
        if run.seat.process == 0:
            tensors[RUN_FACTS] = pack(self._facts(epoch, step_of_epoch, epoch_s))
        return pieces | {key: piece_of(tensor) for key, tensor in tensors.items()}

    def _facts(self, epoch: int, step_of_epoch: int, epoch_s: float) -> dict[str, Any]:
        run = self.run
        return {
            "plan": plan_digest(run.plan),
            "loss_processes": run.loss_processes,
            "steps": run.steps,
            "epoch": epoch,
            "step_of_epoch": step_of_epoch,
            "epoch_s": [*run.epoch_s, epoch_s],
            "metrics": run.metrics,
            "lines": run.lines,
        }

    def _write(self, path: Path, pieces: Mapping[str, Piece]) -> None:
        """Runs in the thread; a failure costs this checkpoint only."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        try:
            save(dict(pieces), storage_writer=FileSystemWriter(path), planner=PieceSaver(), process_group=self._group)
            self._seal(path)
        except (CheckpointException, OSError, RuntimeError) as error:
            self._give_up(path, error)

    def _seal(self, path: Path) -> None:
        """Every process sums up the files that it wrote, the first one declares the whole thing written."""
        process = self.run.seat.process
        entries: dict[str, Entry] | str = {}
        try:
            entries = {file.name: digest(file) for file in sorted(path.glob(f"__{process}_*"))}
        except OSError as error:
            entries = f"rank {process}: {error}"
        gathered: list[Any] | None = [None] * dist.get_world_size() if process == 0 else None
        dist.gather_object(entries, gathered, dst=0, group=self._group)
        if gathered is None:
            return
        wrong = [one for one in gathered if isinstance(one, str)]
        if wrong:
            raise OSError("; ".join(wrong))
        entries = {".metadata": digest(path / ".metadata")} | {name: entry for one in gathered for name, entry in one.items()}
        seal(path, entries, job_facts(self.run.spec))
        prune(self.root)

    def _give_up(self, path: Path, error: BaseException) -> None:
        """Tell why, once for all ranks, and free the space."""
        if self.run.seat.process:
            return
        reason = _reason(error)
        if any(symptom in reason for symptom in PEER_DIED):
            return
        shutil.rmtree(path, ignore_errors=True)
        last = next(iter(sealed_checkpoints(self.root)), None)
        left = f"the last one is of step {step_of(last)}" if last else "there is none yet"
        note(self.run.folder, f"WARNING: no checkpoint of step {step_of(path)}: {reason}; the run goes on, {left}")

    def finish(self) -> None:
        """Wait until what is under way is written."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def close(self) -> None:
        """The same, and end the thread."""
        self.finish()
        if self._pool is not None:
            self._pool.shutdown()


def _reason(error: BaseException) -> str:
    """Why a checkpoint failed, rank by rank, without tracebacks."""
    failures: Mapping[int, Any] = getattr(error, "failures", {})
    told = {rank: failure[0] if isinstance(failure, tuple) else failure for rank, failure in failures.items()}
    words = [f"rank {rank}: {failure}" for rank, failure in sorted(told.items())]
    return "; ".join(words) or f"{type(error).__name__}: {error}"
