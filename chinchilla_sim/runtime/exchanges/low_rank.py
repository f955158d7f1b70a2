"""PowerSGD (Vogels, Karimireddy & Jaggi 2019): gradients of matrices as products of two thin factors, with error feedback.

Per matrix M (gradient and residual, n x m), with Q from the step before, over all ranks i:

    P = sum M_i Q      first collective
    P = orthonormal columns of P (by QR: also of a matrix of zeros, so that no Q stays zero for ever)
    Q_i = M_i^T P      second collective sums them to Q
    result P Q^T,  residual of rank i  M_i - P Q_i^T

Residuals are each rank's own, so results and residuals of all ranks add up to gradients and old residuals. Parameters of one axis
and matrices that would not shrink travel whole, with P. Factors lie transposed in the payloads (r rows of n or m values): on CPU
products with them are up to ten times faster than with r columns. Matrices of one shape are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from chinchilla_sim.cost.codec import LOW_RANK, gradient_matrix
from chinchilla_sim.runtime.exchanges.gradient_codecs import FeedbackCodec

SEED = 0
"""Every rank draws the same first Q."""

ALIASED, STRIP = 512, 8
"""Rows of a multiple of 512 values fall into the same sets of a cache: a product of rank 4 took 5 to 10 times longer until cut into
strips of so many rows."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Equal matrices: (c, n, m) gradients with residuals, and their sum; (c, r, n) P, (c, r, m) Q, summed and this rank's own."""

    matrices: Tensor
    result: Tensor
    p: Tensor
    q: Tensor
    own_q: Tensor


class LowRankCodec(FeedbackCodec):
    """PowerSGD of one bucket: its payloads are all P with what travels whole, and all Q."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        shapes = [_shrinking(parameter) for parameter in parameters]
        by_shape: dict[tuple[object, ...], list[int]] = {}
        for index, (parameter, shape) in enumerate(zip(parameters, shapes, strict=True)):
            if shape is not None:
                # A flattened square leaves values over, which stand behind it: it is a batch of its own.
                key = shape if prod(shape) == parameter.numel() else (*shape, index)
                by_shape.setdefault(key, []).append(index)
        order = [index for indices in by_shape.values() for index in indices]
        order += [index for index, shape in enumerate(shapes) if shape is None]
        super().__init__([parameters[index] for index in order])
        self.names = order
        self._lay_out([shapes[index] for index in order])

    def _lay_out(self, shapes: Sequence[tuple[int, int] | None]) -> None:
        """Find runs of equal matrices and what is left between them, and make the payloads."""
        runs: list[tuple[int, int, tuple[int, int]]] = []  # start, number and shape of equal matrices
        whole: list[slice] = []
        start = 0
        for parameter, shape in zip(self.parameters, shapes, strict=True):
            size = 0 if shape is None else prod(shape)
            if shape is not None:
                same = bool(runs) and runs[-1][2] == shape and runs[-1][0] + runs[-1][1] * size == start
                runs[-1:] = [(runs[-1][0], runs[-1][1] + 1, shape)] if same else [*runs[-1:], (start, 1, shape)]
            if size < parameter.numel():
                whole.append(slice(start + size, start + parameter.numel()))
            start += parameter.numel()
        p_count, q_count = (LOW_RANK * sum(count * shape[axis] for _, count, shape in runs) for axis in (0, 1))
        whole_count = sum(part.stop - part.start for part in whole)
        self.payloads = [torch.zeros(p_count + whole_count, dtype=self.dtype, device=self.device)]
        self._q = torch.randn(q_count, generator=torch.Generator().manual_seed(SEED)).to(self.device)
        self._own_q = torch.zeros_like(self._q)
        # Factors are computed in fp32; where gradients travel in fewer bits they are converted into the payloads.
        self._p = self.payloads[0][:p_count] if self.dtype == torch.float32 else torch.zeros(p_count, device=self.device)
        if runs:
            self.payloads.append(self._q if self.dtype == torch.float32 else torch.zeros_like(self._q, dtype=self.dtype))
        self._batches = list(self._cut_batches(runs))
        self._whole_residuals, self._whole_sums = ([buffer[part] for part in whole] for buffer in (self.residual, self.total))
        self._whole_payloads = list(torch.split(self.payloads[0][p_count:], [part.stop - part.start for part in whole]))

    def _cut_batches(self, runs: Sequence[tuple[int, int, tuple[int, int]]]) -> list[_Batch]:
        batches, p_start, q_start = [], 0, 0
        for start, count, (n, m) in runs:
            matrices, result = (buffer[start : start + count * n * m].view(count, n, m) for buffer in (self.residual, self.total))
            p_end, q_end = p_start + count * LOW_RANK * n, q_start + count * LOW_RANK * m
            q, own_q = (buffer[q_start:q_end].view(count, LOW_RANK, m) for buffer in (self._q, self._own_q))
            batches.append(_Batch(matrices, result, self._p[p_start:p_end].view(count, LOW_RANK, n), q, own_q))
            p_start, q_start = p_end, q_end
        return batches

    @property
    def buffers(self) -> list[Tensor]:
        return [*super().buffers, self._p, self._q, self._own_q]

    def state(self) -> dict[str, Tensor]:
        """Residuals, and the Q of every matrix."""
        names = iter(self.names)
        factors = {f"q.{next(names)}": one for batch in self._batches for one in batch.q}
        return super().state() | factors

    def pack(self) -> None:
        self._add_gradients()
        for batch in self._batches:
            torch.bmm(batch.q, batch.matrices.mT, out=batch.p)
        self._convert(self._p, self.payloads[0][: len(self._p)])
        if self._whole_payloads:
            torch._foreach_copy_(self._whole_payloads, self._whole_residuals)
            torch._foreach_zero_(self._whole_residuals)

    def prepare_second(self) -> None:
        self._convert(self.payloads[0][: len(self._p)], self._p)
        for batch in self._batches:
            batch.p.copy_(torch.linalg.qr(batch.p.mT).Q.mT)
            torch.bmm(batch.p, batch.matrices, out=batch.own_q)
        # The sum takes the place of what is sent, and what is sent may have been rounded.
        self.payloads[1].copy_(self._own_q)
        self._convert(self.payloads[1], self._own_q)

    def add_up(self, received: Sequence[Tensor]) -> None:
        if self._batches:
            self._convert(self.payloads[1], self._q)
        for batch in self._batches:
            add_product(batch.matrices, batch.p, batch.own_q, keep=1, share=-1)
            add_product(batch.result, batch.p, batch.q, keep=0, share=1)
        if self._whole_sums:
            torch._foreach_copy_(self._whole_sums, self._whole_payloads)

    @staticmethod
    def _convert(source: Tensor, target: Tensor) -> None:
        """Between fp32 and the type of the payload; in fp32 they hold the same already."""
        if source.dtype != target.dtype:
            target.copy_(source)


def add_product(matrices: Tensor, p: Tensor, q: Tensor, keep: int, share: int) -> None:
    """`matrices` (c, n, m) = keep times themselves + share times P^T Q of (c, r, n) and (c, r, m) factors, in place."""
    n, m = matrices.shape[1:]
    if m % ALIASED or n % STRIP:
        torch.baddbmm(matrices, p.mT, q, beta=keep, alpha=share, out=matrices)
        return
    for matrix, columns, rows in zip(matrices, p.mT.contiguous(), q, strict=True):
        strips, pieces = matrix.view(-1, STRIP, m), columns.view(-1, STRIP, LOW_RANK)
        torch.baddbmm(strips, pieces, rows.expand(len(strips), LOW_RANK, m), beta=keep, alpha=share, out=strips)


def _shrinking(parameter: nn.Parameter) -> tuple[int, int] | None:
    """Rows and columns of a gradient whose factors are smaller than it is."""
    shape = gradient_matrix(tuple(parameter.shape))
    return shape if shape is not None and LOW_RANK * sum(shape) < prod(shape) else None
