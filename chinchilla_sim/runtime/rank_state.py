"""What a rank must keep to go on later: weights and optimizer by the model's own names, and what is its own.

    model/<name>                          parameters and buffers
    optimizer/<name>/<key>                what the optimizer keeps of a parameter
    rank/<process>/exchange/<stage>/<bucket>/<key>   residuals of gradient codecs
    rank/<process>/replica/<stage>/<key>             what this replica alone has: late gradients, or its own optimizer's state
    rank/<process>/random, /losses, /facts           generators of random numbers, its part of the losses, the rest as JSON
    run/facts                             where the run stands, as JSON

Everything is a tensor: JSON is a tensor of its bytes, so that nothing that is read back is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.gradients import StageGradients
from chinchilla_sim.runtime.groups import Seat
from chinchilla_sim.runtime.pieces import Piece, piece_of, range_of
from chinchilla_sim.runtime.stages import Stage

RUN_FACTS = "run/facts"


def plan_digest(plan: Plan) -> str:
    """The same for equal plans only."""
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()


def model_pieces(plan: Plan, seat: Seat, stages: Sequence[Stage], *, to_save: bool) -> dict[str, Piece]:
    """A rank's weights and buffers; to save, only what no replica before it holds."""
    found: dict[str, Piece] = {}
    for stage in stages:
        pieces = {f"model/{name}": piece_of(tensor) for name, tensor in stage.state().items()}
        found |= {key: piece for key, piece in pieces.items() if not to_save or piece.partial or _is_first(plan, seat, stage.number)}
    return found


def optimizer_pieces(plan: Plan, seat: Seat, stages: Sequence[Stage], optimizers: Mapping[int, torch.optim.Optimizer]) -> dict[str, Piece]:
    """What the optimizers of a rank keep, as far as no replica before it holds it; of a weight that several stages train, the first."""
    found: dict[str, Piece] = {}
    for stage in stages:
        elsewhere = {one for number, shared in stage.shared.items() if plan.shared_stages[number][0] < stage.number for one in shared}
        for trained in _trained(stage, optimizers):
            for key, value in optimizers[stage.number].state.get(trained.master, {}).items():
                if isinstance(value, Tensor) and trained.weight not in elsewhere:
                    piece = trained.piece(value)
                    if piece.partial or _is_first(plan, seat, stage.number):
                        found[f"optimizer/{trained.name}/{key}"] = piece
    return found


def make_optimizer_state(
    stages: Sequence[Stage], optimizers: Mapping[int, torch.optim.Optimizer], saved: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> Iterator[tuple[str, Piece]]:
    """Give the optimizers state of the names and kinds that were saved; whoever reads it fills the pieces in."""
    keys: dict[str, list[str]] = {}
    for full in saved:
        if full.startswith("optimizer/"):
            name, _, key = full.removeprefix("optimizer/").rpartition("/")
            keys.setdefault(name, []).append(key)
    for stage in stages:
        for trained in _trained(stage, optimizers):
            state, master = optimizers[stage.number].state[trained.master], trained.master
            for key in keys.get(trained.name, ()):
                size, dtype = saved[f"optimizer/{trained.name}/{key}"]
                alike = len(size) > 0 and size == trained.weight.shape
                state[key] = torch.zeros(master.shape if alike else size, dtype=dtype, device=master.device)
                yield f"optimizer/{trained.name}/{key}", trained.piece(state[key])


def exchange_tensors(seat: Seat, gradients: Mapping[int, StageGradients]) -> dict[str, Tensor]:
    """What the codecs of a rank's gradients have not sent yet."""
    found: dict[str, Tensor] = {}
    for number, stage in gradients.items():
        for bucket, exchange in enumerate(stage.buckets):
            prefix = f"{_own(seat)}exchange/{number}/{bucket}/"
            found |= {prefix + key: tensor for key, tensor in getattr(exchange, "state_dict", dict)().items()}
    return found


def replica_tensors(seat: Seat, gradients: Mapping[int, StageGradients]) -> dict[str, Tensor]:
    """What the stages of a rank keep for the next steps that other replicas do not."""
    return {f"{_own(seat)}replica/{number}/{key}": tensor for number, stage in gradients.items() for key, tensor in stage.state().items()}


def random_states(seat: Seat, device: torch.device) -> dict[str, Tensor]:
    """States of all generators that a model or its data may draw from."""
    states = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})
    kind, keys, *rest = np.random.get_state(legacy=True)
    states["numpy"] = pack([kind, [int(key) for key in keys], *rest])
    states["python"] = pack(random.getstate())
    return {f"{_own(seat)}random/{name}": tensor for name, tensor in states.items()}


def set_random_states(seat: Seat, states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on drawing where `random_states` was called."""
    prefix = f"{_own(seat)}random/"
    torch.set_rng_state(states[prefix + "cpu"])
    if prefix + "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states[prefix + "cuda"], device)
    kind, keys, *rest = unpack(states[prefix + "numpy"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, numbers, gauss = unpack(states[prefix + "python"])
    random.setstate((version, tuple(numbers), gauss))


def losses_key(process: int) -> str:
    """Where a process keeps its part of the losses."""
    return f"rank/{process}/losses"


def pack(value: Any) -> Tensor:
    """Something JSON-able as a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def unpack(tensor: Tensor) -> Any:
    """Inverse of `pack`."""
    return json.loads(bytes(tensor.tolist()))


def _own(seat: Seat) -> str:
    return f"rank/{seat.process}/"


def _is_first(plan: Plan, seat: Seat, number: int) -> bool:
    return seat.lane == 0 and plan.placement[number][0] == seat.rank


@dataclass(frozen=True)
class _Trained:
    """A weight by the model's own name, what the optimizer updates in its place, and where that lies in the weight.

    Both are the same where a rank holds whole weights; `start` counts the values before a flat piece of one.
    """

    name: str
    weight: nn.Parameter
    master: nn.Parameter
    start: int | None = None

    def piece(self, value: Tensor) -> Piece:
        """A value of the optimizer's state as a part of the whole weight's."""
        if self.start is None or value.dim() == 0:
            return piece_of(value)
        return range_of(self.weight.shape, self.start, value)


def _trained(stage: Stage, optimizers: Mapping[int, torch.optim.Optimizer]) -> Iterator[_Trained]:
    """What the optimizer of a stage updates."""
    if stage.number not in optimizers:
        return
    names = {
        parameter: name
        for segment in reversed(stage.segments)
        for name, parameter in segment.module.named_parameters(remove_duplicate=False)
    }
    for group in optimizers[stage.number].param_groups:
        for parameter in group["params"]:
            yield _Trained(names[parameter], parameter, parameter)
