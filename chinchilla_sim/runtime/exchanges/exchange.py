"""The exchange of one bucket of gradients among the replicas of a stage: pack, one or two collectives, unpack.

Nothing runs in callbacks: every rank issues the collectives of its buckets in the order of its program, and a second round (low-rank)
where it comes to `advance` or `finish`. So several buckets may be outstanding at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chinchilla_sim.cost.codec import exchange_kind
from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.exchanges.codecs import SCALE_BYTES
from chinchilla_sim.runtime.exchanges.gradient_codecs import BucketCodec, Int8Codec, OneBitCodec, SideBySide, SumCodec, TopCodec
from chinchilla_sim.runtime.exchanges.low_rank import LowRankCodec
from chinchilla_sim.runtime.exchanges.posted import PostedExchange

_PACKED = {"int8": Int8Codec, "one-bit": OneBitCodec, "top-k": TopCodec, "low-rank": LowRankCodec}


def bucket_codec(codec: str, parameters: Sequence[nn.Parameter], apart: Sequence[nn.Parameter] = ()) -> BucketCodec | SideBySide:
    """The codec of a bucket by its name in a plan; parameters of `apart` are packed for themselves where the codec mixes values.

    All lanes of a tensor-parallel rank hold them whole: packed beside a lane's own parts, they would lose different values on each.
    """
    if exchange_kind(codec) == "all_gather":
        ids = set(map(id, apart))
        places = [[place for place, one in enumerate(parameters) if (id(one) in ids) == whole] for whole in (False, True)]
        if all(places):
            return SideBySide([_codec(codec, [parameters[place] for place in row]) for row in places], places)
    return _codec(codec, parameters)


def _codec(codec: str, parameters: Sequence[nn.Parameter]) -> BucketCodec:
    return _PACKED[codec](parameters) if codec in _PACKED else SumCodec(codec, parameters)


class BucketExchange:
    """One bucket: `encode`, `issue`, then `finish`, once a step; all gradients are sums over the replicas then.

    In a group of one nothing travels, but the codec does to the gradients what it does among many.
    """

    def __init__(
        self,
        codec: str,
        parameters: Sequence[nn.Parameter],
        group: Any,
        group_size: int,
        tag: int = 0,
        apart: Sequence[nn.Parameter] = (),
    ) -> None:
        """`group` is the process group of the replicas (None: the default one), `group_size` how many they are.

        `tag` tells the exchange from others among the same ranks; for `apart` see `bucket_codec`.
        """
        self.parameters = list(parameters)
        self.group, self.group_size = group, group_size
        self.kind = exchange_kind(codec)
        self._codec = bucket_codec(codec, self.parameters, apart) if self.parameters else None
        payloads = self._codec.payloads if self._codec else []
        self.round_bytes = tuple(payload.numel() * payload.element_size() for payload in payloads)
        """Payload of each round."""
        self._received: list[Tensor] = []
        if self.kind == "all_gather" and payloads:
            self._received = _rows(payloads[0], group_size)
        self._gather = PostedExchange(self._received, group, tag) if self._received and group_size > 1 else None
        self._issued = 0
        self._work: Any = None

    @property
    def round_wire_bytes(self) -> tuple[float, ...]:
        """Bytes that this rank puts on the wire in each round, without headers."""
        return tuple(sent_bytes(self.kind, size, self.group_size) for size in self.round_bytes)

    @property
    def wire_bytes(self) -> float:
        """The same of all rounds."""
        return sum(self.round_wire_bytes)

    @property
    def twice(self) -> bool:
        """Whether a second round follows."""
        return len(self.round_bytes) > 1

    @property
    def payload(self) -> Tensor:
        """What `encode` has packed and `issue` sends; what a second round sends follows from it and the state."""
        assert self._codec
        return self._codec.payloads[0]

    @property
    def buffers(self) -> list[Tensor]:
        """What is kept from step to step."""
        return [*(self._codec.buffers if self._codec else ()), *self._received]

    def begin(self) -> None:
        """Be ready for what the others will send in this step."""
        if self._gather:
            self._gather.post()

    def encode(self) -> None:
        """Pack the parameters' gradients (zeros where one has none), with what earlier steps did not send; they are freed."""
        if self._codec:
            self._codec.pack()
        for parameter in self.parameters:
            parameter.grad = None
        self._issued = 0

    def issue(self) -> None:
        """Start the first collective."""
        if not self._codec:
            return
        payload = self._codec.payloads[self._issued]
        self._issued += 1
        if self.kind == "all_reduce":
            if self.group_size > 1:
                self._work = dist.all_reduce(payload, group=self.group, async_op=True)
        elif self._gather:
            self._gather.gather(payload)
        else:
            self._received[0].copy_(payload)

    def wait(self) -> None:
        """Wait for what was issued."""
        if self._gather:
            self._gather.wait()
        if self._work is not None:
            self._work.wait()
            self._work = None

    def advance(self) -> None:
        """Wait for the first collective, and start the second of a codec that has two.

        Called for all buckets before any is finished, it lets their second rounds travel together.
        """
        self.wait()
        if self._codec and self._issued < len(self.round_bytes):
            self._codec.prepare_second()
            self.issue()

    def finish(self) -> None:
        """Wait, unpack, and let every parameter's gradient be the sum over the replicas."""
        if not self._codec:
            return
        self.advance()
        self.wait()
        self._codec.unpack(self._received or self._codec.payloads[:1])
        for parameter, gradient in zip(self._codec.parameters, self._codec.gradients, strict=True):
            parameter.grad = gradient

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step needs beside weights: "residual.I" like parameter I of the bucket, "q.I" (rank x columns) of low-rank.

        Residuals are each rank's own: the sum over the replicas is what the group has not sent yet. Q is the same on all.
        """
        return self._codec.state() if self._codec else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave, of a bucket with the same parameters and codec."""
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state)) or sorted(name for name, tensor in own.items() if tensor.shape != state[name].shape)
        if wrong:
            raise RunError(f"state of a gradient bucket: {', '.join(wrong)} do not fit its parameters and codec; start without residuals")
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _rows(payload: Tensor, count: int) -> list[Tensor]:
    """Buffers like a payload of bytes; each starts at a multiple of four, so that it is unpacked where it lies (`codecs.aligned`)."""
    rows = torch.zeros(count, -(-len(payload) // SCALE_BYTES) * SCALE_BYTES, dtype=payload.dtype, device=payload.device)
    return [row[: len(payload)] for row in rows]
