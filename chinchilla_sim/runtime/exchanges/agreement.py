"""Local steps: how far a replica's weights have moved since all agreed, and where all agree next.

With d replicas of b_d of the B samples of a step, shared weights w and each replica's own w_d behind H of its own updates (Stich 2019,
McMahan et al. 2017), the mean difference takes the place of a gradient of the shared weights (Douillard et al. 2023):

    D = sum over d of  b_d / B (w - w_d)         what the exchange sums; codecs keep what they did not send for the next one
    m = momentum m + D                           the outer optimizer: SGD with Nesterov momentum
    w = w - rate (D + momentum m)                rate 1 and momentum 0: the mean of all replicas' weights

Then every replica goes on from w, with its own state of the inner optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Agreement:
    """The weights of one stage that all its replicas share, beside a replica's own `masters` of the stage's `parameters`."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], masters: Sequence[nn.Parameter], share: float, rate: float, momentum: float
    ) -> None:
        """`share` is this replica's part of the samples of a step."""
        self.parameters, self.share, self.rate, self.momentum = list(parameters), share, rate, momentum
        self.own = [master.detach() for master in masters]
        self.shared = [weight.clone() for weight in self.own]
        self.moments = [torch.zeros_like(weight) for weight in self.own] if momentum else []

    def restart(self) -> None:
        """Share the weights as they are now, which must be the same on all replicas."""
        torch._foreach_copy_(self.shared, self.own)

    def differ(self) -> None:
        """Let every parameter's gradient be this replica's part of the mean difference."""
        differences = torch._foreach_sub(self.shared, self.own)
        torch._foreach_mul_(differences, self.share)
        for parameter, difference in zip(self.parameters, differences, strict=True):
            parameter.grad = difference.to(parameter.dtype)

    def agree(self) -> None:
        """Move the shared weights by the sum in the parameters' gradients, and let the replica's own be the same."""
        means = [parameter.grad.to(weight.dtype) for parameter, weight in zip(self.parameters, self.shared, strict=True)]  # type: ignore[union-attr]
        if self.moments:
            torch._foreach_mul_(self.moments, self.momentum)
            torch._foreach_add_(self.moments, means)
            means = list(torch._foreach_add(means, self.moments, alpha=self.momentum))
        torch._foreach_add_(self.shared, means, alpha=-self.rate)
        torch._foreach_copy_(self.own, self.shared)
        for parameter, weight in zip(self.parameters, self.own, strict=True):
            parameter.grad = None
            if parameter.data_ptr() != weight.data_ptr():
                parameter.detach().copy_(weight)

    def means(self, group: Any) -> dict[int, Tensor]:
        """The mean of the replicas' own weights, by address of the parameter; all replicas call it at the same time."""
        found = {}
        for parameter, weight in zip(self.parameters, self.own, strict=True):
            mean = weight * self.share
            dist.all_reduce(mean, group=group)
            found[parameter.data_ptr()] = mean.to(parameter.dtype)
        return found
