"""The line of requests that real replicas share: the simulator's discipline, batch by batch, on a clock of the test's own."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.planner.serving import Load, Station, Tandem
from chinchilla_sim.runtime.answering.line import Batch, Counter, Line, OwnText, SharedLine, Source, opened_line
from chinchilla_sim.simulator.requests import circulate, serve_arrivals

Row = tuple[int, int, int, float]
"""First request, requests, replica and start of a batch."""


class Replica:
    """A line of stations that takes the seconds it is told to."""

    def __init__(self, tandem: Tandem) -> None:
        self.tandem, self.free_s, self.exits = tandem, [0.0] * len(tandem.stations), list[float]()

    def pass_batch(self, size: int, now_s: float) -> tuple[float, float]:
        """When the replica is free again, and when the batch is answered."""
        for number, station in enumerate(self.tandem.stations):
            self.free_s[number] = now_s = max(now_s, self.free_s[number]) + station.busy_s[size - 1]
            now_s += station.delay_s
        self.exits.append(now_s)
        oldest_s = self.exits[-self.tandem.window] if len(self.exits) >= self.tandem.window else 0.0
        return max(self.free_s[0], oldest_s), now_s


def drive(tandems: list[Tandem], source: Source, concurrency: int | None = None) -> list[Row]:
    """The batches that the line gives to replicas with these seconds: events in order of time."""
    line, replicas = opened_line(len(tandems), source, concurrency), [Replica(tandem) for tandem in tandems]
    answers, joins = list[tuple[float, int]](), list[tuple[float, int]]()
    rows = list[Row]()
    while True:
        openings = [opens for replica in line.free if (opens := line.opens_s(replica, source)) is not None]
        waiting = [*openings, *(time for time, _ in answers), *(time for time, _ in joins)]
        if not waiting:
            return rows
        now_s = max(min(waiting), rows[-1][3] if rows else 0.0)
        for time_s, size in sorted(event for event in answers if event[0] <= now_s):
            line = line.answer(source, time_s, size) if source.times_s is None else line
        for _, replica in sorted(event for event in joins if event[0] <= now_s):
            line = line.join(replica)
        answers, joins = ([event for event in events if event[0] > now_s] for events in (answers, joins))
        while line.free:
            replica = line.free[0]
            line, batch = line.take(replica, source, now_s)
            if batch is None:
                break
            free_s, end_s = replicas[replica].pass_batch(batch.size, now_s)
            rows.append((batch.first, batch.size, replica, now_s))
            joins.append((free_s, replica))
            answers.append((end_s, batch.size))


def rows_of(batches: object) -> list[Row]:
    """The simulator's batches in the same form."""
    sizes = batches.sizes.tolist()  # type: ignore[attr-defined]
    firsts = np.cumsum([0, *sizes])[:-1].tolist()
    return list(zip(firsts, sizes, batches.replicas.tolist(), batches.start_s.tolist(), strict=True))  # type: ignore[attr-defined]


stations = st.tuples(st.lists(st.floats(0.1, 5), min_size=3, max_size=3).map(sorted), st.floats(0, 2))
tandems = st.lists(stations, min_size=1, max_size=3).map(lambda rows: Tandem(tuple(Station(tuple(busy), delay) for busy, delay in rows)))
arrivals = st.lists(st.floats(0, 20), min_size=1, max_size=40).map(sorted)


@settings(deadline=None, max_examples=200)
@given(st.lists(tandems, min_size=1, max_size=3), arrivals)
def test_the_line_deals_out_batches_as_the_simulator_does(lines: list[Tandem], times: list[float]) -> None:
    """For the same seconds of all stations: the same requests in the same batches, at the same replicas and times."""
    assert drive(lines, Source(len(times), 3, tuple(times))) == rows_of(serve_arrivals(lines, times))


@settings(deadline=None, max_examples=200)
@given(st.lists(tandems, min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 60))
def test_a_closed_loop_goes_round_as_the_simulator_s_does(lines: list[Tandem], concurrency: int, count: int) -> None:
    """The same where every answer brings the next request; no more than `count` come."""
    times, batches = circulate(lines, concurrency, count)
    assert drive(lines, Source(count, 3), concurrency) == rows_of(batches)
    assert len(times) == count == batches.sizes.sum()


def test_arrivals_depend_on_the_seed_alone() -> None:
    """The run's arrivals are those of the simulation; the first ones do not depend on how many follow."""
    few, many = (Load(50.0, 3).arrivals_s(count) for count in (10, 1000))
    assert few.tolist() == many[:10].tolist() != Load(50.0, 4).arrivals_s(10).tolist()
    assert np.diff(many).mean() == pytest.approx(1 / 50.0, rel=0.15)


class Clock:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s, self.naps = 0.0, 0

    def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self.now_s += seconds
        self.naps += 1


def test_a_counter_sleeps_until_the_next_arrival_and_no_longer() -> None:
    """One replica of 10 s: requests at 0, 1, 2, 3, 4 and 55 s are taken as by hand, with one nap for each idle time."""
    clock, source = Clock(), Source(6, 3, (0.0, 1.0, 2.0, 3.0, 4.0, 55.0))
    counter = Counter(SharedLine(OwnText().swap, opened_line(1, source, None)), source, 0, lambda: clock.now_s, clock.sleep, 0.001)
    found = list[tuple[float, int]]()
    while (batch := counter.take()) is not None:
        found.append((batch.start_s, batch.size))
        clock.now_s += 10
    assert found == [(0.0, 1), (10.0, 3), (20.0, 1), (55.0, 1)]
    assert clock.naps == 1


def test_a_replica_that_no_request_is_left_for_goes_home() -> None:
    """Of three free replicas and two requests the third has nothing to wait for; in the end nobody has."""
    source = Source(2, 4, (1.0, 5.0))
    line = opened_line(3, source, None)
    assert [line.opens_s(replica, source) for replica in range(3)] == [1.0, 5.0, None]
    line, batch = line.take(0, source, 6.0)
    assert batch == Batch(0, 2, 6.0, (1.0, 5.0)) and line.opens_s(1, source) is None
    assert line.take(1, source, 9.0) == (line, None)


def test_only_the_replica_at_the_head_may_take() -> None:
    """The one that is free longest; the other's try changes nothing."""
    source = Source(2, 1, (0.0, 0.0))
    line = Line(free=(1, 0))
    assert line.take(0, source, 1.0) == (line, None)
    assert line.take(1, source, 1.0)[0] == Line(free=(0,), taken=1)


def test_a_line_survives_a_store() -> None:
    """What is read is what was written, seconds to the last bit."""
    line = Line((2, 0), 7, (0.1 + 0.2, 1e-9))
    assert Line.from_text(line.to_text()) == line


def test_processes_that_change_the_line_at_once_lose_nothing() -> None:
    """Four of them join and take through a store that swaps: every request is taken once."""
    own, lock, count = OwnText(), Lock(), 200
    source = Source(count, 3, tuple(0.0 for _ in range(count)))

    def swap(expected: str, desired: str) -> str:
        with lock:
            return own.swap(expected, desired)

    def work(replica: int) -> list[tuple[int, int]]:
        counter = Counter(SharedLine(swap, opened_line(4, source, None)), source, replica, lambda: 1.0, _no_sleep, 0.0)
        return [(batch.first, batch.size) for batch in iter(counter.take, None)]

    with ThreadPoolExecutor(4) as pool:
        taken = sorted(batch for batches in pool.map(work, range(4)) for batch in batches)
    assert [number for first, size in taken for number in range(first, first + size)] == list(range(count))


def _no_sleep(seconds: float) -> None:
    assert seconds == 0.0
