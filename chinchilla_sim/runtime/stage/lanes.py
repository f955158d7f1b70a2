"""Tensor parallelism between the processes of one rank: collectives inside its passes, and whole weights from the parts of all.

A lane is a process of a rank's group. What it computes with are plain tensors, its parts of the model's: DTensor's dispatch costs
about 50 us of the host per operator forward and backward, six times a small operator (measured on a CPU).

    sum of parts         all-reduce forward, identity backward     `add_up`
    whole input of parts identity forward, all-reduce backward     `enter`
    parts made whole     all-gather forward, own part backward     `gather`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.graph.layout import Layout, block
from chinchilla_sim.runtime.exchanges.codecs import TensorSpec

Direction = str
"""F or B: the pass in which a collective runs."""


class Lanes:
    """The group of one rank's processes, and how often which collective of a pass has run with how many bytes of payload."""

    def __init__(self, group: Any, degree: int, lane: int) -> None:
        self.group, self.degree, self.lane = group, degree, lane
        self.counts: Counter[tuple[Direction, str, int]] = Counter()
        self._waited_s = self._sent_bytes = 0.0

    def take_waited(self) -> tuple[float, float]:
        """Seconds in collectives, and bytes that this lane sent in those of passes, since this was asked last."""
        waited = self._waited_s, self._sent_bytes
        self._waited_s = self._sent_bytes = 0.0
        return waited

    def _count(self, direction: Direction, kind: str, payload: Tensor) -> None:
        payload_bytes = payload.numel() * payload.element_size()
        self.counts[direction, kind, payload_bytes] += 1
        self._sent_bytes += sent_bytes(kind, payload_bytes, self.degree)

    def _run(self, collective: Callable[..., Any], *tensors: Any) -> None:
        start_s = monotonic()
        collective(*tensors, group=self.group)
        self._waited_s += monotonic() - start_s

    def all_reduce(self, tensor: Tensor, direction: Direction) -> Tensor:
        """The sum over the lanes, in a tensor of its own."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._count(direction, "all_reduce", total)
        self._run(dist.all_reduce, total)
        return total

    def all_gather(self, tensor: Tensor, layout: Layout, size: int, direction: Direction) -> Tensor:
        """The whole tensor, whose divided dimension has `size`, in a pass."""
        own = self._filled(tensor, layout, size)
        self._count(direction, "all_gather", own)
        return self._joined(own, layout, size)

    def join(self, tensor: Tensor, layout: Layout, size: int) -> Tensor:
        """The same outside of passes, which nobody counts."""
        whole = self._joined(self._filled(tensor, layout, size), layout, size)
        self._waited_s = 0.0
        return whole

    def _filled(self, tensor: Tensor, layout: Layout, size: int) -> Tensor:
        """This lane's part, its divided dimension as two, with as many values as the largest part."""
        own = in_parts(tensor.detach(), layout)
        each = -(-size // layout.parts // self.degree)
        dim, lacking = layout.dim + 1, each - own.shape[layout.dim + 1]
        if lacking:
            shape = list(own.shape)
            shape[dim] = lacking
            own = torch.cat([own, own.new_zeros(shape)], dim)
        return own.contiguous()

    def _joined(self, own: Tensor, layout: Layout, size: int) -> Tensor:
        dim = layout.dim + 1
        pieces = [torch.empty_like(own) for _ in range(self.degree)]
        self._run(dist.all_gather, pieces, own)
        whole = torch.cat(pieces, dim).narrow(dim, 0, size // layout.parts)
        return whole.flatten(layout.dim, dim)

    def all_gather_bytes(self, payload: Tensor, direction: Direction) -> list[Tensor]:
        """What all lanes have, each the same number of bytes."""
        pieces = [torch.empty_like(payload) for _ in range(self.degree)]
        self._count(direction, "all_gather", payload)
        self._run(dist.all_gather, pieces, payload.contiguous())
        return pieces

    def part(self, tensor: Tensor, layout: Layout) -> Tensor:
        """This lane's part of a whole tensor."""
        parts = in_parts(tensor, layout)
        start, end = block(tensor.shape[layout.dim] // layout.parts, self.degree, self.lane)
        return parts.narrow(layout.dim + 1, start, end - start).flatten(layout.dim, layout.dim + 1)


def in_parts(tensor: Tensor, layout: Layout) -> Tensor:
    """The divided dimension as two: parts, and what each has."""
    shape = (*tensor.shape[: layout.dim], layout.parts, tensor.shape[layout.dim] // layout.parts, *tensor.shape[layout.dim + 1 :])
    return tensor.reshape(shape)


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, lanes: Lanes) -> Tensor:
        return lanes.all_reduce(tensor, "F")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, lanes: Lanes) -> Tensor:
        ctx.lanes = lanes
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.lanes.all_reduce(gradient, "B"), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, lanes: Lanes, layout: Layout, size: int) -> Tensor:
        ctx.lanes, ctx.layout = lanes, layout
        return lanes.all_gather(tensor, layout, size, "F")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.lanes.part(gradient, ctx.layout), None, None, None


def add_up(tensor: Tensor, lanes: Lanes) -> Tensor:
    """The sum of the lanes' parts of a sum."""
    return _AddUp.apply(tensor, lanes)  # type: ignore[no-any-return, no-untyped-call]


def enter(tensor: Tensor, lanes: Lanes) -> Tensor:
    """The same tensor, of whose gradient each lane makes a part of the sum."""
    return _Enter.apply(tensor, lanes)  # type: ignore[no-any-return, no-untyped-call]


def gather(tensor: Tensor, lanes: Lanes, layout: Layout, size: int) -> Tensor:
    """The whole tensor on every lane."""
    return _Gather.apply(tensor, lanes, layout, size)  # type: ignore[no-any-return, no-untyped-call]


def own_rows(indices: Tensor, start: int, end: int) -> Tensor:
    """Indices into a lane's rows of a table; those of other lanes point anywhere."""
    return (indices - start).clamp(0, end - start - 1)


def without_foreign(rows: Tensor, indices: Tensor, start: int, end: int) -> Tensor:
    """Rows that were looked up, with zeros for those of other lanes."""
    return rows.masked_fill(((indices < start) | (indices >= end)).unsqueeze(-1), 0.0)


def apart(operator: Callable[..., Any], lanes: Lanes) -> Callable[..., Any]:
    """An operator on parts that draws random numbers: each lane draws its own.

    The seed is drawn from the generator that all lanes share, which so stays the same on all, also when the pass is run again.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        seed = int(torch.randint(2**62, ()))
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed + lanes.lane)
            return operator(*args, **kwargs)

    call.tags = getattr(operator, "tags", [])  # type: ignore[attr-defined]
    return call


class LaneShares:
    """What each lane sends of the tensors of a message: its part of divided ones, and an equal share of whole ones."""

    def __init__(self, specs: Sequence[TensorSpec], divided: Sequence[bool], lanes: Lanes | None) -> None:
        self.whole, self.lanes = specs, lanes
        self.shared = [not own and lanes is not None for own in divided or [False] * len(specs)]
        self.specs = [self._share_of(spec) if shared else spec for spec, shared in zip(specs, self.shared, strict=True)]

    def _share_of(self, spec: TensorSpec) -> TensorSpec:
        """Rows where they can be dealt out evenly, else values, filled up."""
        assert self.lanes is not None
        rows = spec.count // spec.shape[-1] if spec.shape and spec.shape[-1] else 0
        if rows and rows % self.lanes.degree == 0:
            return TensorSpec((rows // self.lanes.degree, spec.shape[-1]), spec.dtype)
        return TensorSpec((-(-spec.count // self.lanes.degree),), spec.dtype)

    def take(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """This lane's shares."""
        rows = zip(tensors, self.specs, self.shared, strict=True)
        return [self._take(tensor, spec) if shared else tensor for tensor, spec, shared in rows]

    def _take(self, tensor: Tensor, spec: TensorSpec) -> Tensor:
        assert self.lanes is not None
        flat, start = tensor.detach().reshape(-1), self.lanes.lane * spec.count
        own = flat[start : start + spec.count]
        return (torch.cat([own, own.new_zeros(spec.count - own.numel())]) if own.numel() < spec.count else own).view(spec.shape)

    def join(self, shares: Sequence[Tensor], direction: Direction) -> list[Tensor]:
        """The tensors of all lanes' shares: one all-gather of what was shared."""
        own = [share.reshape(-1).view(torch.uint8) for share, shared in zip(shares, self.shared, strict=True) if shared]
        if self.lanes is None or not own:
            return list(shares)
        pieces = self.lanes.all_gather_bytes(torch.cat(own) if len(own) > 1 else own[0], direction)
        found, start = [], 0
        for share, spec, shared in zip(shares, self.whole, self.shared, strict=True):
            size = share.numel() * share.element_size() if shared else 0
            parts = [piece[start : start + size] for piece in pieces]
            found.append(torch.cat(parts).view(spec.dtype)[: spec.count].view(spec.shape) if shared else share)
            start += size
        return found
