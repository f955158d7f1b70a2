"""What a rank holds of the model's weights and buffers: by the model's own names, and where in the whole tensors it lies.

Three things divide a weight: lanes (tensor parallelism) hold parts of it, replicas flat pieces of those (ZeRO 1, 2) or rows of it
(ZeRO 3, FSDP2). Whatever the plan, a part is told as boxes of the whole tensor; so any plan reads what any other has saved. Of a weight
that is computed with in half precision the fp32 master is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.groups import Seat
from chinchilla_sim.runtime.program.updates import StageUpdate
from chinchilla_sim.runtime.saved.pieces import Piece, block_of, piece_of, range_of, shard_of
from chinchilla_sim.runtime.stage.stages import Stage


@dataclass(frozen=True)
class Part:
    """A weight or buffer of a stage: `name` in the model, `path` in the stage's modules.

    `values` is what is kept of it, of a trained weight what the optimizer updates: all of the stage's `tensor`, this replica's rows of
    it, or, from the `start`-th value on, a flat piece. Whoever is not the `owner` has the same as an earlier stage.
    """

    name: str
    path: str
    stage: Stage
    tensor: Tensor
    values: Tensor
    start: int | None = None
    owner: bool = True

    def piece(self, values: Tensor) -> Piece:
        """Values that lie as the part's own do, as a piece of the model's tensor."""
        if isinstance(self.tensor, DTensor):
            piece = shard_of(self.tensor, values)
        else:
            piece = piece_of(values) if self.start is None else range_of(self.tensor.shape, self.start, values)
        block = self.stage.divider.block_of(self.path) if self.stage.divider else None
        return block_of(piece, *block) if block else piece

    def is_first(self, plan: Plan, seat: Seat, whole: bool = False) -> bool:
        """Whether no process before this one holds the same values; of `whole` ones, all of the stage do."""
        over_lanes = not whole and self.stage.divider is not None and self.stage.divider.block_of(self.path) is not None
        over_replicas = not whole and (self.start is not None or isinstance(self.tensor, DTensor))
        first_replica = plan.placement[self.stage.number][0] == seat.rank
        return self.owner and (over_lanes or seat.lane == 0) and (over_replicas or first_replica)


def first_names(model: nn.Module) -> dict[str, str]:
    """Every path of a weight or buffer -> the first one of the same tensor: a tied weight has one name."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {path: first.setdefault(id(tensor), path) for path, tensor in tensors}


def parts_of(plan: Plan, stages: Sequence[Stage], updates: Mapping[int, StageUpdate], names: Mapping[str, str]) -> list[Part]:
    """All parts of a rank; `names` are the model's (`first_names`)."""
    return [part for stage in stages for part in _of_stage(plan, stage, updates[stage.number], names)]


def _of_stage(plan: Plan, stage: Stage, update: StageUpdate, names: Mapping[str, str]) -> Iterator[Part]:
    paths = stage.paths()
    earlier = {one for number, shared in stage.shared.items() if plan.shared_stages[number][0] < stage.number for one in shared}
    trained: set[str] = set()
    for parameter, master, start in zip(update.parameters, update.masters, update.starts, strict=True):
        path = paths[parameter]
        name = names.get(path, path)
        trained.add(name)
        yield Part(name, path, stage, parameter, master, start, owner=parameter not in earlier)
    for path, tensor in stage.state().items():
        name = names.get(path, path)
        if name not in trained:
            yield Part(name, path, stage, tensor, tensor)
