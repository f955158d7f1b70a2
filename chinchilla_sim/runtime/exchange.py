"""TEMPORARY: replaced by branch codecs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.cost.collective import sent_bytes
from chinchilla_sim.runtime.codecs import decode, encode


class BucketExchange:
    """Exchange of one bucket."""

    def __init__(self, codec: str, parameters: Sequence[nn.Parameter], group: Any, group_size: int) -> None:
        self.codec, self.parameters, self.group, self.group_size = codec, list(parameters), group, group_size
        self.count = sum(p.numel() for p in self.parameters)
        self._work: Any = None
        self._gathered: list[Tensor] = []
        self._bucket = torch.zeros(0)

    def encode(self) -> None:
        grads = [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in self.parameters]
        flat = torch.cat(grads) if grads else torch.zeros(0)
        self._bucket = encode(self.codec, flat)

    @property
    def wire_bytes(self) -> float:
        kind = "all_reduce" if CODECS[self.codec].summable else "all_gather"
        example = encode(self.codec, torch.zeros(self.count)) if self.count else torch.zeros(0)
        return sent_bytes(kind, example.numel() * example.element_size(), self.group_size)

    def issue(self) -> None:
        if not self.count:
            return
        if CODECS[self.codec].summable:
            self._gathered = []
            self._work = dist.all_reduce(self._bucket, group=self.group, async_op=True)
        else:
            self._gathered = [torch.empty_like(self._bucket) for _ in range(self.group_size)]
            self._work = dist.all_gather(self._gathered, self._bucket, group=self.group, async_op=True)

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None

    def finish(self) -> None:
        self.wait()
        if not self.count:
            return
        payloads = self._gathered or [self._bucket]
        total = decode(self.codec, payloads[0], self.count)
        for payload in payloads[1:]:
            total = total.add_(decode(self.codec, payload, self.count))
        start = 0
        for p in self.parameters:
            p.grad = total[start : start + p.numel()].view_as(p).to(p.dtype)
            start += p.numel()
