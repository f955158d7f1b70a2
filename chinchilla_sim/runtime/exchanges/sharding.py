"""ZeRO 1 and 2: every replica updates its piece of each weight; gradients meet at their owner, new weights are gathered.

Each parameter is cut into as many flat pieces of equal length as there are replicas (the last one padded), so that replica d owns the
same piece of a weight in every stage that trains it. A buffer of several parameters has one row per replica: its pieces of all of them.

gloo's own reduce-scatter is an all-reduce whose result is cut afterwards, and sends 2 (n-1)/n of the buffer. Here every row goes straight
to its owner, who adds up what arrives: (n-1)/n, the bytes of a true reduce-scatter, and sums of half-precision values in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from chinchilla_sim.cost.codec import exchange_kind
from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.runtime.exchanges.codecs import decode, encode
from chinchilla_sim.runtime.exchanges.exchange import BucketExchange
from chinchilla_sim.runtime.exchanges.posted import PostedExchange


class Pieces:
    """How some parameters are divided over `count` replicas."""

    def __init__(self, parameters: Sequence[Tensor], count: int) -> None:
        self.parameters, self.count = list(parameters), count
        self.lengths = [-(-parameter.numel() // count) for parameter in parameters]

    @property
    def row_length(self) -> int:
        """Values of one replica."""
        return sum(self.lengths)

    def rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """(replica, value): tensors shaped like the parameters, each replica's pieces in a row."""
        return torch.cat([self._cut(tensor) for tensor in tensors], dim=1)

    def own(self, tensors: Sequence[Tensor], place: int) -> list[Tensor]:
        """The pieces of one replica, without what fills them up: views."""
        pairs = zip(tensors, self.lengths, strict=True)
        return [tensor.detach().reshape(-1)[place * length : (place + 1) * length] for tensor, length in pairs]

    def starts(self, place: int) -> list[int]:
        """How many values of each parameter lie before one replica's piece."""
        return [min(place * length, parameter.numel()) for parameter, length in zip(self.parameters, self.lengths, strict=True)]

    def split(self, row: Tensor, place: int) -> list[Tensor]:
        """A replica's row as its pieces: views."""
        counts = [own.numel() for own in self.own(self.parameters, place)]
        return [piece[:count] for piece, count in zip(torch.split(row, self.lengths), counts, strict=True)]

    def row(self, pieces: Sequence[Tensor]) -> Tensor:
        """Pieces of one replica as its row."""
        pairs = zip(pieces, self.lengths, strict=True)
        return torch.cat([pad(piece.detach(), (0, length - piece.numel())) for piece, length in pairs])

    def spread(self, rows: Tensor) -> None:
        """Write the pieces of all replicas into the parameters."""
        for parameter, piece in zip(self.parameters, torch.split(rows, self.lengths, dim=1), strict=True):
            parameter.detach().copy_(piece.reshape(-1)[: parameter.numel()].view_as(parameter))

    def _cut(self, tensor: Tensor) -> Tensor:
        flat, missing = tensor.detach().reshape(-1), -tensor.numel() % self.count
        return (pad(flat, (0, missing)) if missing else flat).view(self.count, -1)


class ShardExchange:
    """Exchange of one bucket that leaves each replica the sum of its own pieces; used as `BucketExchange` is."""

    def __init__(
        self,
        codec: str,
        parameters: Sequence[nn.Parameter],
        masters: Sequence[nn.Parameter],
        group: Any,
        count: int,
        place: int,
        tag: int = 0,
        apart: Sequence[nn.Parameter] = (),
    ) -> None:
        self.codec, self.parameters, self.masters = codec, list(parameters), list(masters)
        self.group, self.count, self.place = group, count, place
        self.pieces = Pieces(self.parameters, count)
        self.tag = tag
        # What cannot be summed on its way, or is needed whole to be unpacked, arrives whole everywhere.
        self.whole = None if exchange_kind(codec, 1) == "reduce_scatter" else BucketExchange(codec, parameters, group, count, tag, apart)
        self._payload = self._arriving = torch.zeros(0)
        self._under_way: PostedExchange | None = None

    @property
    def wire_bytes(self) -> float:
        """Bytes that this rank sends."""
        if self.whole:
            return self.whole.wire_bytes
        value_bytes = encode(self.codec, torch.zeros(1, dtype=self.parameters[0].dtype)).element_size() if self.parameters else 0
        return sent_bytes("reduce_scatter", self.pieces.row_length * self.count * value_bytes, self.count)

    @property
    def round_wire_bytes(self) -> tuple[float, ...]:
        """The same by round."""
        return self.whole.round_wire_bytes if self.whole else (self.wire_bytes,)

    @property
    def twice(self) -> bool:
        """Whether a second round follows."""
        return bool(self.whole and self.whole.twice)

    def advance(self) -> None:
        """Wait for the first round, and start the second where there is one."""
        if self.whole:
            self.whole.advance()
        else:
            self.wait()

    @property
    def buffers(self) -> list[Tensor]:
        """What is kept from step to step."""
        return self.whole.buffers if self.whole else []

    def begin(self) -> None:
        """Be ready for what the others will send in this step."""
        if self.whole:
            self.whole.begin()

    def encode(self) -> None:
        """Pack the gradients, which are freed."""
        if self.whole:
            self.whole.encode()
            return
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.parameters]
        self._payload = encode(self.codec, self.pieces.rows(gradients))
        for parameter in self.parameters:
            parameter.grad = None

    def issue(self) -> None:
        """Send every replica its pieces."""
        if self.whole:
            self.whole.issue()
            return
        self._arriving = torch.empty_like(self._payload)
        self._under_way = PostedExchange(self._arriving.view(self.count, -1).unbind(), self.group, self.tag)
        self._under_way.scatter(self._payload.view(self.count, -1).unbind())

    def wait(self) -> None:
        """Wait until all of it is here."""
        if self.whole:
            self.whole.wait()
        elif self._under_way:
            self._under_way.wait()
            self._under_way, self._payload = None, torch.zeros(0)

    def finish(self) -> None:
        """Let the masters' gradients be the sums of the own pieces."""
        self.wait()
        if self.whole:
            self.whole.finish()
            sums = self.pieces.own([_gradient_of(one) for one in self.parameters], self.place)
            for parameter in self.parameters:
                parameter.grad = None
        else:
            rows = decode(self.codec, self._arriving, self._arriving.numel()).view(self.count, -1)
            sums = self.pieces.split(rows.sum(0, dtype=torch.float32), self.place)
            self._arriving = torch.zeros(0)
        for master, gradient in zip(self.masters, sums, strict=True):
            master.grad = gradient.to(master.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """What earlier steps did not send."""
        return self.whole.state_dict() if self.whole else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        if self.whole:
            self.whole.load_state_dict(state)


class WeightGather:
    """The all-gather of updated pieces."""

    def __init__(self, pieces: Pieces, masters: Sequence[nn.Parameter], group: Any, tag: int) -> None:
        self.pieces, self.masters, self.group, self.tag = pieces, list(masters), group, tag
        self.dtype = pieces.parameters[0].dtype
        self._rows = torch.zeros(0)
        self._under_way: PostedExchange | None = None

    @property
    def wire_bytes(self) -> float:
        """Bytes that this rank sends."""
        return sent_bytes("all_gather", self.pieces.row_length * self.dtype.itemsize, self.pieces.count)

    def issue(self) -> None:
        """Send the own pieces to all."""
        row = self.pieces.row(self.masters).to(self.dtype)
        self._rows = torch.empty(self.pieces.count, row.numel(), dtype=self.dtype, device=row.device)
        self._under_way = PostedExchange(self._rows.unbind(), self.group, self.tag)
        self._under_way.gather(row)

    def wait(self) -> bool:
        """Wait for those of the others; whether there was anything to wait for."""
        if self._under_way is None:
            return False
        self._under_way.wait()
        self._under_way = None
        return True

    def finish(self) -> None:
        """Write the weights."""
        self.pieces.spread(self._rows)
        self._rows = torch.zeros(0)


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
