"""The line of waiting requests that replicas serve together, by the rules of `simulator/requests.py`. No torch here.

The line is a value; whoever changes it swaps the whole of it for another, so that replicas in different processes share one line
through any store that can compare and swap. Seconds count from the opening of the line.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests `first` to `first + size - 1`, taken together at `start_s`; `arrivals_s` are theirs."""

    first: int
    size: int
    start_s: float
    arrivals_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where requests come from: `count` in all, in batches of up to `most`.

    `times_s` are their arrivals (ascending), or None in a closed loop, where every answer brings the next request.
    """

    count: int
    most: int
    times_s: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Requests taken so far, the free replicas (the one that is free longest first), and since when requests wait in a closed loop."""

    free: tuple[int, ...]
    taken: int = 0
    waiting_s: tuple[float, ...] = ()

    def join(self, replica: int) -> Line:
        """The line with another free replica."""
        return replace(self, free=(*self.free, replica))

    def answer(self, source: Source, now_s: float, size: int) -> Line:
        """The line after `size` answers in a closed loop."""
        more = min(size, source.count - self.taken - len(self.waiting_s))
        return replace(self, waiting_s=(*self.waiting_s, *[now_s] * more))

    def opens_s(self, replica: int, source: Source) -> float | None:
        """The earliest time at which a free replica may take a batch: those before it take a request each, at least.

        None where no request is left for it; infinite where only an answer can tell.
        """
        place = self.free.index(replica)
        if self.taken + place >= source.count:
            return None
        known = self.waiting_s if source.times_s is None else source.times_s
        index = place if source.times_s is None else self.taken + place
        return known[index] if index < len(known) else float("inf")

    def take(self, replica: int, source: Source, now_s: float) -> tuple[Line, Batch | None]:
        """The line without the batch that a free replica takes now: all that wait, up to a full one; None where it is not its turn."""
        if self.free[0] != replica or self.taken >= source.count:
            return self, None
        waiting = self.waiting_s if source.times_s is None else source.times_s[self.taken : self.taken + source.most]
        size = min(bisect_right(waiting, now_s), source.most)
        if not size:
            return self, None
        rest = self.waiting_s[size:]
        return Line(self.free[1:], self.taken + size, rest), Batch(self.taken, size, now_s, tuple(waiting[:size]))

    def to_text(self) -> str:
        """What a store holds."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Line:
        """Inverse of `to_text`."""
        data = json.loads(text)
        return Line(tuple(data["free"]), data["taken"], tuple(data["waiting_s"]))


Swap = Callable[[str, str], str]
"""From what a text should be and what it is to become, to what it is now: the second if it was the first."""


class SharedLine:
    """A line that several processes change, each through its own `swap` of the same text."""

    def __init__(self, swap: Swap, opened: Line) -> None:
        self._swap = swap
        self._text = swap("", opened.to_text())

    def change(self, how: Callable[[Line], tuple[Line, T]]) -> T:
        """Put the line that `how` makes of the present one in its place; returns what else `how` returns."""
        while True:
            line = Line.from_text(self._text)
            changed, result = how(line)
            if changed is line:
                # Nothing to write; but the line may have changed since it was read.
                seen = self._swap(self._text, self._text)
                if seen == self._text:
                    return result
                self._text = seen
                continue
            text = changed.to_text()
            seen = self._swap(self._text, text)
            if seen == text:
                self._text = text
                return result
            self._text = seen


class OwnText:
    """A text that a single process swaps."""

    def __init__(self) -> None:
        self.text = ""

    def swap(self, expected: str, desired: str) -> str:
        """See `Swap`."""
        if self.text == expected:
            self.text = desired
        return self.text


def opened_line(replicas: int, source: Source, concurrency: int | None) -> Line:
    """The line when it opens: all replicas are free; in a closed loop `concurrency` requests wait."""
    return Line(tuple(range(replicas))).answer(source, 0.0, concurrency or 0)


class Counter:
    """Where one replica takes its batches: it waits by the given clock until it is its turn, and a request is there."""

    def __init__(
        self, line: SharedLine, source: Source, replica: int, clock: Callable[[], float], sleep: Callable[[float], None], poll_s: float
    ) -> None:
        self.line, self.source, self.replica = line, source, replica
        self.clock, self.sleep, self.poll_s = clock, sleep, poll_s
        self.joined = True

    def join(self) -> None:
        """Be free again, unless it is already."""
        if not self.joined:
            self.line.change(lambda line: (line.join(self.replica), None))
            self.joined = True

    def take(self) -> Batch | None:
        """The next batch, or None where none is left for this replica."""
        self.join()
        while True:
            opens_s = self.line.change(lambda line: (line, line.opens_s(self.replica, self.source)))
            if opens_s is None:
                return None
            wait_s = opens_s - self.clock()
            if wait_s > 0:
                self.sleep(self.poll_s if wait_s == float("inf") else wait_s)
                continue
            batch = self.line.change(lambda line: line.take(self.replica, self.source, self.clock()))
            if batch is not None:
                self.joined = False
                return batch
            self.sleep(self.poll_s)
