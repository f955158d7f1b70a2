"""The fast evaluator: each activity starts when what it waits for has finished, with flows on idle links.

One pass in a static order. It equals the SimPy engine where no link is shared and communication does not slow
computation; where links are shared it is too fast. An order is brought into columns once (`Columns`) and can be
played many times with other seconds. Each row waits for at most two others; who waits for more gets rows of no
length in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_sim.simulator.activities import ActivityGraph, Times
from chinchilla_sim.simulator.pause import no_collection


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows in an order that can be played; row 0 is the start of the step.

    Row i takes `seconds[i]` and starts when rows `first[i]` and `second[i]` have finished, each plus its lag. `row_of[a]` is
    the row of activity a.
    """

    seconds: list[float]
    first: list[int]
    first_lag_s: list[float]
    second: list[int]
    second_lag_s: list[float]
    row_of: list[int]


def columns_of(graph: ActivityGraph) -> Columns:
    """The graph in rows; RunError names a cycle where there is one."""
    with no_collection():
        return _columns_of(graph)


def _columns_of(graph: ActivityGraph) -> Columns:
    starts, others, lags = graph.predecessors()
    seconds, first, second = [0.0], [0], [0]
    first_lag_s, second_lag_s = [0.0], [0.0]
    row_of = [0] * (len(graph) + 1)  # the last entry stands for NO_ACTIVITY: row 0
    for number in graph.in_order():
        before = [(row_of[others[at]], lags[at]) for at in range(starts[number], starts[number + 1])]
        while len(before) > 2:
            (a, a_lag), (b, b_lag) = before.pop(), before.pop()
            before.insert(0, (len(seconds), 0.0))
            seconds.append(0.0)
            first.append(a)
            first_lag_s.append(a_lag)
            second.append(b)
            second_lag_s.append(b_lag)
        before += [(0, 0.0)] * (2 - len(before))
        row_of[number] = len(seconds)
        seconds.append(graph.seconds[number])
        first.append(before[0][0])
        first_lag_s.append(before[0][1])
        second.append(before[1][0])
        second_lag_s.append(before[1][1])
    return Columns(seconds, first, first_lag_s, second, second_lag_s, row_of[: len(graph)])


def play(columns: Columns) -> list[float]:
    """When each row has finished."""
    finish_s: list[float] = []
    append = finish_s.append
    rows = zip(columns.seconds, columns.first, columns.first_lag_s, columns.second, columns.second_lag_s, strict=True)
    seconds, *_ = next(rows)
    append(seconds)
    for seconds, a, a_lag_s, b, b_lag_s in rows:
        a_s = finish_s[a] + a_lag_s
        b_s = finish_s[b] + b_lag_s
        append((a_s if a_s > b_s else b_s) + seconds)
    return finish_s


def replay(graph: ActivityGraph, columns: Columns | None = None) -> Times:
    """When each activity starts and has finished."""
    columns = columns or columns_of(graph)
    finish_s = play(columns)
    return times_of(columns, finish_s)


def times_of(columns: Columns, finish_s: Sequence[float]) -> Times:
    """Times of activities from those of rows."""
    starts_s = [
        max(finish_s[a] + a_lag_s, finish_s[b] + b_lag_s)
        for a, a_lag_s, b, b_lag_s in zip(columns.first, columns.first_lag_s, columns.second, columns.second_lag_s, strict=True)
    ]
    return Times([starts_s[row] for row in columns.row_of], [finish_s[row] for row in columns.row_of])
