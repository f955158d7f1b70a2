"""What a rank must keep to go on later: weights and optimizer by the model's own names, and what is its own.

    model/<name>                          parameters (in half precision their fp32 masters) and buffers
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
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.groups import Seat
from chinchilla_sim.runtime.program.gradients import StageGradients
from chinchilla_sim.runtime.saved.parts import Part
from chinchilla_sim.runtime.saved.pieces import Piece, piece_of

RUN_FACTS = "run/facts"
COUNTERS = ("step",)
"""What optimizers keep once for a whole weight, not for each of its values."""


def plan_digest(plan: Plan) -> str:
    """The same for equal plans only."""
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()


def weight_key(part: Part) -> str:
    """Where a weight or buffer is kept."""
    return f"model/{part.name}"


def model_pieces(plan: Plan, seat: Seat, parts: Sequence[Part]) -> dict[str, Piece]:
    """A rank's weights and buffers, as far as no process before it holds them."""
    return {weight_key(part): part.piece(part.values) for part in parts if part.is_first(plan, seat)}


def optimizer_pieces(plan: Plan, seat: Seat, parts: Sequence[Part], optimizers: Mapping[int, torch.optim.Optimizer]) -> dict[str, Piece]:
    """The same of what the optimizers keep."""
    found: dict[str, Piece] = {}
    for part, state in _states(parts, optimizers):
        for key, value in state.items():
            if isinstance(value, Tensor) and part.is_first(plan, seat, whole=key in COUNTERS):
                found[f"optimizer/{part.name}/{key}"] = piece_of(value) if key in COUNTERS else part.piece(value)
    return found


def make_optimizer_state(
    parts: Sequence[Part], optimizers: Mapping[int, torch.optim.Optimizer], saved: Mapping[str, tuple[torch.Size, torch.dtype]]
) -> Iterator[tuple[str, Piece]]:
    """Give the optimizers state of the names and kinds that were saved; whoever reads it fills the pieces in."""
    keys: dict[str, list[str]] = {}
    for full in saved:
        if full.startswith("optimizer/"):
            name, _, key = full.removeprefix("optimizer/").rpartition("/")
            keys.setdefault(name, []).append(key)
    for part, state in _states(parts, optimizers):
        for key in keys.get(part.name, ()):
            size, dtype = saved[f"optimizer/{part.name}/{key}"]
            state[key] = torch.zeros(size if key in COUNTERS else part.values.shape, dtype=dtype, device=part.values.device)
            yield f"optimizer/{part.name}/{key}", piece_of(state[key]) if key in COUNTERS else part.piece(state[key])


def _states(parts: Sequence[Part], optimizers: Mapping[int, torch.optim.Optimizer]) -> Iterator[tuple[Part, dict[str, Any]]]:
    """What the optimizers keep of the parts that they update."""
    for number, optimizer in optimizers.items():
        updated = {id(master) for group in optimizer.param_groups for master in group["params"]}
        for part in parts:
            if part.stage.number == number and id(part.values) in updated:
                yield part, optimizer.state[part.values]


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
