"""Gradient codecs: the gradients of one bucket to the payload of a collective, and payloads to their sum.

    sum (none, fp16, bf16)   payloads are added by the collective itself
    int8, one-bit            scales of all blocks, then a byte or a bit for each value: gathered, unpacked, added
    top-k                    indices, then values: gathered, added where they belong

All buffers are made once and used in every step. `total` is where gradients are packed and where their sum ends; in between it is
scratch. It is padded with zeros to whole blocks. Parameters come with a gradient of their own in every step: backward hands over the tensor
it made, which is cheaper than adding it to zeros in `total` (copy 8 B per value; zeroing and adding 16 B).

With error feedback `residual` keeps what was not sent. A payload is decoded by every rank in the order of ranks, so all hold the
same sum to the last bit. Not-a-number is never lost: its whole block, or its own index, arrives as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla_sim.cost.codec import INDEX_BYTES, INT8_BLOCK, TOP_SHARE
from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.exchanges.codecs import HALF, SCALE_BYTES, aligned, block_count, quantize, split_scales

COLUMN = 16
"""Values of which top-k looks at the largest first: fewer leave more to select among, more let more candidates through."""
SIGN_BIT = -(2**31)


def views_of(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Parts of a flat buffer, one behind the other, with the shapes of parameters."""
    ends = list(accumulate(parameter.numel() for parameter in parameters))
    return [flat[end - one.numel() : end].view(one.shape) for one, end in zip(parameters, ends, strict=True)]


class BucketCodec:
    """What all codecs of one bucket have in common.

    `payloads[i]` is what this rank gives to the i-th collective; `gradients` are the parameters' parts of the sum.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], work: torch.dtype = torch.float32) -> None:
        types = {parameter.dtype for parameter in parameters}
        if len(types) > 1:
            raise RunError(f"a bucket of gradients mixes {', '.join(sorted(map(str, types)))}: keep parameters of one stage in one type")
        (self.dtype,) = types
        self.device = parameters[0].device
        self.parameters = list(parameters)
        self.count = sum(parameter.numel() for parameter in parameters)
        self.total = torch.zeros(INT8_BLOCK * block_count(self.count), dtype=work, device=self.device)
        self.sum = self.total if work == self.dtype else torch.zeros_like(self.total, dtype=self.dtype)
        self.gradients = views_of(self.sum, parameters)
        self.payloads: list[Tensor] = []

    def pack(self) -> None:
        """Fill the first payload with the parameters' gradients (zeros where there is none)."""
        raise NotImplementedError

    def prepare_second(self) -> None:
        """Fill the second payload from the first, which is a sum by now."""

    def add_up(self, received: Sequence[Tensor]) -> None:
        """Fill `total` from all ranks' payloads."""
        raise NotImplementedError

    def unpack(self, received: Sequence[Tensor]) -> None:
        """Let `gradients` be the sum of all ranks' payloads; of a reduced payload there is one."""
        self.add_up(received)
        if self.sum is not self.total:
            self.sum.copy_(self.total)

    @property
    def buffers(self) -> list[Tensor]:
        """What is kept from step to step."""
        return [self.total, self.sum, *self.payloads]

    def state(self) -> dict[str, Tensor]:
        """What must survive until the next step: live tensors, by name and index of their parameter."""
        return {}

    def _copy_gradients(self, targets: Sequence[Tensor]) -> None:
        given = [(view, one.grad) for view, one in zip(targets, self.parameters, strict=True) if one.grad is not None]
        if given:
            torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])
        for view, parameter in zip(targets, self.parameters, strict=True):
            if parameter.grad is None:
                view.zero_()


class SumCodec(BucketCodec):
    """none, fp16, bf16: without a codec the collective sums `total` itself, and gradients are views of it."""

    def __init__(self, codec: str, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, parameters[0].dtype)
        kept = HALF.get(codec, self.dtype) == self.dtype
        wire = self.total if kept else torch.zeros_like(self.total, dtype=HALF[codec])
        self._targets = views_of(wire, parameters)
        self.payloads = [wire[: self.count]]

    def pack(self) -> None:
        self._copy_gradients(self._targets)

    def add_up(self, received: Sequence[Tensor]) -> None:
        (payload,) = received
        if payload.dtype != self.total.dtype:
            self.total[: self.count].copy_(payload)


class Int8Codec(BucketCodec):
    """int8 with a scale per block."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters)
        self._targets = views_of(self.total, parameters)
        self._blocks = self.total.view(-1, INT8_BLOCK)
        self._scratch = torch.zeros_like(self.total)
        payload = torch.zeros(SCALE_BYTES * len(self._blocks) + self.count, dtype=torch.uint8, device=self.device)
        self._scale, values = split_scales(payload, len(self._blocks))
        self._values = values.view(torch.int8)
        self.payloads = [payload]

    @property
    def buffers(self) -> list[Tensor]:
        return [*super().buffers, self._scratch]

    def pack(self) -> None:
        self._copy_gradients(self._targets)
        self.total[self.count :].zero_()
        quantize(self._blocks, self._scale, self._values, scratch=self._blocks)

    def add_up(self, received: Sequence[Tensor]) -> None:
        parts = [split_scales(aligned(payload), len(self._blocks)) for payload in received]
        add_scaled(self.total, self._scratch, [(scale, values.view(torch.int8)) for scale, values in parts])


def add_scaled(total: Tensor, scratch: Tensor, payloads: Sequence[tuple[Tensor, Tensor]]) -> None:
    """`total` = the sum of int8 values times the scale of their block, over (scale, values) of all payloads."""
    for index, (scale, values) in enumerate(payloads):
        target = scratch if index else total
        target[: values.numel()].copy_(values)
        if index:
            total.view(-1, INT8_BLOCK).addcmul_(scratch.view(-1, INT8_BLOCK), scale[:, None])
        else:
            total.view(-1, INT8_BLOCK).mul_(scale[:, None])


class FeedbackCodec(BucketCodec):
    """Codecs that keep a residual of what they did not send and add the next step's gradients to it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters)
        self.residual = torch.zeros_like(self.total)
        self._residuals = views_of(self.residual, parameters)
        self.names = list(range(len(parameters)))
        """Which parameter of the bucket each of `parameters` is, where a codec has its own order."""

    @property
    def buffers(self) -> list[Tensor]:
        return [*super().buffers, self.residual]

    def state(self) -> dict[str, Tensor]:
        """Residuals by parameter."""
        return {f"residual.{name}": view for name, view in zip(self.names, self._residuals, strict=True)}

    def _add_gradients(self) -> None:
        given = [(view, one.grad) for view, one in zip(self._residuals, self.parameters, strict=True) if one.grad is not None]
        if given:
            torch._foreach_add_([view for view, _ in given], [gradient for _, gradient in given])


class OneBitCodec(FeedbackCodec):
    """The sign of every value and the mean magnitude of its block; NumPy packs the bits."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters)
        if self.device.type != "cpu":
            raise RunError(f"gradient_codecs: one-bit packs its bits on the CPU only, not on {self.device}: choose another codec")
        self._blocks = self.total.view(-1, INT8_BLOCK)
        self._scratch = torch.zeros_like(self.total)
        self._sizes = torch.full((len(self._blocks),), float(INT8_BLOCK))
        self._sizes[-1] -= -self.count % INT8_BLOCK
        payload = torch.zeros(SCALE_BYTES * len(self._blocks) + -(-self.count // 8), dtype=torch.uint8)
        self._scale, self._bits = split_scales(payload, len(self._blocks))
        self._negative = torch.zeros(self.count, dtype=torch.bool)
        self.payloads = [payload]

    @property
    def buffers(self) -> list[Tensor]:
        return [*super().buffers, self._scratch, self._sizes, self._negative]

    def pack(self) -> None:
        self._add_gradients()
        torch.abs(self.residual, out=self.total)
        torch.div(self._blocks.sum(dim=1), self._sizes, out=self._scale)
        torch.signbit(self.residual[: self.count], out=self._negative)
        self._bits.copy_(torch.from_numpy(np.packbits(self._negative.numpy())))
        self._keep_residual()

    def _keep_residual(self) -> None:
        """Take off what was sent: the scale with the sign bit of each value, put together as integers (copysign is four times slower)."""
        sent = self.total.view(torch.int32)
        torch.bitwise_and(self.residual.view(torch.int32), SIGN_BIT, out=sent)
        sent.view(-1, INT8_BLOCK).bitwise_or_(self._scale.view(torch.int32)[:, None])
        self.residual.sub_(self.total)
        self.residual[self.count :].zero_()

    def add_up(self, received: Sequence[Tensor]) -> None:
        parts = [split_scales(aligned(payload), len(self._blocks)) for payload in received]
        add_scaled(self.total, self._scratch, [(scale, self._signs(bits)) for scale, bits in parts])

    def _signs(self, bits: Tensor) -> Tensor:
        """+1 and -1 as int8."""
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=self.count)).view(torch.int8).mul_(-2).add_(1)


class TopCodec(FeedbackCodec):
    """Index and value of the 1 % largest magnitudes, exactly."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters)
        # As ceil(count / 100), but exact.
        self.kept = -(-self.count // round(1 / TOP_SHARE))
        payload = torch.zeros(self.kept * (INDEX_BYTES + self.dtype.itemsize), dtype=torch.uint8, device=self.device)
        self._indices, self._values = self._split(payload)
        self._small = torch.zeros(self.count, dtype=torch.bool)
        self.payloads = [payload]

    @property
    def buffers(self) -> list[Tensor]:
        return [*super().buffers, self._small]

    def _split(self, payload: Tensor) -> tuple[Tensor, Tensor]:
        end = INDEX_BYTES * self.kept
        return payload[:end].view(torch.int32), payload[end:].view(self.dtype)

    def pack(self) -> None:
        self._add_gradients()
        self._indices.copy_(torch.from_numpy(self._largest()))
        self._values.copy_(self.residual.index_select(0, self._indices))
        self.residual.index_add_(0, self._indices, self._values.to(self.residual.dtype), alpha=-1)

    def _largest(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Indices of the `kept` largest magnitudes.

        No value below the kept-th largest of the columns' maxima can be among them, because so many columns hold one as
        large: a selection among a sixteenth of the values leaves about 1.1 % of them as candidates.
        """
        torch.abs(self.residual, out=self.total)
        maxima = self.total.view(COLUMN, -1).amax(dim=0).cpu().numpy()
        floor = np.partition(maxima, len(maxima) - self.kept)[len(maxima) - self.kept]
        magnitudes = self.total.cpu().numpy()[: self.count]
        # "Not smaller" keeps not-a-number, which "at least as large" would drop.
        small = self._small.numpy()
        np.less(magnitudes, floor, out=small)
        candidates = np.flatnonzero(np.logical_not(small, out=small))
        surplus = len(candidates) - self.kept
        return candidates[np.argpartition(magnitudes[candidates], surplus)[surplus:]] if surplus else candidates

    def add_up(self, received: Sequence[Tensor]) -> None:
        self.total.zero_()
        for payload in received:
            indices, values = self._split(aligned(payload))
            self.total.index_add_(0, indices, values.to(self.total.dtype))


class SideBySide:
    """Codecs of one kind for several parts of a bucket, whose payloads travel as one; `places` are their parameters' in the bucket."""

    def __init__(self, codecs: Sequence[BucketCodec], places: Sequence[Sequence[int]]) -> None:
        self.codecs, self.places = codecs, places
        self.parameters = [parameter for codec in codecs for parameter in codec.parameters]
        self.gradients = [gradient for codec in codecs for gradient in codec.gradients]
        self.sizes = [codec.payloads[0].numel() for codec in codecs]
        self.payloads = [torch.cat([codec.payloads[0] for codec in codecs])]

    @property
    def buffers(self) -> list[Tensor]:
        """What is kept from step to step."""
        return [*self.payloads, *(tensor for codec in self.codecs for tensor in codec.buffers)]

    def pack(self) -> None:
        """Fill the payload."""
        for codec in self.codecs:
            codec.pack()
        torch.cat([codec.payloads[0] for codec in self.codecs], out=self.payloads[0])

    def prepare_second(self) -> None:
        """What is gathered travels once."""

    def unpack(self, received: Sequence[Tensor]) -> None:
        """Let `gradients` be the sum of all ranks' payloads."""
        rows = [torch.split(payload, self.sizes) for payload in received]
        for codec, payloads in zip(self.codecs, zip(*rows, strict=True), strict=True):
            codec.unpack(payloads)

    def state(self) -> dict[str, Tensor]:
        """That of all, by index in the bucket."""
        found: dict[str, Tensor] = {}
        for codec, places in zip(self.codecs, self.places, strict=True):
            for name, tensor in codec.state().items():
                kind, _, index = name.rpartition(".")
                found[f"{kind}.{places[int(index)]}"] = tensor
        return found
