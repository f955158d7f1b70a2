"""Take up a run where a checkpoint left it: with the same plan to the last bit, with another plan or other ranks within rounding.

Weights and the optimizer's state are the model's: any plan takes them up. What gradient codecs have not sent yet (error feedback) and the
states of random generators are a process's own: the same plan goes on with them, another begins without residuals and with new numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.record.checkpoint_files import FOLDER, RESUME_FILE, check_job, newest_whole, set_aside
from chinchilla_sim.runtime.record.notes import note
from chinchilla_sim.runtime.saved.checkpoint_reader import read_metadata, read_pieces, read_tensors, saved_kinds
from chinchilla_sim.runtime.saved.parts import parts_of
from chinchilla_sim.runtime.saved.pieces import Piece
from chinchilla_sim.runtime.saved.rank_state import (
    RUN_FACTS,
    exchange_tensors,
    losses_key,
    make_optimizer_state,
    plan_digest,
    random_states,
    replica_tensors,
    set_random_states,
    unpack,
    weight_key,
)

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

    from chinchilla_sim.runtime.rank.training import RankRun

_NEW_NUMBERS = 1_000_003


@dataclass(frozen=True)
class Position:
    """Where a run goes on: the epoch, how many of its steps are done, and the seconds that they took."""

    epoch: int = 0
    step_of_epoch: int = 0
    epoch_s: float = 0.0
    random: Mapping[str, Tensor] | None = None


def take_up(run: RankRun) -> Position:
    """Bring a run to where its newest whole checkpoint is; the beginning where there is none. All ranks call it at the same time."""
    choice: list[Any] = [_choose(run.folder) if run.seat.process == 0 else None]
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return Position()
    return _load(run, Path(choice[0]))


def _choose(folder: Path) -> str | None:
    own = folder / FOLDER
    path, wrong = newest_whole(own)
    set_aside(own, path)
    if path is None and (folder / RESUME_FILE).exists():
        path, more = newest_whole(Path(json.loads((folder / RESUME_FILE).read_text())["checkpoints"]))
        wrong += more
    for reason in wrong:
        note(folder, f"WARNING: a checkpoint is passed over: {reason}; {f'{path.name} is used' if path else 'the run begins anew'}")
    return str(path) if path else None


def _load(run: RankRun, path: Path) -> Position:
    check_job(path, run.spec)
    metadata = read_metadata(path)
    saved = saved_kinds(metadata)
    facts = unpack(read_tensors(path, metadata, [RUN_FACTS])[RUN_FACTS])
    if run.spec.epochs <= facts["epoch"]:
        raise RunError(f"{path} is of epoch {facts['epoch'] + 1}, and the job has {run.spec.epochs}: raise job.epochs to go on")
    _load_parts(run, path, metadata)
    same = facts["plan"] == plan_digest(run.plan)
    run.first_step = facts["steps"]
    *run.epoch_s, epoch_s = facts["epoch_s"]
    run.metrics, run.lines = facts["metrics"], facts["lines"]
    run.losses = _losses(run, path, metadata, facts["loss_processes"], same)
    position = Position(facts["epoch"], facts["step_of_epoch"], epoch_s)
    if same:
        gradients = run.interpreter.gradients
        own = [*exchange_tensors(run.seat, gradients), *replica_tensors(run.seat, gradients), *random_states(run.seat, run.device)]
        tensors = read_tensors(path, metadata, [key for key in own if key in saved])
        _load_exchanges(run, tensors)
        position = Position(position.epoch, position.step_of_epoch, epoch_s, tensors)
    else:
        # Lanes of a rank draw alike.
        torch.manual_seed((run.spec.seed + run.seat.rank + _NEW_NUMBERS * run.first_step) % 2**63)
    if run.seat.process == 0:
        kinds = {"/exchange/": "what gradient codecs had not sent yet", "/replica/": "what replicas had each of their own"}
        note(run.folder, _story(path, run.first_step, same, [words for kind, words in kinds.items() if any(kind in key for key in saved)]))
    return position


def _load_parts(run: RankRun, path: Path, metadata: Metadata) -> None:
    """Fill weights and the optimizers' state; all ranks at the same time."""
    saved, parts = saved_kinds(metadata), parts_of(run.plan, run.stages, run.updates, run.names)
    weights = [(weight_key(part), part.piece(part.values)) for part in parts]
    _check_shapes(path, {key: piece.shape for key, piece in weights}, saved)
    for pieces in _without_twins([*weights, *make_optimizer_state(parts, run.optimizers, saved)]):
        read_pieces(path, metadata, pieces)
    for update in run.updates.values():
        update.spread()
        if update.agreement:
            update.agreement.restart()


def restore_random(run: RankRun, position: Position) -> None:
    """Let generators go on where they were when the checkpoint was made; called once the step's data is there."""
    if position.random:
        set_random_states(run.seat, position.random, run.device)


def _check_shapes(path: Path, wanted: Mapping[str, tuple[int, ...]], saved: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
    wrong = [key for key, shape in wanted.items() if key not in saved or tuple(saved[key][0]) != shape]
    if wrong:
        names = ", ".join(key.removeprefix("model/") for key in wrong[:5])
        raise RunError(f"{path} is of another model: it has no {names} of this one's shape; resume with the model that it was made of")


def _without_twins(pieces: Iterable[tuple[str, Piece]]) -> list[dict[str, Piece]]:
    """The pieces in as few dictionaries as hold them all: stages of one rank may have the same weight's state each."""
    rounds: list[dict[str, Piece]] = []
    for key, piece in pieces:
        free = next((one for one in rounds if key not in one), None)
        if free is None:
            rounds.append(free := {})
        free[key] = piece
    return rounds


def _losses(run: RankRun, path: Path, metadata: Any, processes: list[int], same: bool) -> list[float]:
    """This rank's part of the losses so far; under another plan the first of its kind gets the sums."""
    if not run.interpreter.last:
        return []
    own = run.seat.process
    if same:
        key = losses_key(own)
        return [float(loss) for loss in read_tensors(path, metadata, [key])[key].tolist()]
    parts = read_tensors(path, metadata, [losses_key(process) for process in processes])
    sums = [sum(losses) for losses in zip(*(part.tolist() for part in parts.values()), strict=True)]
    return sums if own == run.loss_processes[0] else [0.0] * len(sums)


def _load_exchanges(run: RankRun, tensors: Mapping[str, Tensor]) -> None:
    for number, stage in run.interpreter.gradients.items():
        for bucket, exchange in enumerate(stage.buckets):
            prefix = f"rank/{run.seat.process}/exchange/{number}/{bucket}/"
            state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            if state:
                exchange.load_state_dict(state)
        prefix = f"rank/{run.seat.process}/replica/{number}/"
        stage.load_state({key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)})


def _story(path: Path, steps: int, same: bool, own: Sequence[str]) -> str:
    if same:
        return f"resumed from {path.name}: {steps} steps are done"
    lost = f", and {' and '.join(own)} is dropped" if own else ""
    return f"resumed from {path.name} with another plan: {steps} steps are done; random numbers are drawn anew{lost}"
