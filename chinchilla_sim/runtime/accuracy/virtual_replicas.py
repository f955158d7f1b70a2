"""Data-parallel replicas in one process: their gradients go through the codecs that they would go through on the wire.

Every virtual replica has a codec of its own (and its residual); what collectives would do to the payloads is done here, in the order
of ranks. So a run of one process has the gradients that real ranks would get, up to the order in which fp32 sums are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from chinchilla_sim.cost.codec import exchange_kind
from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.runtime.exchanges.exchange import bucket_codec


class VirtualExchange:
    """The exchange of all gradients in one bucket: `pack` for every replica in turn, then `finish`."""

    def __init__(self, codec: str, parameters: Sequence[nn.Parameter], replicas: int) -> None:
        self.kind, self.parameters = exchange_kind(codec), list(parameters)
        self.codecs = [bucket_codec(codec, self.parameters) for _ in range(replicas)]

    @property
    def wire_bytes(self) -> float:
        """What one rank would send in a step."""
        payloads = self.codecs[0].payloads
        return sum(sent_bytes(self.kind, one.numel() * one.element_size(), len(self.codecs)) for one in payloads)

    def pack(self, replica: int) -> None:
        """Take the parameters' gradients as those of a replica, and forget them."""
        self.codecs[replica].pack()
        for parameter in self.parameters:
            parameter.grad = None

    def finish(self) -> None:
        """Let every parameter's gradient be the sum over the replicas."""
        if self.kind == "all_reduce":
            for number in range(len(self.codecs[0].payloads)):
                self._reduce(number)
        for codec in self.codecs:
            codec.unpack([one.payloads[0] for one in self.codecs] if self.kind == "all_gather" else codec.payloads[:1])
        own = self.codecs[0]
        for parameter, gradient in zip(own.parameters, own.gradients, strict=True):
            parameter.grad = gradient

    def _reduce(self, number: int) -> None:
        """Let one round's payload be its sum in every codec, as an all-reduce does."""
        if number:
            for codec in self.codecs:
                codec.prepare_second()
        total = self.codecs[0].payloads[number].clone()
        for codec in self.codecs[1:]:
            total += codec.payloads[number]
        for codec in self.codecs:
            with torch.no_grad():
                codec.payloads[number].copy_(total)
