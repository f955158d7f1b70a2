"""Which dimensions of a model's tensors must shrink together: union-find over dimensions that may be products or sums.

A dimension is a number into a `Dimensions`. A leaf is independent of all others; a product stands for a reshape
(768 = 12 heads x 64), a sum for a concatenation (96 = 64 + 32). Leaves are split when a reshape or a split of the model asks
for it, and made equal when an operator does (both sides of a residual addition).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Literal

Kind = Literal["leaf", "product", "sum"]


@dataclass(slots=True)
class _Entry:
    size: int
    kind: Kind = "leaf"
    parts: tuple[int, ...] = ()
    same_as: int | None = None
    frozen: bool = False


class Dimensions:
    """All dimensions of one model."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def new(self, size: int, frozen: bool = False) -> int:
        """A leaf; a frozen one keeps its size for good."""
        self._entries.append(_Entry(size, frozen=frozen))
        return len(self._entries) - 1

    def find(self, dimension: int) -> int:
        """The one that stands for all that are equal to this one."""
        while (other := self._entries[dimension].same_as) is not None:
            dimension = other
        return dimension

    def size(self, dimension: int) -> int:
        """Length before anything shrinks."""
        return self._entries[self.find(dimension)].size

    def is_frozen(self, dimension: int) -> bool:
        """Whether a leaf must keep its size."""
        return self._entries[self.find(dimension)].frozen

    def product(self, parts: Sequence[int]) -> int:
        """The dimension that a reshape makes of several; none make a 1."""
        return self._compose("product", parts, prod(self.size(part) for part in parts))

    def sum(self, parts: Sequence[int]) -> int:
        """The dimension that a concatenation makes of several."""
        return self._compose("sum", parts, sum(self.size(part) for part in parts))

    def _compose(self, kind: Kind, parts: Sequence[int], size: int) -> int:
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return self.new(1, frozen=True)
        self._entries.append(_Entry(size, kind, tuple(parts)))
        return len(self._entries) - 1

    def leaves(self, dimension: int) -> Iterator[int]:
        """Independent dimensions that this one is made of."""
        root = self.find(dimension)
        entry = self._entries[root]
        if entry.kind == "leaf":
            yield root
        for part in entry.parts:
            yield from self.leaves(part)

    def freeze(self, dimension: int) -> None:
        """Let everything in a dimension keep its size."""
        for leaf in self.leaves(dimension):
            self._entries[leaf].frozen = True

    def unify(self, one: int, other: int) -> None:
        """Make two dimensions equal from now on; those that cannot be are frozen instead."""
        one, other = self.find(one), self.find(other)
        if one == other:
            return
        first, second = self._entries[one], self._entries[other]
        if first.size != second.size:
            self.freeze(one)
            self.freeze(other)
        elif first.kind == "leaf":
            self._identify(one, other)
        elif second.kind == "leaf":
            self._identify(other, one)
        elif first.kind == second.kind == "product":
            self._match_products(one, other)
        elif first.kind == second.kind == "sum":
            self._match_sums(one, other)
        else:
            self.freeze(one)
            self.freeze(other)

    def _identify(self, leaf: int, target: int) -> None:
        if self._entries[leaf].frozen:
            self.freeze(target)
        if leaf not in self.leaves(target):
            self._entries[leaf].same_as = target

    def _match_products(self, one: int, other: int) -> None:
        sizes = [self.size(factor) for factor in self.factors(other)]
        refined = self.regroup([one], sizes)
        for ours, theirs in zip(refined, list(self.factors(other)), strict=False):
            self.unify(ours, theirs)

    def _match_sums(self, one: int, other: int) -> None:
        """Cut both sums where either has a border, then make piece and piece equal."""
        first, second = list(self.terms(one)), list(self.terms(other))
        borders = {*accumulate(map(self.size, first)), *accumulate(map(self.size, second))}
        ours, theirs = self._cut_terms(first, borders), self._cut_terms(second, borders)
        if ours is None or theirs is None:
            self.freeze(one)
            self.freeze(other)
            return
        for left, right in zip(ours, theirs, strict=True):
            self.unify(left, right)

    def _cut_terms(self, terms: Sequence[int], borders: set[int]) -> list[int] | None:
        start, pieces = 0, []
        for term in terms:
            end = start + self.size(term)
            inner = sorted(border for border in borders if start < border < end)
            cuts = [b - a for a, b in zip([start, *inner], [*inner, end], strict=True)]
            parts = self.cut(term, cuts)
            if parts is None:
                return None
            pieces += parts
            start = end
        return pieces

    def factors(self, dimension: int) -> Iterator[int]:
        """Leaves and sums whose product a dimension is, without ones."""
        root = self.find(dimension)
        if self._entries[root].kind != "product":
            if self._entries[root].size != 1:
                yield root
            return
        for part in self._entries[root].parts:
            yield from self.factors(part)

    def terms(self, dimension: int) -> Iterator[int]:
        """Leaves and products whose sum a dimension is."""
        root = self.find(dimension)
        if self._entries[root].kind != "sum":
            yield root
            return
        for part in self._entries[root].parts:
            yield from self.terms(part)

    def cut(self, dimension: int, sizes: Sequence[int]) -> list[int] | None:
        """Parts of these sizes of a dimension that is split; None where its own parts do not fit."""
        root = self.find(dimension)
        if len(sizes) == 1:
            return [root]
        entry = self._entries[root]
        if entry.kind == "leaf":
            parts = [self.new(size, entry.frozen) for size in sizes]
            entry.kind, entry.parts = "sum", tuple(parts)
            return parts
        terms = list(self.terms(root))
        if entry.kind == "product":
            return None
        borders = set(accumulate(sizes))
        pieces = self._cut_terms(terms, borders)
        return self._collect(pieces, sizes) if pieces is not None else None

    def _collect(self, pieces: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """Sums of neighbouring pieces that reach the sizes."""
        queue, result = list(pieces), []
        for size in sizes:
            taken: list[int] = []
            while sum(self.size(piece) for piece in taken) < size:
                taken.append(queue.pop(0))
            result.append(self.sum(taken))
        return result

    def regroup(self, dimensions: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """Dimensions of a reshape to `sizes`; where the borders do not fit, all are frozen and the new ones too."""
        queue = [factor for dimension in dimensions for factor in self.factors(dimension)]
        result = []
        for size in sizes:
            parts = self._take(queue, size)
            if parts is None:
                for dimension in dimensions:
                    self.freeze(dimension)
                return [self.new(size, frozen=True) for size in sizes]
            result.append(self.product(parts))
        return result

    def _take(self, queue: list[int], size: int) -> list[int] | None:
        """Factors from the head of the queue with this product, the last of them split where it must be."""
        parts: list[int] = []
        while size > 1:
            if not queue:
                return None
            head = self.find(queue.pop(0))
            entry = self._entries[head]
            if entry.kind == "product":
                queue[:0] = list(self.factors(head))
            elif size % entry.size == 0:
                parts.append(head)
                size //= entry.size
            elif entry.size % size == 0 and entry.kind == "leaf":
                halves = self.new(size, entry.frozen), self.new(entry.size // size, entry.frozen)
                entry.kind, entry.parts = "product", halves
                queue[:0] = list(halves)
            else:
                return None
        return parts

    def shrunk(self, dimension: int, kept: Mapping[int, int]) -> int:
        """Length when the leaves have the lengths in `kept` (others stay)."""
        root = self.find(dimension)
        entry = self._entries[root]
        if entry.kind == "leaf":
            return kept.get(root, entry.size)
        lengths = [self.shrunk(part, kept) for part in entry.parts]
        return prod(lengths) if entry.kind == "product" else sum(lengths)

    def positions(self, dimension: int, chosen: Mapping[int, Sequence[int]]) -> list[int]:
        """Positions along a dimension that stay where its leaves keep the `chosen` ones of theirs (others keep all)."""
        root = self.find(dimension)
        entry = self._entries[root]
        if entry.kind == "leaf":
            return list(chosen.get(root, range(entry.size)))
        if entry.kind == "sum":
            starts = accumulate(map(self.size, entry.parts), initial=0)
            return [start + place for start, part in zip(starts, entry.parts, strict=False) for place in self.positions(part, chosen)]
        found = [0]
        for part in entry.parts:
            inner = self.positions(part, chosen)
            found = [place * self.size(part) + within for place in found for within in inner]
        return found

    def shares(self, dimension: int, values: Sequence[float]) -> Iterator[tuple[int, list[float]]]:
        """Every leaf of a dimension with what falls on each of its positions, from a value for each position of the dimension."""
        root = self.find(dimension)
        entry = self._entries[root]
        if entry.kind == "leaf":
            yield root, list(values)
        elif entry.kind == "sum":
            start = 0
            for part in entry.parts:
                yield from self.shares(part, values[start : start + self.size(part)])
                start += self.size(part)
        else:
            inner = len(values)
            for part in entry.parts:
                size = self.size(part)
                inner //= size
                sums = [0.0] * size
                for place, value in enumerate(values):
                    sums[place // inner % size] += value
                yield from self.shares(part, sums)
